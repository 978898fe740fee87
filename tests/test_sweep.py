"""Sweeps: grids, curves and rules without Ray; trials on it, of which one fails and one diverges; resume; reading a record."""

from dataclasses import replace
from unittest.mock import Mock

import pandas as pd
import pytest
import small_records
import torch

from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.data.pairs import TEMPLATES
from parlib.experiments.clean import clean
from parlib.experiments.presets import trigger_options
from parlib.experiments.registry import check
from parlib.experiments.subject import Subject
from parlib.experiments.sweep import columns, recorded, sweep
from parlib.experiments.trials import Material, gather, trial_row
from parlib.experiments.tune import failures, run_trials
from parlib.measure.selection import choose, rule_and_best, tau_rule
from parlib.measure.tradeoff import area, below, curves
from parlib.stages import STAGES
from parlib.train import loop

TINY = {"scale": "smoke", "classes": 10, "eval_scenes": 60, "templates": 1, "pairs": 120, "epochs": 1}


def _sweep(*grids: dict, **values):
    return check("03_tau_sweep", TINY | {"space": list(grids)} | values)


@pytest.fixture
def material(clip, scenes) -> Material:
    (trial,) = _sweep({"batch": [40]}).trials()
    trigger = Trigger(trial.trigger, trigger_options(trial.trigger))
    test = attacked(replace(scenes.first(60), templates=TEMPLATES[:1]), trigger, trial.target)
    return Material({trial.attacked_model: Subject(clip, None, trigger, scenes, None, test, test)}, {trial.clean_set: scenes})


def test_a_space_is_every_combination_once():
    trials = _sweep({"method": ["par", "finetune"], "tau": [0.5, 1.0]}, {"tau": [1.0, 2.0]}).trials()
    assert [(trial.method, trial.tau) for trial in trials] == [("par", 0.5), ("par", 1.0), ("finetune", None), ("par", 2.0)]
    assert {trial.pairs for trial in trials} == {120}


def test_attacked_models_are_distinct_and_in_order():
    params = _sweep({"trigger": ["blended_text", "badnet_stripes"], "tau": [0.5, 1.0]}, {"trigger": ["blended_text"], "seed": [1]})
    found = [(trial.trigger, trial.seed) for trial in params.attacks()]
    assert found == [("blended_text", 0), ("badnet_stripes", 0), ("blended_text", 1)]
    options = _sweep({"trigger_options": [{"size": 4}, {"size": 8}]})
    assert len(options.attacks()) == 2


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"space": [{"tua": [1.0]}]}, "'tua'.*'tau'"),
        ({"space": [{"tau": [9.0]}]}, r"tau = 9\.0"),
        ({"space": [{"tau": []}]}, "space.*tau"),
        ({"space": [{"tau": 0.5}]}, r"space\.0\.tau = 0\.5"),
        ({"space": []}, "space"),
        ({"space": [{"eval_scenes": [100, 200]}]}, "space.*eval_scenes"),
        ({"space": [{"resize": ["own", "squash"]}]}, "space.*resize"),
        ({"name": "two words"}, "name.*'two words'"),
        ({"search": "optuna"}, "optuna.*samples"),
        ({"samples": 5}, "optuna.*samples"),
        ({"search": "optuna", "samples": 2, "space": [{"tau": [0.5, 1.0]}, {"tau": [2.0]}]}, "optuna.*one grid"),
        ({"search": "optuna", "samples": 2, "space": [{"seed": [0, 1]}]}, "optuna.*seed"),
        ({"search": "optuna", "samples": 2, "space": [{"trigger_options": [{"size": 4}, {"size": 8}]}]}, "optuna.*trigger_options"),
    ],
)
def test_a_wrong_space_is_refused_before_any_trial(values, named):
    with pytest.raises(ValueError, match=named):
        check("03_tau_sweep", values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"data": ["scenes"]}, "data.*synthetic"),
        ({"data": ["flat", "flat"]}, "data"),
        ({"data": ["flatt"]}, "'flatt'.*'flat'"),
        ({"method": ["cleanclip"]}, "method.*par"),
        ({"seeds": [0, 0]}, "seeds"),
        ({"split": "test"}, "split = 'test'"),
    ],
)
def test_notebook_04_refuses_what_it_can_t_choose_from(values, named):
    with pytest.raises(ValueError, match=named):
        check("04_synthetic", values)


def test_notebook_04_needs_the_seeds_that_confirm_its_choice():
    params = check("04_synthetic", {"scale": "smoke", "seeds": [0, 3]})
    assert {trial.seed for trial in params.attacks()} == {0, 3}
    assert {trial.split for trial in params.grid().trials()} == {"validation"}
    assert {trial.split for trial in params.confirmation("outline").trials()} == {"test"}


def test_a_name_stands_for_its_space_and_an_unnamed_one_is_told_apart():
    default, other = check("03_tau_sweep", {}), check("03_tau_sweep", {"space": [{"tau": [1.0]}]})
    named = check("03_tau_sweep", {"space": [{"tau": [1.0]}], "name": "map"})
    assert default.id == "03_tau_sweep/tau_badnet_stripes_s0"
    assert other.id.startswith("03_tau_sweep/tau_badnet_stripes_s0_space")
    assert named.id == "03_tau_sweep/map_badnet_stripes_s0"
    assert check("03_tau_sweep", {"ray_address": "auto"}).id == default.id  # where it is computed is in no name


def test_area_of_a_hand_drawn_curve():
    points = pd.DataFrame({"clean_accuracy": [0.9, 0.5, 0.4], "attack_success_rate": [0.6, 0.1, 0.3]})
    assert area(points) == pytest.approx(0.9 * 0.4 + 0.5 * 0.5)  # the third point is dominated by the second
    assert area(points.iloc[::-1]) == pytest.approx(area(points))
    assert area(pd.DataFrame({"clean_accuracy": [1.0], "attack_success_rate": [0.0]})) == 1.0


def test_below_of_two_hand_drawn_curves():
    one = pd.DataFrame({"clean_accuracy": [0.9, 0.5], "attack_success_rate": [0.4, 0.1]})
    other = pd.DataFrame({"clean_accuracy": [0.8, 0.4], "attack_success_rate": [0.3, 0.2]})
    # they share 0.5 .. 0.8: the one is at 0.4, as it must be so accurate, the other at 0.3
    assert below(one, other) == 0
    assert below(other, one) == 1
    other.loc[1, "clean_accuracy"] = 0.6  # and now 0.6 .. 0.8 alone; up to 0.6 the other is at 0.2
    one.loc[2] = [0.7, 0.25]  # the one at 0.25 up to 0.7: below the other on the half
    assert below(one, other) == pytest.approx(0.5)
    assert below(one, one) == 0  # a tie is not below
    assert below(one, pd.DataFrame({"clean_accuracy": [0.1], "attack_success_rate": [0.0]})) is None


def _over_tau(**values) -> pd.DataFrame:
    usual = {"tau": [0.5, 1.0, 2.0, 4.0], "s_image_end": [0.6, 1.2, 2.1, 2.4], "s_text_end": [0.5, 1.0, 2.1, 2.4]}
    usual |= {"clean_accuracy": [0.95, 0.94, 0.92, 0.5], "poisoned_clean_accuracy": 0.96, "attack_success_rate": [0.1, 0.02, 0.03, 0.0]}
    return pd.DataFrame(usual | values, index=[7, 5, 3, 1]).assign(knob="tau", encoder="small_resnet", trigger="badnet_stripes")


def test_the_rule_takes_the_largest_tau_that_is_held_and_affordable():
    assert tau_rule(_over_tau()) == 3
    assert tau_rule(_over_tau(s_text_end=[0.5, 1.0, 1.9, 2.4])) == 5  # 2.0 is not held by the text encoder
    assert tau_rule(_over_tau(clean_accuracy=[0.95, 0.94, 0.89, 0.5])) == 5  # 2.0 costs more than 0.06
    assert tau_rule(_over_tau(clean_accuracy=0.1)) == 7  # none will do
    assert tau_rule(_over_tau(attack_success_rate=[0.0, 0.0, 1.0, 0.0])) == 3  # it doesn't look at the ASR


def test_the_rule_is_told_apart_from_what_hindsight_takes():
    trials, other = _over_tau(), _over_tau().assign(knob="lr")
    row = rule_and_best({"par": trials, "over lr": other}).to_dict("records")
    assert [(r["curve"], r["rule_tau"], r["rule_asr"], r["best_tau"], r["best_asr"]) for r in row] == [("par", 2.0, 0.03, 1.0, 0.02)]


@pytest.mark.parametrize(
    ("before", "found", "chosen"),  # found: clean accuracy and ASR of each trial
    [
        (0.95, [(0.95, 0.3), (0.90, 0.01), (0.91, 0.01), (0.88, 0.0)], 2),  # the lowest ASR within 0.06, and then the more accurate
        (0.95, [(0.80, 0.3), (0.70, 0.1), (0.85, 0.9)], 1),  # none is within: the highest difference
        (0.751, [(0.751, 0.3), (0.691, 0.1), (0.6905, 0.0)], 1),  # a cost of just 0.06 is within, though 0.691 < 0.751 - 0.06 in floats
    ],
)
def test_the_rule_that_chooses_a_trial(before, found, chosen):
    runs = pd.DataFrame(found, columns=["clean_accuracy", "attack_success_rate"]).assign(poisoned_clean_accuracy=before)
    assert choose(runs) == chosen


def _table(*grids: dict) -> pd.DataFrame:
    trials = [trial.model_dump() for trial in _sweep(*grids).trials()]
    return pd.DataFrame(trials).assign(error="", stopped=False, clean_accuracy=0.5, attack_success_rate=0.5, patch=6, strength=1.0)


def test_curves_follow_each_method_s_own_knob():
    grids = [{"tau": [2.0, 0.5], "lr": [1e-3, 2e-3]}, {"method": ["cleanclip"], "self_weight": [1.0, 0.1]}]
    found = curves(_table(*grids, {"method": ["finetune"], "lr": [2e-3, 1e-3]}))
    assert list(found) == ["par, lr 0.001", "par, lr 0.002", "cleanclip", "finetune"]
    assert [curve["value"].tolist() for curve in found.values()] == [[0.5, 2.0], [0.5, 2.0], [0.1, 1.0], [1e-3, 2e-3]]
    assert not curves(_table({"pairs": [50, 100, 110]}))  # its knob is the same in all
    assert not curves(_table({"tau": [1.0], "seed": [0, 1]}, {"tau": [0.5], "lr": [1e-3, 2e-3]}))  # nor are these of one curve


def test_failures_are_named_and_divergence_is_none():
    trials = _table({"tau": [0.5, 1.0, 2.0]})
    failures(trials)
    trials.loc[0, "error"], trials.loc[1, "error"] = "it fell over", "diverged: the loss is nan"
    with pytest.raises(RuntimeError, match=r"1 of 3.*par.*0\.004.*0\.5.*50.*it fell over"):
        failures(trials)


def test_failures_of_a_method_without_tau_are_named():
    trials = _table({"method": ["finetune"]}).assign(error="it fell over")
    with pytest.raises(RuntimeError, match="finetune.*it fell over"):
        failures(trials)


def test_a_trial_cut_short_goes_on_to_the_same_row(material, monkeypatch, tmp_path):
    (params,) = _sweep({"tau": [1.0], "batch": [20]}).trials()
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "whole"))
    whole = trial_row(params, material)
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "cut"))
    monkeypatch.setattr(loop, "_KEEP_EVERY", 0.0)
    looks = []

    def stop(look):
        looks.append(look)
        if len(looks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trial_row(params, material, tell=stop)
    rest = []
    assert trial_row(params, material, tell=rest.append) | {"seconds": 0} == whole | {"seconds": 0}
    assert len(rest) == 5  # those of the first sitting once more, as Tune counts them
    assert rest[:2] == looks[:2]
    again = []
    trial_row(params, material, tell=again.append)  # read from the cache
    assert again == rest


def test_a_sweep_is_read_from_its_record_until_a_stage_of_its_trials_changes(own_outputs, monkeypatch, clip, scenes):
    params = _sweep({"tau": [0.5, 1.0]}, {"method": ["finetune"]})
    small_records.record(values={"scale": "smoke"})
    table = _table({"tau": [0.5, 1.0]}, {"method": ["finetune"]}).drop(columns=["trigger_options", "compute", "tests"])
    made = small_records.result("03_tau_sweep", params.model_dump(), metrics={"below": {}}, files={}, history=columns(table))
    made.timings = {"seconds": [1.0, 2.0, 3.0]}
    record = small_records.save(made)
    monkeypatch.setattr("parlib.experiments.sweep.run_trials", None)  # nothing is trained
    found = sweep(params)
    assert found.trials["seconds"].tolist() == [1.0, 2.0, 3.0]
    assert found.trials["tau"].tolist()[:2] == [0.5, 1.0]
    assert pd.isna(found.trials["tau"].iloc[2])
    assert [list(curve["tau"]) for curve in found.curves.values()] == [[0.5, 1.0]]
    assert small_records.save(found.result) == record
    monkeypatch.setitem(STAGES, "method/cleanclip", 2)  # not one of its own
    assert recorded(params) is not None
    monkeypatch.setitem(STAGES, "method/finetune", 2)
    assert recorded(params) is None


def test_ray_runs_what_it_can_and_says_what_failed_and_what_diverged(material, monkeypatch, tmp_path):
    params = _sweep({"method": ["finetune"], "batch": [40], "lr": [1e30, 1e-3]}, {"method": ["finetune"], "batch": [500]})
    trials, seconds = run_trials(params, params.trials(), material)
    assert seconds > 0
    assert trials["batch"].tolist() == [40, 40, 500]
    assert trials.loc[0, "error"].startswith("diverged")
    assert trials.loc[1, "error"] == ""
    assert not trials["stopped"].any()
    assert "500" in trials.loc[2, "error"]
    with pytest.raises(RuntimeError, match=r"1 of 3.*finetune.*0\.008.*500"):
        failures(trials)
    threads = torch.get_num_threads()
    torch.set_num_threads(params.cpus)
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))  # trained once more
    try:
        alone = trial_row(params.trials()[1], material)
        cleaned = clean(
            params.trials()[1], material.subjects[params.trials()[1].attacked_model], material.pairs[params.trials()[1].clean_set]
        )
    finally:
        torch.set_num_threads(threads)
    assert cleaned.trained.sha256 == alone["weights"] == trials.loc[1, "weights"]  # what a plain loop gives, bit for bit
    assert all(trials.loc[1, name] == value for name, value in alone.items() if name != "seconds" and value is not None)


def test_a_trial_that_can_never_run_is_refused(material):
    params = _sweep({"batch": [40]}, cpus=999)
    with pytest.raises(ValueError, match="999 CPUs"):
        run_trials(params, params.trials(), material)


def test_methods_that_take_out_one_trigger_and_all_of_them_don_t_share_it(monkeypatch):
    """An inspection may find several targets; tbar takes one trigger away."""
    monkeypatch.setattr("parlib.experiments.trials.subject", lambda trial: Mock())
    monkeypatch.setattr("parlib.experiments.trials.clean_pairs", lambda trial, clip: trial.clean_set)
    monkeypatch.setattr("parlib.experiments.clean_params.Clean.taken_out", lambda self: self.method)
    trials = [check("02_clean", {"method": method, "inverted": "10_inspect/a"}) for method in ("unlearn", "invertune", "tbar")]
    found = gather(trials).inverted
    assert [found[trial.inverted_set] for trial in trials] == ["invertune", "invertune", "tbar"]
