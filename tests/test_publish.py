"""`make publish`: no published run is lost, and notebooks store what a terminal shows, without what differs from run to run."""

import json
import os

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from small_records import record

from parlib.cache import cache_dir
from parlib.cli import notebooks, publish
from parlib.cli.plan import Planned
from parlib.experiments.registry import check
from parlib.records.store import outputs, read, record_path
from parlib.stages import STAGES

POISON, CLEAN = "01_poison/badnet_stripes_s0", "02_clean/par_badnet_stripes_s0"
USUAL = [Planned({}, check("01_poison", {})), Planned({}, check("02_clean", {}))]


@pytest.fixture
def folder(own_outputs, monkeypatch):
    """A project of its own, that plans two runs and has published nothing."""
    for module in (publish, notebooks):
        monkeypatch.setattr(module, "ROOT", own_outputs)
    monkeypatch.setattr(publish, "REFERENCE", own_outputs / "outputs" / "reference")
    monkeypatch.setattr(publish, "plan", lambda path: [*USUAL, Planned({}, check("05_evaluate", {}))])
    monkeypatch.setattr(publish.prose, "write_all", lambda: None)
    (own_outputs / "notebooks").mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    source = new_notebook(cells=[new_code_cell("tau = 1.0", metadata={"tags": ["parameters"]}), new_code_cell("look()")], metadata=kernel)
    nbformat.write(source, own_outputs / "notebooks" / "02_clean.ipynb")
    return own_outputs


@pytest.fixture
def published(folder):
    """Both runs made and published; then made by nobody here."""
    points = pd.DataFrame({"model": ["poisoned", "par"], "x": [0.0, 1.0]})
    record()
    record("02_clean", tables={"points": points, "tests": points})
    (outputs("small") / "02_clean" / "par_badnet_stripes_s0_history.png").write_bytes(b"a figure")
    publish.publish()
    reference = folder / "outputs" / "reference"
    outputs("small").rename(folder / "outputs" / "before")
    return reference


def test_what_is_published_is_records_their_points_figures_and_the_table(published):
    found = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert found == {
        "table.csv",
        f"{POISON}.json",
        f"{CLEAN}.json",
        f"{CLEAN}_points.csv",
        f"{CLEAN}_tests.csv",  # of a run that a notebook stores
        f"{CLEAN}_history.png",
    }
    assert pd.read_csv(published / "table.csv")["run"].tolist() == [POISON, CLEAN]


def test_a_published_run_that_is_not_here_is_never_lost(published, capsys):
    with pytest.raises(ValueError, match=f"2 .*{POISON}.*missing.*--restore"):
        publish.publishable()
    before = {path: path.read_bytes() for path in published.rglob("*") if path.is_file()}
    assert publish.main([]) == 1
    assert "--restore" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in published.rglob("*") if path.is_file()} == before


def test_restored_records_are_published_again(published, capsys):
    before = {path: path.read_bytes() for path in published.rglob("*") if path.is_file()}
    assert publish.main(["--restore"]) == 0
    assert "restored 2 records" in capsys.readouterr().out
    assert publish.publishable() == {POISON: "", CLEAN: ""}
    publish.publish()
    assert {path: path.read_bytes() for path in published.rglob("*") if path.is_file()} == before


def test_what_became_stale_is_refused_and_what_was_made_here_stays(published, monkeypatch):
    publish.restore()
    monkeypatch.setitem(STAGES, "method/par", 2)
    with pytest.raises(ValueError, match=f"{CLEAN}.*method/par 1 -> 2"):
        publish.publishable()
    record("02_clean", metrics={"clean_accuracy": 0.5, "attack_success_rate": 0.0})
    publish.restore()
    assert read("small", CLEAN)["metrics"]["clean_accuracy"] == 0.5
    assert publish.publishable()[CLEAN] == ""
    record_path("small", CLEAN).unlink()
    (published / f"{CLEAN}.json").unlink()
    assert publish.publishable()[CLEAN] == "missing"  # it is not published, so nothing is lost


def test_weights_may_be_on_the_machine_that_made_the_record_and_what_figures_need_may_not(folder):
    record()
    made = record("02_clean", tables={"points": pd.DataFrame({"x": [1.0]})})
    (cache_dir() / made["artifacts"]["weights"]["path"]).unlink()
    assert publish.publishable() == {POISON: "", CLEAN: ""}
    points = folder / made["artifacts"]["points"]["path"]
    points.write_text("x\n2.0\n")
    assert "points" in publish.publishable()[CLEAN]
    points.unlink()
    assert publish.publishable()[CLEAN] == "its points is gone"


def test_restoring_again_brings_back_what_is_gone(published):
    publish.restore()
    points = outputs("small") / f"{CLEAN}_points.csv"
    points.unlink()
    publish.restore()
    assert points.exists()


def test_a_record_that_no_file_plans_is_refused_by_name(folder):
    record()
    record("02_clean")
    record("02_clean", {"tau": 1.0})
    with pytest.raises(ValueError, match=f"{CLEAN}_tau1"):
        publish.publish()


def test_a_notebook_without_an_executed_copy_keeps_its_outputs(published):
    before = notebooks.notebook_path("02_clean").read_text()
    publish.restore()
    publish.publish()
    assert notebooks.notebook_path("02_clean").read_text() == before


def _executed(folder, last: str, record: str = "{}"):
    progress = "step:  50%|#####     | 4/8 [00:01<00:01, 3.9steps/s]\nstep: 50%\r      \rrecord: x.json\n"
    results = [
        new_output("stream", name="stdout", text=progress),
        new_output("stream", name="stdout", text="step:  50%|#####     | 4/8 [00:01<00:01, 3.9steps/s]\n"),
        new_output("stream", name="stderr", text="a warning that names a path\n"),
        new_output("display_data", data={"text/plain": "par: 360 steps in 01:07"}),
        new_output("execute_result", data={"text/plain": "3"}, execution_count=9, metadata={"when": "now"}),
    ]
    injected = new_code_cell("tau = 2.0", metadata={"tags": ["injected-parameters"]})
    first = new_code_cell("tau = 1.0", metadata={"tags": ["parameters"]})
    path = folder / "ran.ipynb"
    path.with_suffix(".json").write_text(record)
    metadata = {"language_info": {"name": "python", "version": "3"}, "papermill": {"duration": 1.0}}
    nbformat.write(new_notebook(cells=[first, injected, new_code_cell(last, outputs=results)], metadata=metadata), path)
    return path


def test_outputs_are_stored_as_a_terminal_shows_them(folder):
    stored = publish.stored_notebook("02_clean", _executed(folder, "look()"))
    assert [cell.source for cell in stored.cells] == ["tau = 1.0", "look()"]
    printed, result = stored.cells[1].outputs
    assert printed.text == "record: x.json\n"
    assert result.data == {"text/plain": "3"}
    assert result.metadata == {}
    assert [cell.execution_count for cell in stored.cells] == [1, 2]
    assert set(stored.metadata) == {"kernelspec", "language_info"}
    assert stored.metadata.language_info["version"] == "3"  # as a kernel leaves it


def test_outputs_older_than_the_record_are_refused(folder):
    executed = _executed(folder, "look()")
    os.utime(executed, (1, 1))
    with pytest.raises(ValueError, match=r"ran\.ipynb.*record"):
        publish.stored_notebook("02_clean", executed)


def test_another_version_of_the_notebook_is_refused(folder):
    with pytest.raises(ValueError, match=r"ran\.ipynb.*02_clean"):
        publish.stored_notebook("02_clean", _executed(folder, "look_again()"))


def test_an_executed_notebook_is_published_with_its_run(folder):
    record()
    record("02_clean")
    _executed(folder, "look()").rename(outputs("small") / f"{CLEAN}.ipynb")
    publish.publish()
    (_, shown) = nbformat.read(notebooks.notebook_path("02_clean"), 4).cells
    assert [one.output_type for one in shown.outputs] == ["stream", "execute_result"]
    assert json.loads((folder / "outputs" / "reference" / f"{CLEAN}.json").read_text()) == read("small", CLEAN)
