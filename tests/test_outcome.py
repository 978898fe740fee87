"""What a cleaning ends with: a table per trigger, what to know of it, and the next command; the same in its model card."""

import json
import re

import pandas as pd
import pytest
import small_records

from parlib.cli import make
from parlib.cli.export import main
from parlib.cli.plan import Planned
from parlib.experiments.registry import check
from parlib.records.store import record_path
from parlib.report.outcome import card, choices, closing_words, outcome, remarks

pytestmark = pytest.mark.usefixtures("own_outputs")
RUN = "02_clean/par_badnet_stripes_s0"
METRICS = small_records.METRICS | {"attack_success_rate_n": 40, "s_image": 1.25, "s_text": 0.5}
TESTS = pd.DataFrame(
    {
        "trigger": ["badnet_stripes", "badnet_stripes", "sig", "sig"],
        "model": ["before", "after"] * 2,
        "clean_accuracy": [0.9, 0.88] * 2,
        "attack_success_rate": [0.975, 0.0, 0.5, 0.25],
        "triggered_accuracy": [0.025, 0.8, 0.4, 0.6],
        "moves_to": ["banana", "cup", "circus tent", "cup"],
        "moved": [0.97, 0.05, 0.5, 0.1],
    }
)


@pytest.fixture
def cleaned(own_outputs) -> dict:
    """The record of a cleaning of one's own under two triggers, on 50 images."""
    small_records.record(values={"scale": "smoke"})
    history = {"s_image": [0.5, 3.0], "s_text": [0.1, 0.43]}
    values = {"scale": "smoke", "experiment": "own"}
    return small_records.record("02_clean", values, metrics=METRICS, n=50, history=history, tables={"tests": TESTS})


def test_each_trigger_has_its_rates_before_and_after_with_intervals(cleaned):
    found = outcome(cleaned)
    assert found["trigger"].tolist() == ["BadNet-Stripes", "BadNet-Stripes", "SIG", "SIG"]
    assert found["ASR"].tolist()[:2] == ["0.975 (0.871 to 0.996)", "0.000 (0.000 to 0.088)"]  # of 40
    assert (found["most move to"].tolist()[2], found["share that does"].tolist()[2]) == ("circus tent", "0.500")
    assert found["clean accuracy"].tolist()[0] == "0.900 (0.786 to 0.957)"  # of 50
    record_path("smoke", RUN).with_name("par_badnet_stripes_s0_tests.csv").unlink()
    assert outcome(cleaned)["ASR"].tolist() == ["0.100 (0.040 to 0.231)"]  # its own, from the record


def test_numbers_of_images_and_s_and_a_push_that_never_stopped_are_said(cleaned):
    said = "\n".join(remarks(cleaned))
    assert all(word in said for word in ("50 images", "40", "1.25", "0.50"))
    assert re.search(r"text encoder.*0\.43.*2\.15", said)
    assert "image encoder" not in said  # it passed


def test_the_runner_ends_with_the_table_and_the_next_command(cleaned, own_outputs, monkeypatch, capsys):
    for name in ("parlib.report.outcome", "parlib.cli.make"):
        monkeypatch.setattr(f"{name}.ROOT", own_outputs)
    record_path("smoke", RUN).with_suffix(".ipynb").touch()
    values = {"scale": "smoke", "experiment": "own"}
    make.show([Planned(values, check("02_clean", values))])
    shown = capsys.readouterr().out
    assert closing_words(cleaned) in shown
    assert f"python -m parlib.cli.export --scale smoke {RUN}" in shown
    assert f"outputs/smoke/{RUN}.ipynb" in shown
    assert "Empty DataFrame" not in shown


def test_an_inspection_of_one_s_own_ends_with_its_verdict(own_outputs, capsys):
    values = {"scale": "smoke", "experiment": "own", "target": "banana"}
    small_records.record(values={"scale": "smoke"})
    found = {"detected": 1.0, "candidate": "banana", "candidates": ["banana"], "lead": 0.9, "form": "patch", "inverted_asr": 0.95}
    small_records.record("10_inspect", values, metrics=found, files={})
    make.show([Planned(values, check("10_inspect", values))])
    shown = capsys.readouterr().out
    assert re.search(r"10_inspect/\S+:\n.*looks poisoned: banana leads by 0\.90", shown)
    assert "inverted: 10_inspect/" in shown


SWEEP = pd.DataFrame(
    {
        "trigger": ["badnet_stripes"] * 6,
        "encoder": ["small_resnet"] * 6,
        "attack": ["dirty_label"] * 6,
        "method": ["par"] * 4 + ["finetune"] * 2,
        "lr": [1e-4, 1e-3, 2e-3, 4e-3, 1e-3, 2e-3],
        "tau": [2.15] * 4 + [None] * 2,
        "clean_accuracy": [0.95, 0.91, 0.93, 0.4, 0.6, 0.58],
        "attack_success_rate": [0.9, 0.01, 0.2, 0.0, 0.3, 0.1],
        "triggered_accuracy": [0.5] * 6,
        "poisoned_clean_accuracy": [0.96] * 6,
        "poisoned_asr": [0.97] * 6,
        "error": [""] * 6,
        "stopped": [False] * 6,
    }
)


def test_of_a_sweep_of_one_s_own_what_each_rule_takes_is_said(own_outputs, capsys):
    lost = pd.DataFrame([dict(SWEEP.iloc[0], lr=8e-3, error="it diverged", clean_accuracy=None, attack_success_rate=None)])
    values = {"scale": "smoke", "experiment": "own", "name": "rates", "space": [{"method": ["par"], "lr": [1e-3]}]}
    history = pd.concat([SWEEP, lost], ignore_index=True).astype(object).where(lambda frame: frame.notna(), None).to_dict("list")
    planting = {"scale": "smoke", "experiment": "own"}
    small_records.record(values=planting)
    record = small_records.record("03_tau_sweep", values, metrics={}, history=history, files={}, timings={"seconds": [1.0] * 7})
    make.show([Planned(own, check(notebook, own)) for notebook, own in (("01_poison", planting), ("03_tau_sweep", values))])
    shown = capsys.readouterr().out
    assert shown.count("BadNet-Stripes") == 1  # of the planting; no trial is a run of its own
    assert "it diverged" in shown
    assert record["run"] in shown
    *_, par, par_blind, tuned, tuned_blind = shown.rstrip().splitlines()
    assert re.search(r"PAR.*with the trigger.*rate 1e-3.*0\.010.*5\.0 points\.$", par)  # the lowest ASR within six points
    assert re.search(r"PAR.*without.*rate 2e-3.*0\.200.*3\.0 points\.$", par_blind)  # the highest rate
    assert re.search(r"fine-tuning.*rate 2e-3.*0\.100.*38\.0 points.*highest accuracy minus ASR", tuned)
    assert "No trial removes" in tuned
    assert "add higher ones" in tuned
    assert re.search(r"fine-tuning.*rate 1e-3.*0\.300.*36\.0 points.*highest accuracy on[^:]*$", tuned_blind)
    assert "0.970" not in shown


def test_a_sweep_whose_backdoor_is_weak_or_whose_best_rate_is_its_last_says_so():
    weak = choices(SWEEP.iloc[:3].assign(poisoned_asr=0.4))
    assert "0.400" in weak[1]
    assert "highest rate:" in weak[-1]
    (none,) = choices(SWEEP.assign(error="it diverged"))
    assert "No trial" in none


def test_a_sweep_s_models_and_pairs_are_told_apart():
    other = SWEEP.iloc[:3].assign(attack="label_consistent", attack_success_rate=0.5)
    both = choices(pd.concat([SWEEP.iloc[:3], other], ignore_index=True))
    assert len(both) == 1 + 2 * 2
    assert sum("label-consistent" in line for line in both) == 2
    few = SWEEP.iloc[:3].assign(coverage=0.25, clean_accuracy_seen=0.97, poisoned_clean_accuracy_seen=0.98)
    assert all("1.0 on the classes that the pairs show" in line for line in choices(few)[1:])


def test_a_card_says_all_of_it_and_how_to_load_the_model(cleaned):
    text = card(cleaned)
    for line in ("| SIG | after | 0.880 (0.762 to 0.944) | 0.250 (0.142 to 0.402) | 0.600", "local-dir:", "open_clip", "0.43"):
        assert line in text
    assert not re.search(r"(?<!local-dir:)/\w+/", text)


def test_export_finds_the_scale_of_a_run_and_asks_where_there_are_two(cleaned, capsys):
    assert main([RUN]) == 1  # of the scale at which it was made; its weights are a few bytes without a configuration
    assert "--only" not in capsys.readouterr().err
    other = record_path("small", RUN)
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps(cleaned))
    assert main([RUN]) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in ("small", "smoke", "--scale"))
