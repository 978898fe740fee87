"""What make publish stores in a notebook: the executed copy's outputs, without what differs from run to run."""

import os

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from parlib import keys, publish


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
