"""Sweeps: the grids, the curves and their area without Ray; two trials on it, one of which fails; resume."""

import pandas as pd
import pytest
import torch

from parlib import fit as training
from parlib.experiments.grids import attack_of, distinct_attacks, expand
from parlib.experiments.ids import run_id
from parlib.records.status import key
from parlib.experiments.params import check
from parlib.attack.poison import attacked
from parlib.experiments.presets import TUNED, preset
from parlib.cli.run import Planned, with_needs
from parlib.experiments.sweep import failures, sweep
from parlib.measure.tradeoff import area, below, curves, rule_and_best, tau_rule
from parlib.train.cached import Told, training_key
from parlib.experiments.trials import Material, Poisoned, clean

TINY = {"scale": "smoke", "classes": 10, "eval_scenes": 60, "pairs": 120, "epochs": 1}


def _sweep(*grids: dict, **values):
    return check("03_tau_sweep", TINY | {"space": list(grids)} | values)


@pytest.fixture
def material(clip, scenes):
    trial = expand(_sweep({"batch": [40]}))[0]
    options = preset(trial.trigger)
    test = attacked(scenes.first(60), **options)
    found = {"poisoned_clean_accuracy": 0.5, "poisoned_asr": 0.5}
    return Material({attack_of(trial): Poisoned(clip, test, test, options, found)}, {("scenes", 120): scenes})


def test_a_space_is_every_combination_once():
    trials = expand(_sweep({"method": ["par", "finetune"], "tau": [0.5, 1.0]}, {"tau": [1.0, 2.0]}))
    assert [(trial.method, trial.tau) for trial in trials] == [("par", 0.5), ("par", 1.0), ("finetune", 0.0), ("par", 2.0)]
    assert {trial.pairs for trial in trials} == {120}


def test_attacks_are_distinct_and_in_order():
    params = _sweep({"trigger": ["blended_text", "badnet_stripes"], "tau": [0.5, 1.0]}, {"trigger": ["blended_text"], "seed": [1]})
    found = [(trial.trigger, trial.seed) for trial in distinct_attacks(params)]
    assert found == [("blended_text", 0), ("badnet_stripes", 0), ("blended_text", 1)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"space": [{"tua": [1.0]}]}, "space: unknown parameter 'tua', did you mean 'tau'"),
        ({"space": [{"tau": [9.0]}]}, "tau = 9.0: input should be less than or equal to 4"),
        ({"space": [{"tau": []}]}, "space: tau has no value"),
        ({"space": [{"tau": 0.5}]}, "space.0.tau = 0.5: input should be a valid list"),
        ({"space": [{"eval_scenes": [100, 200]}]}, "space: eval_scenes is the same for all trials"),
        ({"search": "optuna"}, "takes one grid and samples > 0"),
        ({"samples": 5}, "takes one grid and samples > 0"),
        ({"search": "optuna", "samples": 2, "space": [{"strength": [0.1, 0.2]}]}, "the settings of a cleaning, not strength"),
    ],
)
def test_a_wrong_space_is_refused_before_any_trial(values, message):
    with pytest.raises(ValueError, match=message):
        check("03_tau_sweep", values)


def test_a_name_stands_for_its_space_and_an_unnamed_one_is_told_apart():
    default, other = check("03_tau_sweep", {}), check("03_tau_sweep", {"space": [{"tau": [1.0]}]})
    named = check("03_tau_sweep", {"space": [{"tau": [1.0]}], "name": "map"})
    assert run_id("03_tau_sweep", default) == "03_tau_sweep/tau_badnet_stripes_s0"
    assert run_id("03_tau_sweep", other).startswith("03_tau_sweep/tau_badnet_stripes_s0_space")
    assert run_id("03_tau_sweep", named) == "03_tau_sweep/map_badnet_stripes_s0"


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


def _over_tau(**columns) -> pd.DataFrame:
    usual = {"tau": [0.5, 1.0, 2.0, 4.0], "s_image_end": [0.6, 1.2, 2.1, 2.4], "s_text_end": [0.5, 1.0, 2.1, 2.4]}
    usual |= {"clean_accuracy": [0.95, 0.94, 0.92, 0.5], "poisoned_clean_accuracy": 0.96, "attack_success_rate": [0.1, 0.02, 0.03, 0.0]}
    return pd.DataFrame(usual | columns, index=[7, 5, 3, 1]).assign(knob="tau", encoder="small_resnet", trigger="badnet_stripes")


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


def _table(rows: list[dict]) -> pd.DataFrame:
    trials = [trial.model_dump() for trial in expand(_sweep(*rows))]
    return pd.DataFrame(trials).assign(error="", stopped=False, clean_accuracy=0.5, attack_success_rate=0.5)


def test_curves_follow_each_method_s_own_knob():
    grids = [{"tau": [2.0, 0.5], "lr": [1e-3, 2e-3]}, {"method": ["cleanclip"], "self_weight": [1.0, 0.1]}]
    found = curves(_table([*grids, {"method": ["finetune"], "lr": [2e-3, 1e-3]}]))
    assert list(found) == ["par, lr 0.001", "par, lr 0.002", "cleanclip", "finetune"]
    assert [curve["value"].tolist() for curve in found.values()] == [[0.5, 2.0], [0.5, 2.0], [0.1, 1.0], [1e-3, 2e-3]]
    assert not curves(_table([{"pairs": [50, 100, 110]}]))  # its knob is the same in all
    assert not curves(_table([{"tau": [1.0], "seed": [0, 1]}, {"tau": [0.5], "lr": [1e-3, 2e-3]}]))  # nor are these of one curve


def test_failures_are_named_and_divergence_is_none():
    trials = _table([{"tau": [0.5, 1.0, 2.0]}])
    failures(trials)
    trials.loc[0, "error"], trials.loc[1, "error"] = "it fell over", "diverged: the loss is nan"
    with pytest.raises(RuntimeError, match="1 of 3 trials failed, such as par, lr 0.004, tau 0.5, batch 128: it fell over"):
        failures(trials)


def test_a_told_watch_counts_as_the_watch_inside(clip, scenes, material):
    watched = next(iter(material.attacks.values())).watched
    recipe, feed = training.Recipe("finetune", 1, 40, 1e-3, 0), scenes.feed(clip)
    keys = [training_key(clip, feed, recipe, watch=watch, reference=None) for watch in (watched, Told(watched, print))]
    assert keys[0] == keys[1]


def test_the_number_of_threads_is_part_of_a_training_s_key(clip, scenes):
    recipe, threads = training.Recipe("finetune", 1, 40, 1e-3, 0), torch.get_num_threads()
    keys = set()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            keys.add(training_key(clip, scenes.feed(clip), recipe, reference=None, watch=None))
    finally:
        torch.set_num_threads(threads)
    assert len(keys) == 2


def test_a_trial_cut_short_goes_on_to_the_same_row(material, monkeypatch, tmp_path):
    params = expand(_sweep({"tau": [1.0], "batch": [20]}))[0]
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "whole"))
    whole = clean(params, material)
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "cut"))
    monkeypatch.setattr(training, "_KEEP_EVERY", 0.0)
    looks = []

    def stop(look):
        looks.append(look)
        if len(looks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clean(params, material, tell=stop)
    rest = []
    assert clean(params, material, tell=rest.append) | {"seconds": 0} == whole | {"seconds": 0}
    assert len(rest) == 5  # those of the first sitting once more, as Tune counts them
    assert rest[:2] == looks[:2]
    again = []
    clean(params, material, tell=again.append)  # read from the cache
    assert again == rest


def test_a_sweep_is_stale_when_its_trials_change(monkeypatch):
    params = _sweep({"method": ["cleanclip"]})
    before = key("03_tau_sweep", params, {})
    monkeypatch.setitem(TUNED["cleanclip"], "lr", 5e-5)
    assert key("03_tau_sweep", params, {}) != before


def test_a_sweep_needs_the_poisoned_models_of_its_trials():
    params = _sweep({"trigger": ["badnet_stripes", "blended_text"]}, {"seed": [1]})
    runs = with_needs([Planned("03_tau_sweep", {}, params)], [])
    assert [run.id.partition("/")[0] for run in runs] == ["01_poison"] * 3 + ["03_tau_sweep"]
    assert {(run.params.trigger, run.params.seed) for run in runs[:3]} == {
        ("badnet_stripes", 0),
        ("blended_text", 0),
        ("badnet_stripes", 1),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": ["scenes"]}, "data a synthetic set"),
        ({"method": ["cleanclip"]}, "method must name par"),
        ({"data": ["flat", "flat"]}, "data names one of its values twice"),
        ({"split": "test"}, "split = 'test'"),
    ],
)
def test_notebook_04_refuses_what_it_can_t_choose_from(values, message):
    with pytest.raises(ValueError, match=message):
        check("04_synthetic", values)


def test_notebook_04_needs_the_seeds_that_confirm_its_choice():
    params = check("04_synthetic", {"scale": "smoke", "seeds": [0, 3]})
    assert {trial.seed for trial in distinct_attacks(params)} == {0, 3}


def test_ray_runs_what_it_can_and_says_what_failed_and_what_diverged(material, monkeypatch, tmp_path):
    params = _sweep({"method": ["finetune"], "batch": [40], "lr": [1e30, 1e-3]}, {"method": ["finetune"], "batch": [500]})
    trials = sweep(params, material)
    assert trials.attrs["seconds"] > 0
    assert trials["batch"].tolist() == [40, 40, 500]
    assert trials.loc[0, "error"].startswith("diverged: the loss is")
    assert trials.loc[1, "error"] == ""
    assert not trials["stopped"].any()
    assert "a batch of 500 can't be drawn from 120 pairs" in trials.loc[2, "error"]
    with pytest.raises(RuntimeError, match="1 of 3 trials failed, such as finetune, lr 0.008, tau 0, batch 500"):
        failures(trials)
    threads = torch.get_num_threads()
    torch.set_num_threads(params.cpus)
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))
    try:
        alone = clean(expand(params)[1], material)
    finally:
        torch.set_num_threads(threads)
    assert alone["weights"] == trials.loc[1, "weights"]  # what a plain loop gives, bit for bit
    assert alone["clean_accuracy"] == trials.loc[1, "clean_accuracy"]


def test_a_trial_that_can_never_run_is_refused(material):
    with pytest.raises(ValueError, match="a trial asks for 999 CPUs; this machine has"):
        sweep(_sweep({"batch": [40]}, cpus=999), material)
