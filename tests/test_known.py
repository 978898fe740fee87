"""Methods that know the backdoor that they take out: what they see, TBAR by hand, inverted triggers as parameters."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from parlib.attack.inversion import InvertedTrigger
from parlib.attack.triggers import Trigger
from parlib.cache import write_tensors
from parlib.cli.cost import settings
from parlib.experiments.presets import trigger_options
from parlib.experiments.registry import check
from parlib.method.invertune import layers, moved_most, neurons
from parlib.method.methods import METHODS, Backdoor, Recipe
from parlib.model.clip import create
from parlib.model.weights import negated
from parlib.train.cached import keep_made, train
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

    def weights(method: str, backdoor: Backdoor | None) -> str:
        return train(clip, scenes.first(80), _recipe(method, steps=2), reference=clip, backdoor=backdoor).sha256

    other = replace(blackout, stamp=lambda pixels, random: torch.ones_like(pixels), key="white")
    assert weights("unlearn", blackout) == weights("unlearn", blackout)
    assert weights("unlearn", blackout) != weights("unlearn", other)
    assert weights("distil", blackout) == weights("distil", None)


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


def test_the_dry_run_says_the_coefficient():
    assert "coefficient 2, " in settings(check("02_clean", {"method": "tbar", "coefficient": 2.0}))


def test_what_is_done_after_the_training_is_a_stage_of_its_own():
    for given in ({"method": "tbar"}, {"interpolation": 0.1}, {"refresh": True}):
        assert "finish" in check("02_clean", given).stages()
    assert "finish" not in check("02_clean", {"method": "unlearn"}).stages()
