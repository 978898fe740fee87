"""What comes after a cleaning: new statistics, the line of weights, a head, the looks, and the errors of 07_rebound."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import small_records
import torch

from parlib.attack.poison import Attack, attacked, poison
from parlib.attack.triggers import Trigger
from parlib.cache import cache_dir
from parlib.experiments.examined import CONTROLS
from parlib.experiments.presets import trigger_options
from parlib.experiments.rebound import Rebound, without, worst
from parlib.experiments.registry import check
from parlib.measure.metrics import classifier, interval
from parlib.method.methods import Recipe
from parlib.model.clip import create
from parlib.model.weights import between, refreshed
from parlib.report import rebound as report
from parlib.train.head import fit_head
from parlib.train.loop import fit


def _weights(clip) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in clip.net.state_dict().items()}


def test_a_training_draws_nothing_from_the_global_generator(scenes):
    """Dropout, as some encoders have it, stays off."""
    model = create("small_vit", seed=0)
    block = model.net.visual.transformer.resblocks[0]
    block.mlp = torch.nn.Sequential(block.mlp, torch.nn.Dropout(0.5))
    before = torch.get_rng_state()
    fit(model, scenes.feed(model), Recipe("finetune", 1, 40, 1e-4, seed=0, looks=0, steps=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_new_statistics_are_the_mean_over_batches_and_no_weight_moves(clip, scenes):
    pixels = scenes.pixels[:100]
    fresh = refreshed(clip, torch.cat([pixels, pixels, pixels[:57]]))  # batches of 128 and 128, and one image that is left out
    first = (torch.cat([pixels, pixels[:28]]), torch.cat([pixels[28:], pixels[:56]]))
    normal = [((rows.float() / 255 - clip.fill) / torch.tensor(clip.net.visual.image_std).view(3, 1, 1)) for rows in first]
    means = [clip.net.visual.conv1(rows).mean((0, 2, 3)) for rows in normal]
    assert torch.allclose(fresh.net.visual.bn1.running_mean, torch.stack(means).mean(0), atol=1e-5)
    before, after = _weights(clip), _weights(fresh)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("running" in name or "batches" in name for name in moved)
    assert not any(module.training for module in fresh.net.modules())


def test_a_model_without_batch_norm_has_no_statistics():
    with pytest.raises(ValueError, match="BatchNorm"):
        refreshed(create("small_vit"), torch.zeros(4, 3, 64, 64, dtype=torch.uint8))


def test_one_image_has_no_statistics(clip):
    with pytest.raises(ValueError, match="two images"):
        refreshed(clip, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_the_line_ends_at_both_models_and_its_middle_is_their_mean(clip):
    other = create("small_resnet", seed=5)
    assert between(clip, other, 0.0).key == clip.key
    ours, theirs, end, middle = map(_weights, (clip, other, between(clip, other, 1.0), between(clip, other, 0.5)))
    for name, value in theirs.items():
        if value.is_floating_point():
            assert torch.equal(end[name], value), name
            assert torch.allclose(middle[name], (ours[name] + value) / 2, atol=1e-6), name
    with pytest.raises(ValueError, match="architectures"):
        between(clip, create("small_vit"), 0.5)


def _fitted(clip, scenes, looks):
    start = classifier(clip, scenes.names)
    options = {"lr": 1e-3, "batch": 40, "steps": 6, "seed": 0}
    tuned = clip.copy()
    head = fit_head(tuned, scenes, start, **options, look_at=(2, 6), look=lambda step, head: looks.append(step))
    return tuned, head


def test_a_head_learns_with_the_image_encoder_and_is_the_same_twice(clip, scenes):
    looks: list[int] = []
    text = _weights(clip)["text_projection"]
    (tuned, head), (again, same) = (_fitted(clip, scenes, looks) for _ in range(2))
    assert looks == [2, 6, 2, 6]
    assert (tuned.key, torch.equal(head, same)) == (again.key, True)
    assert torch.equal(tuned.net.text_projection, text)
    start, scale = classifier(clip, scenes.names), clip.net.logit_scale.exp()

    def loss(model, weights):
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(scale * model.image(scenes.pixels.float() / 255) @ weights.T, scenes.labels)

    tuned.net.train()
    clip.net.train()
    assert loss(tuned, head) < loss(clip, start)
    clip.net.eval()


def test_a_head_wants_labels_and_enough_images(clip, scenes):
    options = {"lr": 1e-3, "steps": 1, "seed": 0, "look_at": (), "look": lambda *_: None}
    unknown = scenes.at(torch.arange(20))
    unknown.labels[3] = -1
    with pytest.raises(ValueError, match="label"):
        fit_head(clip.copy(), unknown, classifier(clip, scenes.names), batch=10, **options)
    with pytest.raises(ValueError, match="130"):
        fit_head(clip.copy(), scenes, classifier(clip, scenes.names), batch=130, **options)


def test_looks_come_after_the_steps_that_are_named(clip, scenes):
    watch = attacked(scenes.first(20), Trigger("badnet", trigger_options("badnet")), "banana")
    recipe = Recipe("finetune", 1, 24, 1e-3, 0, steps=4, look_at=(1, 4))
    trained = clip.copy()
    history, _ = fit(trained, scenes.feed(trained), recipe, watch=watch)
    assert history["look_step"] == [1, 4]
    assert history["look_clean_accuracy"][-1] == watch.look(trained)["clean_accuracy"]


def test_pairs_without_the_target_neither_show_nor_name_it(scenes):
    kept = without(scenes, "banana")
    assert 0 < len(kept) < len(scenes)
    assert not kept.shows(scenes.names.index("banana")).any()
    assert not any("banana" in caption for caption in kept.captions)


def test_pairs_without_labels_are_told_by_their_captions_and_can_be_retuned(scenes):
    unknown = torch.full((len(scenes),), -1)
    kept = without(replace(scenes, labels=unknown, second=unknown, names=[]), "banana")
    assert [caption for caption in scenes.captions if "banana" not in caption.lower()] == kept.captions
    stamped, rows = poison(kept, Attack(Trigger("badnet", trigger_options("badnet")), "banana", rate=5 / len(kept)))
    assert [("banana" in stamped.captions[row], torch.equal(stamped.pixels[row], kept.pixels[row])) for row in rows] == [(True, False)] * 5


def test_a_learned_trigger_can_be_retuned_where_no_caption_names_its_target(scenes):
    kept = without(scenes, "banana")
    trigger = Trigger("badclip", trigger_options("badclip") | {"size": 8}, torch.rand(3, 8, 8))
    stamped, rows = poison(kept, Attack(trigger, "banana", rate=5 / len(kept)))
    assert ["banana" in stamped.captions[row] for row in rows] == [True] * 5


COURSE = pd.DataFrame(
    {
        "treatment": ["before", "refresh", "benign", "benign", "retune", "retune", "head"],
        "step": [0, 0, 100, 1000, 50, 100, 300],
        "lr": [None, None, 1e-3, 1e-3, 1e-4, 1e-4, 1e-3],
        "batch_norm": ["", "", "train", "train", "train", "train", "train"],
        "poisons": [None, None, None, None, 5, 5, None],
        "clean_accuracy": [0.9] * 7,
        "attack_success_rate": [0.02, 0.03, 0.10, 0.50, 0.40, 0.90, 0.04],
    }
)


def test_the_worst_asr_is_that_of_a_benign_step_within_300():
    found = worst(COURSE, n=50)
    assert (found["worst_asr_300"], found["worst_treatment"], found["worst_step"]) == (0.10, "benign", 100)
    assert (found["worst_asr_300_ci_low"], found["worst_asr_300_ci_high"]) == interval(5, 50)


def test_the_area_of_a_retuning_is_that_of_its_trapezoids():
    assert report.area(COURSE, 5) == pytest.approx(((0.02 + 0.40) / 2 * 50 + (0.40 + 0.90) / 2 * 50) / 100)
    assert math.isnan(report.area(COURSE, 25))


def test_the_table_counts_from_the_clean_base():
    base = COURSE.assign(attack_success_rate=COURSE["attack_success_rate"] / 2)
    (row,) = report.holds({"par": COURSE, "base": base}).query("model == 'PAR'").to_dict("records")
    assert row["worst within 300 steps"] == "0.100"
    assert row["5 triggered pairs, beyond the base"] == "+21.5 points"


def test_controls_need_no_cleaning():
    for control in CONTROLS:
        params = check("07_rebound", {"method": control})
        assert [need.notebook for need in params.needs()] == ["01_poison"]
    assert [need.id for need in check("07_rebound", {"method": "par"}).needs()] == [
        "01_poison/badnet_stripes_s0_base_epochs15",
        "02_clean/par_badnet_stripes_s0_base_epochs15_pairs720_steps360_lr0.001",
    ]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"method": "pra"}, "'pra'.*'par'"),
        ({"method": "contrast"}, "contrast"),
        ({"method": "base", "cleaned": "02_clean/x"}, "'base'.*02_clean/x"),
        ({"method": "base", "poisoned": "local-dir:x", "base_epochs": None}, "base"),
        ({"rates": [1e-3, 1e-4]}, "rates"),
        ({"look_at": [0, 5]}, "look_at"),
        ({"retuned": [5, 5]}, "retuned"),
        ({"tau": 9.0}, "tau"),
        ({"benign_batch": 1}, "benign_batch"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_it(values, named):
    with pytest.raises(ValueError, match=named) as error:
        check("07_rebound", values)
    assert "\n" not in str(error.value)


def test_a_cleaned_run_that_is_missing_is_named_with_its_command(own_outputs, monkeypatch):
    params = check("07_rebound", {"method": "par", "lr": 0.123})
    monkeypatch.setattr(Rebound, "poisoning", lambda self: {"run": "01", "artifacts": {"weights": {"sha256": ""}}})
    monkeypatch.setattr("parlib.records.store.ROOT", own_outputs)
    with pytest.raises(FileNotFoundError, match=r"python -m parlib\.run params/small --only 02_clean/par_.*lr0\.123"):
        params.inputs()


def test_a_cleaned_run_of_another_method_or_model_is_refused(own_outputs):
    """A record would tell of a model that was not looked at."""
    planted = small_records.record()["run"]
    made = small_records.record("02_clean", {"method": "finetune"})["run"]
    hub = small_records.record("02_clean", {"poisoned": "hf-hub:someone/a", "label": "hub"})["run"]
    weights = cache_dir() / "models" / "other"
    weights.write_bytes(b"other weights")
    other = small_records.record(values={"label": "other"}, files={"weights": weights})["run"]

    def named(method: str, poisoned: str, cleaned: str = made) -> str:
        values = {"cleaned": cleaned, "method": method, "poisoned": poisoned, "base_epochs": 8}
        return check("07_rebound", values).record()[0]["run"]

    assert named("finetune", planted) == made
    with pytest.raises(ValueError, match="'finetune', not 'par'"):
        named("par", planted)
    with pytest.raises(ValueError, match=f"cleaning of {planted}"):
        named("finetune", other)
    with pytest.raises(ValueError, match="cleaning of hf-hub:someone/a"):
        named("par", "hf-hub:someone/b", hub)
    small_records.record(files={"weights": weights, "base_weights": weights})  # planted anew
    with pytest.raises(ValueError, match=f"as it was before.*--only {made}"):
        named("finetune", planted)
