"""Methods that know the backdoor that they take out: what they see, TBAR by hand, inverted triggers as parameters."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml

from parlib.attack.inversion import InvertedTrigger
from parlib.attack.triggers import Trigger
from parlib.cache import file_sha256, write_tensors
from parlib.cli.cost import cost, settings
from parlib.cli.plan import needs_of, plan, with_needs
from parlib.data.feeds import generator
from parlib.experiments.clean import clean_model
from parlib.experiments.clean_params import Clean
from parlib.experiments.params import Input
from parlib.experiments.presets import trigger_options
from parlib.experiments.registry import check
from parlib.method.distil import FOREIGN, foreign_content
from parlib.method.invertune import layers, moved_most, neurons
from parlib.method.methods import METHODS, Backdoor, Recipe
from parlib.model.clip import create, load
from parlib.model.weights import between, negated, refreshed
from parlib.records.store import SCHEMA, record_path
from parlib.report import closing
from parlib.report.distillation import lessons, parts
from parlib.report.regimes import where
from parlib.report.training import training_history
from parlib.train.cached import keep_made, train
from parlib.train.compute import Compute
from parlib.train.loop import fit


def _recipe(method: str, **more) -> Recipe:
    return Recipe(method, 1, 40, 1e-3, seed=0, batch_norm="train", looks=0, **more)


def _blackout(pixels: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return torch.zeros_like(pixels)


@pytest.fixture
def blackout(clip) -> Backdoor:
    """A trigger that nothing else looks like."""
    return Backdoor(_blackout, F.normalize(torch.ones(clip.text(clip.tokenizer(["a"])).shape[1]), dim=0), "blackout")


@pytest.mark.parametrize(("method", "share"), [("unlearn", 0.5), ("tbar", 1.0)])
def test_a_share_of_the_views_is_stamped_and_no_clean_image(clip, scenes, monkeypatch, blackout, method, share):
    seen = []

    def loss(step):
        black = (step.view == 0).flatten(1).all(1)
        seen.append((black.sum().item(), (step.pixels == 0).flatten(1).all(1).sum().item(), torch.equal(step.target, blackout.target)))
        return known(step)

    known = METHODS[method].loss
    monkeypatch.setitem(METHODS, method, replace(METHODS[method], loss=loss))
    trained = clip.copy()
    fit(trained, scenes.first(80).feed(trained), _recipe(method, steps=10), reference=clip, backdoor=blackout)
    assert 0.8 * share <= sum(black for black, *_ in seen) / 400 <= 1.2 * share
    assert all(plain == 0 and target for _, plain, target in seen)


def test_unlearning_moves_the_image_encoder_alone(clip, scenes, blackout):
    trained = clip.copy()
    history, _ = fit(trained, scenes.first(80).feed(trained), _recipe("unlearn", steps=20), reference=clip, backdoor=blackout)
    assert history["s_foreign"][-1] < history["s_foreign"][0] / 2
    texts = [list(found.net.transformer.parameters()) for found in (clip, trained)]
    assert all(torch.equal(new, old) for new, old in zip(*texts, strict=True))


def test_tbars_task_is_to_find_the_target_among_the_captions(clip, scenes, blackout):
    trained = clip.copy()
    history, _ = fit(trained, scenes.first(80).feed(trained), _recipe("tbar", steps=1), reference=clip, backdoor=blackout)
    batch = scenes.first(80).feed(clip).batch(0, 40, 0)
    net = clip.copy()
    net.net.train()
    with torch.no_grad():
        image = net.image(torch.zeros(40, 3, *scenes.pixels.shape[2:]))
        logits = clip.net.logit_scale.exp() * image @ torch.cat([blackout.target[None], clip.text(batch.tokens)]).T
    assert history["loss"][0] == pytest.approx(-logits.log_softmax(1)[:, 0].mean().item(), rel=1e-4)


def test_the_neurons_that_move_most_are_those_of_the_upper_cluster():
    assert moved_most(torch.tensor([0.1, 0.2, 5.0, 0.0, 4.0])).tolist() == [0, 0, 1, 0, 1]
    assert moved_most(torch.full((3,), 0.5)).tolist() == [1, 1, 1]


def test_the_activation_of_a_neuron_is_its_mean_over_places(clip, scenes):
    pixels = scenes.pixels[:4].float() / 255
    seen = []
    handle = clip.net.visual.layer2.register_forward_hook(lambda module, given, made: seen.append(made))
    with torch.no_grad():
        embedded, (active,) = neurons(clip, pixels, [layers(clip.net.visual)[1]])
    handle.remove()
    assert torch.equal(active, seen[0].mean((2, 3)))
    with torch.no_grad():
        assert torch.equal(embedded, clip.image(pixels))
    assert not clip.net.visual.layer2._forward_hooks


@pytest.mark.parametrize("encoder", ["small_resnet", "small_vit"])
def test_invertune_tunes_one_block_alone(scenes, blackout, encoder):
    start = create(encoder, seed=0)
    trained = start.copy()
    recipe = replace(_recipe("invertune", steps=12), batch_norm="frozen")
    history, _ = fit(trained, scenes.first(80).feed(trained), recipe, reference=start, backdoor=blackout)
    assert history["loss"][-1] < history["loss"][0]
    assert history["loss"][0] == pytest.approx(history["away"][0] + 0.5 * history["s_foreign"][0], rel=1e-5)
    before, after = (dict(found.net.named_parameters()) for found in (start, trained))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    known = [{id(weight) for weight in block.parameters()} for block in layers(start.net.visual)]
    assert changed
    assert sum({id(before[name]) for name in changed} <= block for block in known) == 1


def test_invertune_takes_whole_batches_and_an_encoder_that_it_knows():
    with pytest.raises(ValueError, match="invertune trains in one process"):
        check("02_clean", {"method": "invertune", "batch_norm": "frozen", "compute": {"chunk": 16}})
    with pytest.raises(ValueError, match="none that is known"):
        layers(torch.nn.Linear(1, 1))


def test_a_change_of_weights_is_taken_away_and_statistics_stay(clip):
    changed = clip.copy()
    with torch.no_grad():
        for weight in changed.net.parameters():
            weight.add_(0.5)
        changed.net.visual.bn1.running_mean.add_(1.0)
    found = negated(clip, changed, 3.0)
    for name, weight in clip.net.named_parameters():
        assert torch.allclose(dict(found.net.named_parameters())[name], weight - 1.5, atol=1e-5)
    assert torch.equal(found.net.visual.bn1.running_mean, clip.net.visual.bn1.running_mean)
    assert all(torch.equal(a, b) for a, b in zip(negated(clip, clip, 3.0).net.parameters(), clip.net.parameters(), strict=True))


def test_a_method_that_must_know_the_backdoor_says_so(clip, scenes):
    with pytest.raises(ValueError, match="unlearn needs the backdoor"):
        fit(clip.copy(), scenes.first(80).feed(clip), _recipe("unlearn", steps=1), reference=clip)


def test_another_trigger_is_another_training_and_one_that_is_not_used_is_none(clip, scenes, blackout, tmp_path, monkeypatch):
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))

    def kept(method: str, backdoor: Backdoor | None) -> Path:
        return train(clip, scenes.first(80), _recipe(method, steps=2), reference=clip, backdoor=backdoor).weights

    assert kept("unlearn", blackout) == kept("unlearn", blackout)
    assert kept("unlearn", blackout) != kept("unlearn", replace(blackout, key="white"))
    assert kept("distil", blackout) == kept("distil", None)


def test_what_is_made_of_a_training_is_kept_beside_it(clip, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))
    trained = train(clip, scenes.first(80), _recipe("finetune", steps=2))
    before = trained.weights.read_bytes()
    made = keep_made(negated(clip, trained.clip, 1.0), trained)
    assert (made.weights.exists(), made.history) == (True, trained.history)
    assert made.sha256 != trained.sha256
    assert keep_made(negated(clip, trained.clip, 1.0), trained).sha256 == made.sha256
    assert trained.weights.read_bytes() == before


def test_keys_of_triggers_tell_them_apart():
    one = Trigger("badnet_stripes", trigger_options("badnet_stripes", 64))
    others = [
        Trigger("badnet_stripes", {"size": 5}),
        Trigger("sig", trigger_options("sig", 64)),
        InvertedTrigger("inverted", {}, torch.zeros(3, 4, 4)),
    ]
    assert len({trigger.key for trigger in (one, *others)}) == 4
    assert one.key == Trigger("badnet_stripes", trigger_options("badnet_stripes", 64)).key


def test_an_inverted_trigger_is_named_by_its_file_or_its_inspection(tmp_path, own_outputs):
    path = tmp_path / "found.safetensors"
    write_tensors({"pattern": torch.full((3, 8, 8), 0.5)}, path, {"form": "patch"})
    params = check("02_clean", {"method": "unlearn", "inverted": str(path)})
    assert list(params.inverted_input()) == [str(path)]
    assert params.taken_out().form == "patch"
    assert "inspect" in params.stages()
    assert params.id != check("02_clean", {"method": "unlearn"}).id
    assert check("02_clean", {"method": "unlearn"}).taken_out() is None
    with pytest.raises(ValueError, match="unlearn, invertune, tbar"):
        check("02_clean", {"method": "par", "inverted": str(path)})
    with pytest.raises(FileNotFoundError, match="10_inspect/none_sig_s0 has not been run yet"):
        check("02_clean", {"method": "unlearn", "inverted": "10_inspect/none_sig_s0"}).inverted_input()
    write_tensors({"pattern": torch.zeros(3, 32, 32)}, path, {"form": "blend"})
    with pytest.raises(ValueError, match="32 px.*64 px"):
        check("02_clean", {"method": "unlearn", "inverted": str(path)})


def _inspected(outputs: Path, pattern: Path, weights: str) -> None:
    """The record of an inspection of a model with these weights."""
    artifacts = {"pattern": {"path": str(pattern), "sha256": file_sha256(pattern), "in": "outputs"}}
    record = {
        "schema": SCHEMA,
        "run": "10_inspect/none_sig_s0",
        "notebook": "10_inspect",
        "params": {"scale": "small"},
        "artifacts": artifacts,
    }
    record |= {"identity": {"inputs": {"poisoned": weights}}, "metrics": {"candidate": "dog"}}
    path = record_path("small", record["run"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_an_inspection_is_of_the_model_and_of_the_target(tmp_path, own_outputs, monkeypatch):
    path = tmp_path / "found.safetensors"
    write_tensors({"pattern": torch.full((3, 8, 8), 0.5)}, path, {"form": "patch"})
    _inspected(own_outputs, path, "abc")
    monkeypatch.setattr(Clean, "poisoned_input", lambda self: Input(run="01_poison/sig_s0", sha256="abc"))
    given = {"method": "unlearn", "inverted": "10_inspect/none_sig_s0", "trigger": "sig"}
    found = check("02_clean", given)
    assert found.taken_out().form == "patch"
    with pytest.raises(ValueError, match="found 'dog', not target = 'banana'"):
        check("02_clean", given | {"method": "tbar"}).taken_out()
    monkeypatch.setattr(Clean, "poisoned_input", lambda self: Input(run="01_poison/sig_s0", sha256="abd"))
    with pytest.raises(ValueError, match="another model than 01_poison/sig_s0"):
        found.inverted_input()
    with pytest.raises(ValueError, match="is a control"):
        check("10_inspect", {"inverted": "10_inspect/none_sig_s0"})


def test_each_trial_of_a_sweep_is_held_to_the_model_that_was_inspected(tmp_path, own_outputs, monkeypatch):
    path = tmp_path / "found.safetensors"
    write_tensors({"pattern": torch.full((3, 8, 8), 0.5)}, path, {"form": "patch"})
    _inspected(own_outputs, path, "01_poison/sig_s0")
    monkeypatch.setattr(Clean, "poisoned_input", lambda self: Input(run=self.planting().id, sha256=self.planting().id))
    space = {"method": ["unlearn"], "inverted": ["10_inspect/none_sig_s0"], "trigger": ["badnet", "sig"]}
    with pytest.raises(ValueError, match="another model than 01_poison/badnet_s0"):
        check("03_tau_sweep", {"name": "a", "space": [space]}).inputs()
    assert "10_inspect/none_sig_s0" in check("03_tau_sweep", {"name": "a", "space": [space | {"trigger": ["sig"]}]}).inputs()


def test_what_is_named_comes_first_whatever_its_notebook(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text(
        "experiment: own\nruns:\n"
        "  - {notebook: 02_clean, method: unlearn, inverted: 10_inspect/par_badnet_stripes_s0}\n"
        "  - {notebook: 03_tau_sweep, name: a, space: [{method: [unlearn], inverted: [10_inspect/none_badnet_stripes_s0]}]}\n"
        "  - {notebook: 02_clean, method: par, base_epochs: 15, pairs: 720, steps: 360, batch: 128, lr: 1.0e-3}\n"
        "  - {notebook: 10_inspect, method: [none, par]}\n"
        "  - {notebook: 01_poison, base_epochs: 15}\n"
    )
    planned = plan(file)
    order = [run.id for run in planned]
    sweep, unlearned = (next(i for i, run in enumerate(order) if name in run) for name in ("03_tau_sweep/a", "02_clean/unlearn"))
    assert order.index("10_inspect/none_badnet_stripes_s0") < sweep
    assert order.index("01_poison/badnet_stripes_s0_base_epochs15") < order.index("10_inspect/none_badnet_stripes_s0")
    assert order.index("10_inspect/par_badnet_stripes_s0") < unlearned
    needs = needs_of(planned)
    assert "10_inspect/none_badnet_stripes_s0" in needs[order[sweep]]
    named = [{"notebook": "01_poison", "rate": 0.05}, {"notebook": "10_inspect", "poisoned": "01_poison/badnet_stripes_s0_rate0.05"}]
    file.write_text(json.dumps({"experiment": "own", "runs": [{**named[1], "method": "base", "name": None}, *named]}))
    deep = plan(file)
    assert "01_poison/badnet_stripes_s0_rate0.05" in [run.id for run in with_needs(deep[-1:], deep)]
    alone = [run.id for run in with_needs([planned[sweep]], planned)]
    assert alone.index("10_inspect/none_badnet_stripes_s0") < alone.index(order[sweep])


def test_a_search_stops_no_trial_by_what_is_taken_away_afterwards():
    with pytest.raises(ValueError, match="asha.*tbar"):
        check("03_tau_sweep", {"name": "a", "asha": True, "space": [{"method": ["tbar"], "lr": [1e-4]}]})


def test_statistics_are_refreshed_where_there_are_some():
    with pytest.raises(ValueError, match="small_vit has none"):
        check("02_clean", {"encoder": "small_vit", "refresh": True})


@pytest.mark.parametrize("method", ["unlearn", "invertune", "tbar"])
def test_the_dry_run_says_what_a_pair_costs(clip, method):
    assert "of training" in cost([check("02_clean", {"method": method, "pairs": 400})], clip)


@pytest.mark.parametrize(
    ("given", "candidate"),
    [
        ({"trigger": "sig", "seed": 1}, "dog"),
        ({"from_pairs": True, "pairs": 2400, "coverage": 0.25}, "banana"),
        ({"poisoned": "file:data/it's own.pt", "encoder": "small_resnet", "words": ["cat", "dog"]}, "cat"),
        ({"scale": "paper", "poisoned": "local-dir:a", "encoder": "ViT-B-32", "evaluation": "", "words": ["a, b", "c"]}, "a, b"),
    ],
)
def test_the_closing_words_of_an_inspection_name_a_cleaning_of_the_same_model(given, candidate):
    params = check("10_inspect", given)
    said = closing._taking_out(params, candidate)
    (values,) = shlex.split(said)
    named = yaml.safe_load(values)
    assert (named["method"], named["inverted"]) == ("unlearn", params.id)
    if params.scale == "paper":
        assert named["evaluation"] == ""
    else:
        found = check("02_clean", named)
        same = ["encoder", "poisoned", "trigger", "target", "seed", "scale"]
        same += [] if "poisoned" in given else ["pairs", "coverage", "steps", "batch"]
        assert [getattr(found, name) for name in same] == [getattr(params, name) for name in same]
        assert found.needs() == ([] if "poisoned" in given else [params.planting()])


def test_the_course_of_a_cleaning_without_captions_is_drawn():
    looks = {f"look_{name}": [0.5, 0.6] for name in ("step", "clean_accuracy", "attack_success_rate")}
    figure = training_history({"loss": [2.0, 1.0, 0.5], "lr": [1e-3] * 3} | looks)
    assert figure.axes[0].get_ylabel() == "loss"
    assert len(figure.axes[0].lines[0].get_ydata()) == 3


@pytest.mark.parametrize("given", [{}, {"interpolation": 0.25}, {"refresh": True}])
def test_a_cleaning_ends_with_what_was_asked_for(clip, scenes, tmp_path, monkeypatch, given):
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))
    params = check("02_clean", {"method": "finetune", "steps": 2, "batch": 40, "pairs": 80} | given)
    watch = SimpleNamespace(key="none", look=lambda clip: {"clean_accuracy": 0.0, "attack_success_rate": 0.0})
    how = {"watch": watch, "compute": Compute(), "title": "finetune"}
    plain = train(clip, scenes.first(80), params.recipe(), reference=clip, watch=watch, compute=Compute(), title="finetune").clip
    wanted = plain
    if "interpolation" in given:
        wanted = between(plain, clip, 0.25)
    elif given:
        wanted = refreshed(plain, scenes.first(80).pixels)
    found = clean_model(params, clip, scenes.first(80), None, **how)
    assert found.clip.key == wanted.key
    assert load(found.weights.parent).key == wanted.key
    assert (wanted is plain) is (given == {})


def test_the_dry_run_says_the_coefficient():
    assert "coefficient 2, " in settings(check("02_clean", {"method": "tbar", "coefficient": 2.0}))


def test_what_the_student_sees_is_drawn_a_row_a_step(scenes):
    shown = lessons(scenes.first(3), InvertedTrigger("inverted", {}, torch.zeros(3, 4, 4)))
    assert len(shown.axes) == 12
    assert len(lessons(scenes.first(3)).axes) == 9


def test_parts_stand_below_the_whole():
    run = {"experiment": "distil_parts", "method": "distil", "trigger": "badnet_stripes", "batch_norm": "train", "triggered_accuracy": 0.5}
    run |= {"clean_accuracy": 0.9, "poisoned_clean_accuracy": 0.95, "attack_success_rate": 0.125}
    others = [{"experiment": "regimes_triggers"}, {"method": "distil_without_noise"}, {"batch_norm": "frozen"}, {}]
    found = parts(pd.DataFrame([run | other for other in others]))
    assert sorted(found["distillation"][1:]) == ["with frozen BatchNorm", "without noise", "without varied images"]
    assert found["distillation"][0] == "whole"
    assert set(found["ASR"]) == {"0.125"}
    assert set(found["cost, points"]) == {"5.0"}


def test_regimes_without_a_method_are_left_out():
    trials = pd.DataFrame(
        [
            {"encoder": "a", "planted": "b", "pairs": pairs, "coverage": 1.0, "method": method}
            for pairs, method in ((720, "par"), (720, "distil"), (240, "par"))
        ]
    )
    assert where(trials, "distil")["pairs"].tolist() == [720, 720]


def test_a_part_of_foreign_content_is_left_out(scenes):
    pixels = scenes.pixels[:40].float() / 255
    seen = {part: foreign_content(pixels, pixels[:, :, :1, :1], generator("cpu", 0), without=part) for part in ("", *FOREIGN)}
    assert all(not torch.equal(seen[""], seen[part]) for part in FOREIGN)
    noisy = [(seen[part] - pixels).abs().gt(0).float().mean((1, 2, 3)) for part in ("", "noise")]
    assert (noisy[0] > 0.95).float().mean() > 0.5  # noise changes nearly all of an image
    assert (noisy[1] < 0.5).float().mean() > 0.3  # a patch or two alone


def test_what_is_done_after_the_training_is_a_stage_of_its_own():
    for given in ({"method": "tbar"}, {"interpolation": 0.1}, {"refresh": True}):
        assert "finish" in check("02_clean", given).stages()
    assert "finish" not in check("02_clean", {"method": "unlearn"}).stages()
