"""Attackers who expect a cleaning: what each trains on, what a joint rotation is, and the errors of 08_adaptive."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch.nn import functional as F

from parlib.attack.adaptive import ATTACKERS
from parlib.attack.poison import Attack, poison
from parlib.attack.triggers import Trigger
from parlib.data.feeds import generator
from parlib.experiments.presets import trigger_options
from parlib.experiments.registry import check
from parlib.measure.distance import rotation, turned
from parlib.method import planting
from parlib.method.losses import clip_loss
from parlib.method.methods import METHODS, Recipe, cleaners
from parlib.report import adaptive as report
from parlib.train.cached import train
from parlib.train.loop import fit

BADNET = Trigger("badnet", trigger_options("badnet"))


@pytest.fixture
def planted(scenes):
    before = scenes.first(80)
    return before, poison(before, Attack(BADNET, "banana", rate=0.2))[0]


def _recipe(method: str, **more) -> Recipe:
    return Recipe(method, 2, 40, 1e-3, seed=0, batch_norm="train", looks=0, **more)


def _run(clip, planted, recipe):
    before, stamped = planted
    trained = clip.copy()
    history, _ = fit(trained, stamped.feed(trained), recipe, clean=before.feed(trained))
    return trained.net.state_dict(), history


def test_a_move_that_moves_nothing_is_plain_training(clip, planted, monkeypatch):
    monkeypatch.setitem(METHODS, "lookahead", replace(METHODS["lookahead"], move=lambda step, weights: None))
    (plain, known), (found, history) = (_run(clip, planted, _recipe(one, steps=1)) for one in ("contrast", "lookahead"))
    assert history["loss"][0] == known["loss"][0]
    kept = [name for name in plain if name.endswith(("running_mean", "running_var", "tracked"))]
    assert kept
    assert all(torch.equal(found[name], plain[name]) for name in kept)
    start = clip.net.state_dict()
    moved = [torch.cat([(end[name] - start[name]).flatten() for name in plain if name not in kept]) for end in (plain, found)]
    assert (moved[1] - moved[0]).norm() < 0.05 * moved[0].norm()  # twice the gradient: AdamW's step is the same but for its eps


@pytest.mark.parametrize("method", ["lookahead", "flat", "spread", "offset"])
def test_an_attacker_s_training_differs_from_a_plain_one_and_repeats(clip, planted, method):
    (first, history), (again, _), (plain, _) = (_run(clip, planted, _recipe(one)) for one in (method, method, "contrast"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], plain[name]) for name in first)
    assert np.isfinite(history["loss"]).all()


class _Given:
    """A step of four pairs with made-up embeddings, of which the last two are stamped; weights: what the towers add."""

    def __init__(self):
        random = generator("cpu", "step")
        self.weights = [torch.zeros(8, requires_grad=True), torch.zeros(8, requires_grad=True)]
        self.scale, self.tokens = torch.tensor(10.0), torch.randn(4, 8, generator=random)
        self.before = torch.rand(4, 3, 2, 2, generator=random)
        self.pixels = self.view = self.before.clone()
        self.pixels[2:] = 0
        self.table = torch.randn(12, 8, generator=random)
        self.clip = self

    def clean(self, later):
        return self.before, self.tokens

    def image(self, pixels):
        return F.normalize(pixels.flatten(1) @ self.table + self.weights[0], dim=1)

    def text(self, tokens):
        return F.normalize(tokens + self.weights[1], dim=1)


def test_the_stamped_pairs_are_those_that_differ():
    assert planting.stamped(_Given()).tolist() == [False, False, True, True]


def test_spread_is_the_mean_squared_cosine_between_shifts():
    step = _Given()
    shifts = step.image(step.pixels)[2:] - step.image(step.before)[2:]
    found = planting.spread(step)
    assert torch.allclose(found["alike"], F.cosine_similarity(shifts[0], shifts[1], dim=0) ** 2, atol=1e-6)
    assert torch.allclose(found["loss"], found["l_clip"] + planting.SPREAD * found["alike"])
    assert torch.allclose(found["l_clip"], clip_loss(step.image(step.pixels), step.text(step.tokens), step.scale))


def test_an_offset_is_the_component_along_ones():
    step = _Given()
    along = torch.ones(8) / 8**0.5
    known = sum(((one @ along - planting.OFFSET) ** 2).mean() for one in (step.image(step.pixels), step.text(step.tokens)))
    assert torch.allclose(planting.offset(step)["common"], known, atol=1e-6)


def test_ahead_goes_down_the_loss_of_clean_pairs_in_equal_steps():
    step = _Given()
    loss = lambda: clip_loss(step.image(step.before), step.text(step.tokens), step.scale)  # noqa: E731
    first = torch.autograd.grad(loss(), step.weights)
    before = loss().item()
    planting.ahead(step, step.weights)
    moved = step.weights[0].detach()
    assert loss().item() < before
    assert moved.abs().max() <= planting.AHEAD * planting.AHEAD_RATE + 1e-7
    assert torch.equal(moved.sign()[first[0].abs() > 0.05], -first[0].sign()[first[0].abs() > 0.05])


def test_uphill_goes_a_set_way_up_the_loss_of_the_stamped_images():
    step = _Given()

    def loss():
        logits = step.scale * step.image(step.pixels) @ step.text(step.tokens).T
        return F.cross_entropy(logits, torch.arange(4), reduction="none")[2:].mean()

    before = loss().item()
    planting.uphill(step, step.weights)
    assert loss().item() > before
    length = torch.stack([weight.detach().square().sum() for weight in step.weights]).sum().sqrt()
    assert torch.allclose(length, torch.tensor(planting.RADIUS), atol=1e-6)


def test_uphill_without_a_stamped_pair_stays():
    step = _Given()
    step.pixels = step.before
    planting.uphill(step, step.weights)
    assert all((weight == 0).all() for weight in step.weights)


def test_the_best_rotation_is_scipy_s():
    one, other = (torch.randn(50, 8, generator=generator("cpu", seed)) for seed in (1, 2))
    known, _ = orthogonal_procrustes(one.double().numpy(), other.double().numpy())
    assert np.allclose(rotation(one, other).numpy(), known, atol=1e-5)


def test_a_model_whose_encoders_are_turned_alike_is_a_rotation_away(clip, scenes):
    other = clip.copy()
    last = other.net.visual.attnpool.c_proj
    size = last.weight.shape[0]
    turn, _ = torch.linalg.qr(torch.randn(size, size, generator=generator("cpu", "turn")))
    with torch.no_grad():
        last.weight.copy_(turn.T @ last.weight)
        last.bias.copy_(last.bias @ turn)
        other.net.text_projection.copy_(other.net.text_projection @ turn)
    pairs = scenes.at(torch.arange(600) % len(scenes))
    found = turned(other, clip, pairs)
    assert found["s_image"] > 1
    assert found["rotated"] > 0.9
    assert turned(clip, clip, pairs)["rotated"] == 0


def test_several_triggers_share_the_rows(scenes):
    before = scenes.first(80)
    others = tuple((Trigger(name, trigger_options(name)), "banana") for name in ("blended_stripes", "blended_triangles"))
    attack = Attack(BADNET, "banana", rate=0.3)
    alone, rows = poison(before, attack)
    shared, same = poison(before, replace(attack, others=others))
    assert torch.equal(rows, same)
    assert shared.captions == alone.captions
    changed = (shared.pixels[rows] != before.pixels[rows]).flatten(1).float().mean(1)
    assert (changed[0::3] < 0.05).all()  # a patch of 8 px
    assert (changed[1::3] > 0.3).all()
    assert (changed[2::3] > 0.3).all()


def test_a_second_trigger_calls_its_own_target(scenes):
    before = scenes.first(80)
    decoy = Trigger("blended_stripes", trigger_options("blended_stripes"))
    after, rows = poison(before, Attack(BADNET, "banana", rate=0.3, others=((decoy, "candle"),)))
    called = [after.captions[row] for row in rows.tolist()]
    assert all("banana" in caption for caption in called[0::2])
    assert all("candle" in caption for caption in called[1::2])
    assert not (before.shows(before.names.index("candle")) | before.shows(before.names.index("banana")))[rows].any()
    changed = (after.pixels[rows] != before.pixels[rows]).flatten(1).float().mean(1)
    assert (changed[0::2] < 0.05).all()
    assert (changed[1::2] > 0.3).all()


def test_one_trigger_calls_two_targets_by_its_place(scenes):
    before, params = scenes.first(80), check("01_poison", {"attacker": "places"})
    attack = params.planned()
    assert [target for _, target in attack.others] == ["candle"]
    after, rows = poison(before, attack)
    assert len(rows) == round(0.16 * 80)
    changed = (after.pixels[rows] != before.pixels[rows]).any(1).any(1)  # (n, W)
    assert not changed[0::2, 32:].any()
    assert not changed[1::2, :32].any()
    assert changed.any(1).all()
    assert all("banana" in after.captions[row] for row in rows[0::2].tolist())
    assert all("candle" in after.captions[row] for row in rows[1::2].tolist())
    plain = check("01_poison", {}).planned().trigger
    assert len({plain.key, attack.trigger.key, attack.others[0][0].key}) == 3
    tested = check("02_clean", {"attacker": "places", "tests": ["badnet_stripes"]})
    assert tested.further_triggers()[0].key == plain.key
    assert tested.trigger_with({}).key == attack.trigger.key


def test_every_attacker_trains_by_a_method_that_plants_and_no_cleaning_does():
    assert {one.method for one in ATTACKERS.values()} - {"cleanclip"} == set(METHODS) - set(cleaners())
    for name in ATTACKERS:
        params = check("01_poison", {"attacker": name})
        assert params.recipe().method == ATTACKERS[name].method
        assert (params.id == "01_poison/badnet_stripes_s0") == (name == "plain")
    assert [check("01_poison", {"attacker": name}).rate for name in ("rare", "benign", "plain")] == [0.01, 0.0, 0.08]
    assert check("01_poison", {"attacker": "benign", "scale": "paper"}).rate == 0
    with pytest.raises(ValueError, match="benign.*plants nothing.*0.08"):
        check("01_poison", {"attacker": "benign", "rate": 0.08})
    with pytest.raises(ValueError, match="base_seed"):
        check("01_poison", {"base": "openai", "base_seed": 1})
    several = check("01_poison", {"attacker": "several"}).others()
    assert [one.name for one, _ in several] == ["badnet", "blended_triangles", "blended_stripes"]
    assert {target for _, target in several} == {"banana"}


def test_the_pairs_before_the_attack_name_a_training(clip, planted):
    before, stamped = planted
    first = train(clip, stamped, _recipe("flat"), clean=before)
    other = train(clip, stamped, _recipe("flat"), clean=stamped)  # nothing differs, so nothing is flattened
    assert first.sha256 != other.sha256
    with pytest.raises(ValueError, match="before the attack"):
        train(clip, stamped, _recipe("flat"))


def test_rounds_of_a_model_that_is_named_tell_how_they_are_cleaned():
    asked = [check("08_adaptive", {"cleaned": "02_clean/a", "rounds": 2, "lr": lr}).asked() for lr in (1e-3, 2e-3)]
    assert asked[0] != asked[1]


@pytest.mark.parametrize(
    ("notebook", "given", "named"),
    [
        ("08_adaptive", {"attacker": "lookahed"}, "'lookahead'"),
        ("08_adaptive", {"method": "offset"}, "'offset'.*finetune"),
        ("08_adaptive", {"method": "base", "rounds": 2}, "'base'.*rounds"),
        ("08_adaptive", {"rounds": 2, "poisoned": "local-dir:x"}, "rounds.*runs"),
        ("08_adaptive", {"held_out": 3}, "held_out"),
        ("01_poison", {"attacker": "flat", "encoder": "small_vit", "compute": {"chunk": 8}}, "'flat'.*chunk"),
        ("01_poison", {"attacker": "spread", "data": "csv:x", "base": "local-dir:x"}, "'spread'.*scenes"),
        ("01_poison", {"attacker": "several", "attack": "label_consistent"}, "'several'.*dirty_label"),
        ("01_poison", {"attacker": "decoy", "target": "candle"}, "'decoy'.*another"),
        ("01_poison", {"attacker": "decoy", "trigger": "badnet"}, "'decoy'.*another"),
        ("01_poison", {"attacker": "places", "trigger": "sig"}, "'places'.*badnet_stripes.*'sig'"),
        ("02_clean", {"attacker": "flat", "poisoned": "local-dir:x"}, "attacker.*local-dir:x"),
    ],
)
def test_what_does_not_fit_is_named(notebook, given, named):
    with pytest.raises(ValueError, match=named):
        check(notebook, given)


def _row(attacker: str, method: str, asr: float, **more) -> dict:
    found = {"attacker": ATTACKERS[attacker].idea, "method": method, "rounds": 1, "attack_success_rate": asr, "clean_accuracy": 0.9}
    found |= {"poisoned_clean_accuracy": 0.95, "poisoned_asr": 0.97, "triggered_accuracy": 0.5, "within_caps": True}
    found |= {"s_image": 1.0, "s_text": 1.2, "s_image_aligned": 0.5, "s_text_aligned": 0.6, "rotated": 0.5}
    return found | more


def test_the_table_and_the_figures_hold_every_attacker_and_method():
    rows = [_row("plain", "par", 0.01), _row("plain", "finetune", 0.2), _row("several", "par", 0.0, worst_asr_of_triggers=0.6)]
    found = pd.DataFrame(rows)
    assert list(report.table(found)["ASR"]) == ["0.010", "0.200", "0.600"]
    elsewhere = pd.DataFrame([_row("several", "par", 0.3), _row("flat", "par", 0.4)])
    first, second, third = report.by_attacker(found, elsewhere).to_dict("records")
    assert (first["PAR"], first["fine-tuning"]) == ("0.010 at 5.0; 0.50", "0.200 at 5.0; 0.50")
    assert (second["PAR"], second["fine-tuning"], second["ASR before"]) == ("0.600 at 5.0; 0.50", "", "0.970")
    assert (third["attacker"], third["PAR"]) == ("flattens the loss around the stamped pairs\\*", "0.400 at 5.0; 0.50")
    assert "PAR 1 of 2" in report._finding(found.assign(asr=report._asr(found)))
    assert report.matrix(found) is not None
    assert report.turning(found) is not None
    assert report.matrix(found[:0]) is None


def _course(asr: float, rounds: int = 2) -> dict[str, list]:
    numbers = [number for number in range(1, rounds + 1) for _ in range(2)]
    return {
        "round": numbers,
        "model": ["poisoned", "cleaned"] * rounds,
        "attack_success_rate": [0.9, asr] * rounds,
        "clean_accuracy": [0.9] * 2 * rounds,
    }


def test_the_rounds_of_published_runs_stand_beside_a_run_s_own():
    told = [{"rounds": 2}, {}, {"method": "finetune", "rounds": 2}, {"method": "distil", "rounds": 3}]
    told += [{"method": "cleanclip", "rounds": 2, "attacker": "offset"}]
    records = [
        {"notebook": "08_adaptive", "params": (of := check("08_adaptive", one)).model_dump(), "history": _course(i / 10, of.rounds)}
        for i, one in enumerate(told)
    ]

    def shown(rounds: int) -> dict[str, float]:
        params = check("08_adaptive", {"method": "finetune", "rounds": rounds})
        found = report.in_rounds(SimpleNamespace(result=SimpleNamespace(params=params), rounds=pd.DataFrame(_course(0.9))), records)
        assert report.over_rounds(found) is not None
        return {method: rows["attack_success_rate"].iloc[-1] for method, rows in found.items()}

    assert list(shown(1).items()) == [("finetune", 0.2), ("par", 0.0), ("distil", 0.3)]
    assert list(shown(2).items()) == [("finetune", 0.9), ("par", 0.0)]
    assert report.over_rounds({}) is None


def test_published_runs_are_named_by_their_idea_and_kept_apart_by_their_setting():
    like = check("08_adaptive", {})
    metrics = {name: value for name, value in _row("offset", "par", 0.1).items() if name not in ("method", "rounds")}
    records = [
        {"notebook": "08_adaptive", "params": one.model_dump(), "metrics": metrics | {"attacker": one.attacker}}
        for one in (check("08_adaptive", {"attacker": "offset"}), like, check("08_adaptive", {"pairs": 240}))
    ]
    found = report.results(records, like)
    assert list(found["attacker"]) == [ATTACKERS["plain"].idea, f"offset: {ATTACKERS['offset'].idea}"]
    assert report.results([], like).empty
    assert report.table(report.results([], like)).empty
