"""`make verify`: it tells today's runs from the published ones, exactly or within a tolerance, and exits so."""

import copy
import json
import platform
import shutil

import pytest

from parlib.cli import verify
from parlib.cli.verify import TOLERANCE, compared, differences, main, reproduced, usual_tolerance
from parlib.experiments.clean_params import Clean
from parlib.experiments.result import device
from parlib.records.store import REFERENCE, outputs, read_file

RUNS = reproduced()
PAR = RUNS[-1]


@pytest.fixture
def published() -> dict:
    return read_file(REFERENCE / f"{PAR}.json")


@pytest.fixture
def made(published) -> dict:
    return copy.deepcopy(published)


def test_a_record_does_not_differ_from_itself(made, published):
    assert list(differences(made, published, 0.0)) == []
    made["seconds"] = 2 * made["seconds"]
    made["provenance"]["git"] = "another"
    assert list(differences(made, published, 0.0)) == []


def test_on_the_same_machine_weights_history_and_metrics_are_the_same(made, published):
    made["artifacts"]["weights"]["sha256"] = "0" * 64
    made["history"]["loss"][0] += 1e-5
    made["metrics"]["clean_accuracy"] += 0.0005
    found = " ".join(differences(made, published, 0.0))
    assert all(name in found for name in ("weights", "history", "clean_accuracy"))
    assert list(differences(made, published, TOLERANCE)) == []


def test_rates_may_differ_by_the_tolerance_and_how_many_images_there_were_may_not(made, published):
    made["metrics"]["attack_success_rate"] += 0.02
    made["metrics"]["s_image"] += 0.5  # where training ends, S and the accuracy under the trigger may be anywhere
    made["metrics"]["triggered_accuracy"] += 0.3
    assert list(differences(made, published, 0.03)) == []
    (found,) = differences(made, published, 0.01)
    assert "attack_success_rate" in found
    made["metrics"]["clean_accuracy_n"] += 1
    assert "clean_accuracy_n" in list(differences(made, published, 0.03))[-1]
    del made["metrics"]["clean_accuracy_n"], made["metrics"]["clean_accuracy"]
    assert any("clean_accuracy " in one for one in differences(made, published, 0.03))


@pytest.mark.parametrize("part", ["params", "stages", "environment"])
def test_another_question_or_computation_differs_at_any_tolerance(made, published, part):
    made["identity"][part]["another"] = 2
    assert any(part in one for one in differences(made, published, 1.0))


def test_weights_that_another_cpu_made_are_an_input_that_may_differ(made, published):
    """There the base and the poisoned model end elsewhere, and the cleaning started from those."""
    made["identity"]["inputs"]["poisoned"] = "0" * 64
    assert any("inputs" in one for one in differences(made, published, 0.0))
    assert list(differences(made, published, TOLERANCE)) == []
    made["identity"]["inputs"]["csv:pairs"] = "0" * 64  # but data that were given are the question itself
    assert any("inputs" in one for one in differences(made, published, TOLERANCE))


def test_the_tolerance_is_0_on_the_same_kind_of_machine_and_threads_alone(made, published):
    assert usual_tolerance(published, made) == 0
    for name, value in (("threads", 64), ("device", "a GPU")):
        other = made | {"provenance": made["provenance"] | {name: value}}
        assert usual_tolerance(published, other) == TOLERANCE


def test_records_that_name_no_kind_of_cpu_are_of_this_one_where_they_start_from_the_same_weights(made, published):
    published["provenance"]["device"] = f"cpu ({platform.machine()})"
    made["provenance"]["device"] = device(Clean.check({"scale": "small"}))
    assert usual_tolerance(published, made) == 0
    made["identity"]["inputs"]["poisoned"] = "0" * 64
    assert usual_tolerance(published, made) == TOLERANCE
    published["provenance"]["device"] = "cpu (another machine)"
    assert usual_tolerance(published, made | {"identity": published["identity"]}) == TOLERANCE


def test_another_kind_of_cpu_is_told_and_what_is_equal_there_is_equal(made, published):
    made["provenance"]["device"] = "another cpu"
    assert compared(made, published, None) == ("no difference", True)
    made["metrics"]["clean_accuracy"] += 0.01
    said, same = compared(made, published, None)
    assert same
    assert "another cpu" in said
    assert "bit for bit" in said
    assert compared(made, published, 0.0) == (
        f"clean_accuracy is {made['metrics']['clean_accuracy']}, not {published['metrics']['clean_accuracy']}",
        False,
    )
    made["metrics"]["clean_accuracy"] = float("nan")
    assert not compared(made, published, None)[1]


@pytest.fixture
def here(own_outputs, monkeypatch):
    """The runs of make reproduce, as published."""
    for run in RUNS:
        path = outputs("small") / f"{run}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REFERENCE / f"{run}.json", path)
    monkeypatch.setattr(verify, "golden", lambda: True)
    return outputs("small") / f"{PAR}.json"


def test_equal_runs_exit_with_0(here, capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.count("no difference") == len(RUNS)


def test_a_difference_exits_with_1_and_is_named(here, capsys):
    held = json.loads(here.read_text())
    held["metrics"]["clean_accuracy"] = 0.5
    here.write_text(json.dumps(held))
    assert main([]) == 1
    assert f"{PAR}: clean_accuracy is 0.5" in capsys.readouterr().out
    assert main([RUNS[0]]) == 0  # of the runs that are named alone
    assert main([PAR, "--tolerance", "0.9"]) == 0


def test_records_are_kept_as_they_are_and_those_that_were_not_published_too(here, tmp_path, capsys):
    new = here.with_name("par_never_published.json")
    shutil.copy(here, new)
    assert main([PAR, "--keep", str(tmp_path / "kept")]) == 0
    assert main(["02_clean/par_never_published", "--keep", str(tmp_path / "kept")]) == 0
    assert "not published" in capsys.readouterr().out
    kept = sorted((tmp_path / "kept" / "02_clean").iterdir())
    assert [path.read_text() for path in kept] == [here.read_text(), new.read_text()]
    assert main(["02_clean/par_never_published"]) == 1


@pytest.mark.parametrize("text", [None, "{}"])
def test_a_missing_or_damaged_record_exits_with_1_and_the_others_are_compared(here, capsys, text):
    here.unlink() if text is None else here.write_text(text)
    assert main([]) == 1
    shown = capsys.readouterr().out
    assert PAR in shown
    assert shown.count("no difference") == len(RUNS) - 1


def test_a_stage_that_computes_something_else_exits_with_1(here, monkeypatch):
    monkeypatch.setattr(verify, "golden", lambda: False)
    assert main([]) == 1
