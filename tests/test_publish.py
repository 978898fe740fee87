"""What make publish stores in a notebook: the executed copy's outputs, without what differs from run to run."""

import hashlib
import json
import os
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from parlib import keys, publish, records


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    source = new_notebook(cells=[new_code_cell("tau = 1.0", metadata={"tags": ["parameters"]}), new_code_cell("look()")], metadata=kernel)
    nbformat.write(source, tmp_path / "notebooks" / "02_clean.ipynb")
    return tmp_path


def _executed(folder, last: str) -> str:
    progress = "step: 50%\r      \rrecord: x.json\n"
    outputs = [
        new_output("stream", name="stdout", text=progress),
        new_output("stream", name="stderr", text="a warning that names a path\n"),
        new_output("execute_result", data={"text/plain": "3"}, execution_count=9, metadata={"when": "now"}),
    ]
    injected = new_code_cell("tau = 2.0", metadata={"tags": ["injected-parameters"]})
    first = new_code_cell("tau = 1.0", metadata={"tags": ["parameters"]})
    path = folder / "ran.ipynb"
    (folder / "ran.json").write_text("{}")
    nbformat.write(new_notebook(cells=[first, injected, new_code_cell(last, outputs=outputs)]), path)
    return path


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """A published record of one planned run, and a plan of two."""
    reference = tmp_path / "outputs" / "reference"
    (reference / "02_clean").mkdir(parents=True)
    named = {"trigger": "one_trigger.png", "points": "one_points.csv"}
    kept = {"in": "project", "sha256": hashlib.sha256(b"kept").hexdigest()}
    artifacts = {name: kept | {"path": f"outputs/small/02_clean/{file}"} for name, file in named.items()}
    artifacts |= {"weights": {"in": "cache", "path": "weights"}}
    record = json.dumps({"params": {}, "key": "k", "run": "02_clean/one", "artifacts": artifacts})
    (reference / "02_clean" / "one.json").write_text(record)
    (reference / "02_clean" / "one_points.csv").write_text("x,y\n")
    known = {"02_clean/one": "k", "02_clean/two": "k"}
    for module in (publish, records):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "REFERENCE", reference)
    planned = [SimpleNamespace(id=run, state=lambda run=run: keys.state("small", run, known[run])) for run in known]
    monkeypatch.setattr(publish, "plan", lambda path: planned)
    return tmp_path, known


def test_a_published_run_that_is_not_here_is_never_lost(grid):
    with pytest.raises(ValueError, match=r"1 published runs would be lost, such as 02_clean/one \(missing\); .*publish --restore"):
        publish.publishable()


def test_restored_records_are_published_and_changed_ones_are_not(grid):
    folder, keys = grid
    publish.restore()
    restored = folder / "outputs/small/02_clean"
    assert sorted(path.name for path in restored.iterdir()) == ["one.json", "one_points.csv"]  # what is published
    made = {"params": {}, "key": "k", "artifacts": {}}
    (folder / "outputs/small/02_clean/two.json").write_text(json.dumps(made))
    assert publish.publishable() == {"02_clean/one": "", "02_clean/two": ""}
    keys["02_clean/two"] = "other"  # its code has changed; it is not published, so nothing is lost
    assert publish.publishable()["02_clean/two"].startswith("stale")
    keys["02_clean/one"] = "other"
    with pytest.raises(ValueError, match=r"1 published runs would be lost, such as 02_clean/one \(stale"):
        publish.publishable()
    (folder / "outputs/small/02_clean/one.json").write_text(json.dumps(made | {"key": "other"}))
    publish.restore()
    assert records.read("small", "02_clean/one")["key"] == "other"  # what was made here stays
    assert publish.publishable()["02_clean/one"] == ""


def test_weights_may_be_on_the_machine_that_made_the_record(grid):
    folder, _ = grid
    publish.restore()
    made = {"params": {}, "key": "k", "run": "02_clean/two", "artifacts": {"weights": {"in": "cache", "path": "away"}}}
    path = folder / "outputs/small/02_clean/two.json"
    path.write_text(json.dumps(made))
    assert publish.publishable()["02_clean/two"] == ""
    path.write_text(json.dumps(made | {"artifacts": {"points": {"in": "project", "path": "away.csv"}}}))
    assert publish.publishable()["02_clean/two"] == "its points is gone"


def test_restoring_again_brings_back_what_is_gone(grid):
    folder, _ = grid
    publish.restore()
    points = folder / "outputs/small/02_clean/one_points.csv"
    points.unlink()
    publish.restore()
    assert points.exists()


def test_a_notebook_whose_run_was_restored_keeps_its_outputs(grid, monkeypatch):
    folder, _ = grid
    publish.restore()
    monkeypatch.setattr(publish, "NOTEBOOKS", ["02_clean"])
    monkeypatch.setattr(publish, "stored_outputs_of", lambda notebook: "02_clean/one")
    monkeypatch.setattr(publish.keys, "fresh", lambda scale: [])
    monkeypatch.setattr(publish.report, "mapped", lambda found, rows: [])
    monkeypatch.setattr(publish.report, "table", lambda found: pd.DataFrame())
    monkeypatch.setattr(publish.tables, "with_tables", lambda text: text)
    (folder / "README.md").write_text("words")
    for name in ("one_trigger.png", "one_points.csv"):
        (folder / "outputs/small/02_clean" / name).write_text("kept")
    publish.publish()  # there is no notebook, and no executed copy of one, that could be read
    assert (folder / "outputs/reference/02_clean/one_trigger.png").read_text() == "kept"
    record = folder / "outputs/small/02_clean/one.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"metrics": {}}))
    with pytest.raises(ValueError, match="02_clean/one"):
        publish.publish()


def test_outputs_are_stored_as_a_terminal_shows_them(folder):
    stored = publish.stored_notebook("02_clean", _executed(folder, "look()"))
    assert [cell.source for cell in stored.cells] == ["tau = 1.0", "look()"]
    printed, result = stored.cells[1].outputs
    assert printed.text == "record: x.json\n"
    assert result.data == {"text/plain": "3"}
    assert result.metadata == {}
    assert [cell.execution_count for cell in stored.cells] == [1, 2]


def test_outputs_older_than_the_record_are_refused(folder):
    executed = _executed(folder, "look()")
    os.utime(executed, (1, 1))
    with pytest.raises(ValueError, match=r"ran\.ipynb is older than its record"):
        publish.stored_notebook("02_clean", executed)


def test_another_version_of_the_notebook_is_refused(folder):
    with pytest.raises(ValueError, match=r"ran\.ipynb ran another version of 02_clean; run it again"):
        publish.stored_notebook("02_clean", _executed(folder, "look_again()"))
