"""Regimes: few clean pairs, of few classes, for a set number of steps; and what is chosen there with and without the trigger."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from parlib.data.pairs import names_class
from parlib.data.scenes import class_names, covered, load_scenes
from parlib.experiments.clean_params import Clean
from parlib.experiments.lineage import load_pairs
from parlib.experiments.poison import Poison
from parlib.experiments.registry import check
from parlib.experiments.subject import seen_classes
from parlib.measure.metrics import EvalSet, zero_shot
from parlib.measure.selection import KNOBS, blind, choose
from parlib.method.methods import Recipe
from parlib.model.preparation import Preparation
from parlib.report import regime_figures, regimes
from parlib.report.rows import table
from parlib.train.loop import fit

NAMES = class_names()


def test_a_coverage_shows_so_many_classes_and_never_the_target():
    half, quarter = covered(NAMES, 0.5, "banana"), covered(NAMES, 0.25, "banana")
    assert (len(half), len(quarter)) == (100, 50)
    assert set(quarter) < set(half)
    assert NAMES.index("banana") not in half
    assert covered(NAMES, 1.0, "banana") == list(range(200))
    assert NAMES.index("axe") not in covered(NAMES, 0.99, "axe")


def test_scenes_of_a_coverage_show_and_name_no_other_class():
    pairs, names = load_scenes("clean", 120, 20, coverage=0.25), class_names(20)
    kept = covered(names, 0.25, "banana")
    assert pairs.names == names
    assert set(pairs.labels.tolist()) == set(kept)
    assert set(pairs.second.tolist()) - {-1} <= set(kept)
    assert sorted({*pairs.labels.tolist(), *pairs.second.tolist()} - {-1}) == kept
    others = [name for i, name in enumerate(names) if i not in kept]
    assert not [name for name in others for caption in pairs.captions if names_class(caption, name)]
    assert all(pairs.names[label] in caption for label, caption in zip(pairs.labels, pairs.captions, strict=True))


def test_too_small_a_coverage_is_one_clear_error():
    with pytest.raises(ValueError, match=r"leaves 1 of 10 classes"):
        check("02_clean", {"classes": 10, "coverage": 0.1})
    with pytest.raises(ValueError, match="composed"):
        check("02_clean", {"data": "composed", "coverage": 0.5})
    with pytest.raises(ValueError, match="evaluation"):
        check("02_clean", {"data": "csv:somewhere", "coverage": 0.5})
    with pytest.raises(ValueError, match="coverage"):
        check("02_clean", {"coverage": 0})


def test_seen_classes_are_those_that_the_pairs_show(scenes):
    assert seen_classes(Clean.check({}), scenes) is None  # all ten
    few = scenes.at((scenes.labels < 3).nonzero()[:, 0])
    shown = seen_classes(Clean.check({}), few)
    assert shown is not None
    assert shown.nonzero()[:, 0].tolist() == sorted({*few.labels.tolist(), *few.second[few.second >= 0].tolist()})


def test_accuracy_on_seen_and_unseen_classes_by_hand():
    blank = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    labels, seen = torch.tensor([0, 1, 2, 2]), torch.tensor([True, True, False])
    scenes = EvalSet(blank, blank, [""] * 4, labels, torch.zeros(4, dtype=torch.bool), ["axe", "banana", "cat"], 1, seen=seen)
    found = zero_shot(torch.eye(3)[[0, 2, 2, 0]], torch.eye(3)[[1, 1, 1, 1]], torch.eye(3), scenes)
    assert (found["clean_accuracy_seen"], found["clean_accuracy_seen_n"]) == (0.5, 2)  # the axe is right, the banana is not
    assert (found["clean_accuracy_unseen"], found["clean_accuracy"]) == (0.5, 0.5)
    assert "clean_accuracy_seen" not in zero_shot(torch.eye(3)[labels], torch.eye(3)[labels], torch.eye(3), replace(scenes, seen=None))
    assert replace(scenes, seen=None).key != scenes.key


def test_steps_are_the_same_however_few_the_pairs(clip, scenes):
    """Seven steps of eight pairs from twelve: one step an epoch, in the order that the epochs have."""
    recipe = Recipe("finetune", 1, 8, 1e-3, 0, steps=7, looks=0)
    history, _ = fit(clip.copy(), scenes.first(12).feed(clip), recipe)
    assert len(history["loss"]) == 7
    by_epochs, _ = fit(clip.copy(), scenes.first(12).feed(clip), replace(recipe, epochs=7, steps=None))
    assert by_epochs["loss"] == history["loss"]


def test_cost_is_counted_by_steps():
    assert Clean.check({"steps": 360, "batch": 128, "pairs": 720}).cost() == 46_080
    assert Clean.check({"pairs": 720, "epochs": 4}).cost() == 2880


def test_a_cleaning_starts_from_the_model_that_was_planted_so():
    params = Clean.check({"planted": "pretraining", "base_epochs": 3})
    assert params.planting() == Poison.check({"planted": "pretraining", "base_epochs": 3})
    assert params.id == "02_clean/par_badnet_stripes_s0_plantedpretraining_base_epochs3"
    assert params.attacked_model != Clean.check({}).attacked_model


def test_a_backdoor_planted_in_pretraining_is_trained_from_the_beginning():
    params = Poison.check({"planted": "pretraining", "seed": 4})
    recipe, base = params.recipe(), params.pretraining()
    assert (recipe.epochs, recipe.lr, recipe.batch, recipe.weight_decay) == (base.epochs, base.lr, base.batch, base.weight_decay)
    assert (recipe.seed, base.seed) == (4, 0)
    with pytest.raises(ValueError, match="openai"):
        Poison.check({"planted": "pretraining", "base": "openai"})


def _runs(**columns: list[float]) -> pd.DataFrame:
    usual = {"poisoned_clean_accuracy": 0.95, "poisoned_clean_accuracy_seen": 0.95, "tau": 2.15}
    return pd.DataFrame(usual | columns, index=range(len(columns["lr"])))


def test_the_blind_rule_by_hand():
    """It takes the highest rate that the user's own classes bear, whatever the ASR and the other classes say."""
    runs = _runs(
        lr=[1e-4, 1e-3, 2e-3, 4e-3],
        clean_accuracy=[0.94, 0.70, 0.60, 0.50],
        clean_accuracy_seen=[0.95, 0.92, 0.91, 0.80],
        attack_success_rate=[0.9, 0.5, 0.4, 0.0],
    )
    assert blind(runs, margin=0.06) == 2
    assert blind(runs, margin=0.03) == 1
    assert choose(runs, margin=0.06) == 0  # knows what the pairs don't show: one run keeps it
    assert blind(runs.assign(clean_accuracy_seen=[0.5, 0.6, 0.7, 0.4])) == 2  # none is within: the most accurate
    whole = runs.drop(columns=["clean_accuracy_seen", "poisoned_clean_accuracy_seen"])
    assert blind(whole) == 0  # all classes are seen: the whole is the user's own


def test_the_blind_rule_takes_the_largest_knob_of_the_highest_rate():
    runs = _runs(lr=[1e-3, 1e-3, 1e-3], tau=[0.5, 1.0, 2.15], clean_accuracy=[0.95, 0.93, 0.6], attack_success_rate=[0.9, 0.8, 0.0]).drop(
        columns="poisoned_clean_accuracy_seen"
    )
    assert blind(runs) == 1


def test_external_pairs_of_a_coverage(monkeypatch):
    """A caption fits when it names covered classes, as whole words, and no other."""
    from parlib.external import stream

    captions = ["a cat", "a cattle market", "a dog and a cat", "a banana", "Cat!", "nothing", "two dogs, one dog"]
    read = [(torch.arange(len(captions), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), captions)]
    monkeypatch.setattr(stream, "read", lambda *_, **__: iter(read))
    found = stream.Stream("csv:x", 9, Preparation(2)).drawn(2, ["banana", "cat", "dog"], [1])
    assert found.captions == ["a cat", "Cat!"]
    assert found.labels.tolist() == [1, 1]
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 4]
    monkeypatch.setattr(stream, "read", lambda *_, **__: iter(read))
    with pytest.raises(ValueError, match="csv:x holds 4 usable rows, 5 are asked"):
        stream.Stream("csv:x", 9, Preparation(2)).drawn(5, ["banana", "cat", "dog"], [1, 2])


def test_the_pairs_of_a_run_are_those_of_its_regime():
    params = SimpleNamespace(classes=20, target="banana", side=64, max_skipped=0.0)
    whole, part = (load_pairs("scenes", 60, params, coverage=coverage) for coverage in (1.0, 0.25))  # pyright: ignore[reportArgumentType]
    assert len(whole) == len(part) == 60
    assert len(set(part.labels.tolist())) == 5


def _searched() -> pd.DataFrame:
    """Two methods in a regime: three rates of fine-tuning, two of PAR, one of which removes the backdoor."""
    usual = {"experiment": "regimes", "split": "validation", "encoder": "small_resnet", "planted": "finetuning", "pairs": 720.0}
    usual |= {
        "coverage": 0.25,
        "poisoned_clean_accuracy": 0.96,
        "poisoned_clean_accuracy_seen": 0.98,
        "poisoned_clean_accuracy_unseen": 0.95,
    }
    rows = [
        ("finetune", None, 1e-4, 0.95, 0.97, 0.94, 0.90),
        ("finetune", None, 1e-3, 0.90, 0.95, 0.88, 0.30),
        ("finetune", None, 4e-3, 0.70, 0.90, 0.63, 0.01),
        ("par", 2.15, 1e-4, 0.80, 0.90, 0.77, 0.80),
        ("par", 2.15, 1e-3, 0.60, 0.85, 0.52, 0.04),
    ]
    names = ["method", "tau", "lr", "clean_accuracy", "clean_accuracy_seen", "clean_accuracy_unseen", "attack_success_rate"]
    found = pd.DataFrame(rows, columns=names).assign(**usual, triggered_accuracy=0.5, notebook="03_tau_sweep")
    return found.assign(run=[f"a:{i}" for i in range(len(found))], **dict.fromkeys({*KNOBS, "interpolation"} - {"tau"}))


def test_what_a_removal_costs_by_hand():
    found = regimes.costs(regimes.trials(_searched())).set_index("method")
    assert found.loc["finetune", ["cost", "cost_seen", "cost_unseen"]].tolist() == pytest.approx([26, 8, 32])
    assert found.loc["par", ["cost", "cost_unseen", "lr"]].tolist() == pytest.approx([36, 43, 1e-3])
    assert found.loc["finetune", ["blind_asr", "blind_lr"]].tolist() == [0.30, 1e-3]  # 0.95 of the seen classes is within 6 points of 0.98
    assert found.loc["finetune", ["informed_asr", "informed_lr"]].tolist() == [0.30, 1e-3]  # of all classes 0.90 is just within them
    margins = regimes.at_margins(regimes.trials(_searched())).set_index("method")
    assert margins.loc["fine-tuning", "ASR within 1 points"] == "0.900"
    assert margins.loc["PAR", "ASR within 6 points"] == ""
    assert margins.loc["fine-tuning", ["blind, 1", "blind, 6"]].tolist() == ["0.900", "0.300"]
    shown = regimes.summary(found.reset_index())
    assert "26.0" in shown.iloc[0].tolist()
    regime = "720 pairs, 25 % of the classes"
    assert regimes.by_method(found.reset_index(), regimes.removal).to_dict("records") == [
        {"method": "fine-tuning", regime: "26.0 at `4e-3` (8.0, 32.0)"},
        {"method": "PAR", regime: "36.0 at `1e-3` (13.0, 43.0)"},
    ]
    tuned, par = regimes.by_method(found.reset_index(), regimes.taken_blind)[regime]
    assert tuned == "0.300 at 6.0, `1e-3`"
    assert par == "(0.800 at 16.0, `1e-4`)"  # of the seen classes it keeps the most
    none = regimes.costs(regimes.trials(_searched().assign(attack_success_rate=0.9)))
    assert set(regimes.summary(none).iloc[:, 2]) == set(regimes.by_method(none, regimes.removal)[regime]) == {"not reached"}


def test_the_paper_s_claim_by_hand():
    cheap = _searched().assign(clean_accuracy=[0.95, 0.90, 0.70, 0.93, 0.91])  # PAR's removal costs 5 points, fine-tuning's 26
    (held,) = regimes.claim(regimes.costs(regimes.trials(cheap))).to_dict("records")
    ours = {"clean pairs": "720 pairs, 25 % of the classes", "fine-tuning": "26.0", "PAR": "5.0"}
    assert held == ours | {"PAR at little cost": "yes", "PAR cheaper than fine-tuning": "yes"}
    (failed,) = regimes.claim(regimes.costs(regimes.trials(_searched()))).to_dict("records")
    assert [failed["PAR at little cost"], failed["PAR cheaper than fine-tuning"]] == ["no", "no"]
    never = pd.concat([cheap, cheap.iloc[:1].assign(method="cleanclip", run="b:0")])  # CleanCLIP's one trial leaves 0.90
    (beside,) = regimes.claim(regimes.costs(regimes.trials(never))).to_dict("records")
    assert [beside["CleanCLIP"], beside["PAR cheaper than CleanCLIP"]] == ["not reached", "yes"]
    assert regimes.claim(regimes.costs(regimes.trials(_searched()[:0]))).empty


def test_the_structured_triggers_that_a_chosen_setting_removes():
    usual = {"experiment": "regimes_triggers", "notebook": "02_clean", "method": "par", "attack_success_rate": 0.05}
    runs = [usual | {"trigger": trigger} for trigger in regimes.STRUCTURED]
    runs += [usual | {"trigger": trigger, "method": "finetune", "attack_success_rate": 0.051} for trigger in regimes.STRUCTURED[1:]]
    runs += [usual | {"trigger": "badnet_stripes", "method": "finetune"}]
    runs += [usual | {"trigger": "badnet_stripes", "method": "finetune", "experiment": "scarce", "attack_success_rate": 0.9}]
    runs += [usual | {"trigger": "badnet_stripes", "method": "distil"}, usual | {"trigger": "sig", "method": "par"}]
    assert regimes.structured(pd.DataFrame(runs)) == {"finetune": 1, "par": 4}


def test_what_to_use_and_what_held_for_other_triggers():
    table = regimes.costs(regimes.trials(_searched()))
    elsewhere = pd.concat([table, table.assign(pairs=240)]).assign(cost=1.0)
    both = regimes.filled(pd.concat([table, table[table["method"] == "finetune"].assign(pairs=240)]), elsewhere)
    assert regimes.by_method(both, regimes.taken_blind).iloc[1].tolist() == ["PAR", "(0.800 at 16.0, `1e-4`)\\*", "(0.800 at 16.0, `1e-4`)"]
    assert regimes.claim(both)["PAR"].tolist() == ["1.0\\*", "36.0"]
    assert regimes.overview(both).to_dict("records") == [
        {"clean pairs": "240 pairs, 25 % of the classes", "fine-tuning": "26.0 at `4e-3`", "PAR": "1.0 at `1e-3`\\*"},
        {"clean pairs": "720 pairs, 25 % of the classes", "fine-tuning": "26.0 at `4e-3`", "PAR": "36.0 at `1e-3`"},
    ]
    (best,) = regimes.guide(table).to_dict("records")
    assert (best["use"], best["at the rate"], best["expect to lose, points"], best["ASR"]) == ("fine-tuning", "`4e-3`", "26.0", "0.010")
    (none,) = regimes.guide(regimes.costs(regimes.trials(_searched().assign(attack_success_rate=0.9)))).to_dict("records")
    assert (none["were run"], none["use"]) == ("fine-tuning and PAR", "none of them")
    runs = (
        _searched()
        .iloc[[1, 2, 4]]
        .assign(experiment=["scarce", "regimes_triggers", "scarce"], notebook="02_clean", trigger="badnet_stripes")
    )
    other = runs.iloc[[1]].assign(trigger="blended_stripes", attack_success_rate=0.2)
    shown = regimes.by_trigger(pd.concat([runs, other])).to_dict("records")
    assert shown == [
        {"trigger": "BadNet-Stripes", "fine-tuning": "0.010 at 26.0", "PAR": "0.040 at 36.0"},
        {"trigger": "Blended-Stripes", "fine-tuning": "0.200 at 26.0", "PAR": ""},
    ]


def test_a_frontier_holds_what_no_other_trial_beats():
    runs = pd.DataFrame({"cost": [0.1, 0.2, 0.3, 0.4], "attack_success_rate": [0.5, 0.6, 0.1, 0.1]})
    assert regimes.frontier(runs).index.tolist() == [0, 2]


def test_the_figures_have_a_panel_a_regime_and_none_without_trials():
    found = regimes.trials(_searched())
    other = found.assign(coverage=1.0, planted="pretraining")
    both = pd.concat([found, other], ignore_index=True)
    made = _searched().assign(experiment="scarce", notebook="02_clean")
    figure = regime_figures.frontiers(both, regimes.today(made))
    assert figure is not None
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == ["720 pairs, 25 % of the classes", "720 pairs, all classes, planted in pretraining"]
    assert regime_figures.frontiers(found.iloc[:0], made.iloc[:0]) is None
    figure = regime_figures.by_regime(pd.concat([found, found.assign(coverage=1.0)], ignore_index=True))
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["720\nall classes", "720\n25 %\nof the classes"]
    assert regime_figures.by_regime(other) is None  # planted in pretraining alone
    two = pd.concat([found, found.assign(tau=0.5)], ignore_index=True)
    assert regime_figures.by_tau(found, found) is None  # one tau
    assert regime_figures.by_tau(two, two.iloc[:0]) is not None
    figure = regime_figures.by_tau(two, two)
    assert figure is not None
    titles = [ax.get_title() or ax.get_title(loc="left") for ax in figure.axes if ax.get_title() or ax.get_title(loc="left")]
    assert [title.endswith("on another CPU") for title in titles] == [False, True]


def test_the_share_given_back_is_drawn_from_nothing_on_at_the_rate_of_the_cheapest_removal():
    searched = _searched()
    given = searched.iloc[[2, 2, 4]].assign(experiment="regimes_interpolation", interpolation=[0.1, 0.2, 0.1])
    given["clean_accuracy"], given["attack_success_rate"] = [0.8, 0.85, 0.7], [0.02, 0.06, 0.5]
    found = regimes.trials(pd.concat([searched, given], ignore_index=True), "regimes_interpolation")
    assert regimes.costs(found[found["interpolation"].notna()])["cost"].tolist()[:1] == pytest.approx([16])
    figure = regime_figures.by_share(found)
    assert figure is not None
    left, right = figure.axes[:2]
    assert [line.get_ydata().tolist() for line in left.lines[:2]] == [[0.01, 0.02, 0.06], [0.04, 0.5]]
    assert right.lines[0].get_xydata().ravel().tolist() == pytest.approx([0, 26, 10, 16, 20, 11])
    assert regime_figures.by_share(regimes.trials(searched)) is None


def test_the_blind_rule_takes_the_highest_rate_and_gives_the_least_back_that_keeps_the_accuracy():
    runs = pd.DataFrame({"lr": [1e-3, 2e-3, 2e-3, 2e-3], "interpolation": [None, None, 0.2, 0.4]})
    runs = runs.assign(clean_accuracy=[0.93, 0.80, 0.91, 0.94], poisoned_clean_accuracy=0.96, attack_success_rate=[0.9, 0.0, 0.1, 0.5])
    assert blind(runs) == 2
    assert blind(runs.iloc[:2]) == 0


def test_a_table_says_which_trial_each_rule_takes():
    columns = _searched().set_index("run")
    history = columns.assign(trigger="badnet_stripes", error="", stopped=False).drop(columns=["experiment", "notebook"])
    record = {
        "run": "03_tau_sweep/a", "notebook": "03_tau_sweep", "experiment": "regimes",
        "timings": {"seconds": [1.0] * 5}, "history": history.to_dict("list"),
    }  # fmt: skip
    found = table([record])
    assert found["rule"].tolist() == ["", "informed, blind", "", "blind", "informed"]
