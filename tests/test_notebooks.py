"""Notebooks at smoke scale: the same record as their function's, Run All twice, parameters set in their cell alone, and short errors."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from parlib.cache import ROOT
from parlib.cli import notebooks
from parlib.cli.plan import Planned
from parlib.experiments.registry import check
from parlib.experiments.run import start

RUNS = ("01_poison/badnet_stripes_s0", "02_clean/par_badnet_stripes_s0")


def _assigned(source: str) -> set[str]:
    """The names that a cell gives a value, but for those of comprehensions and functions, which are their own."""
    own = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.FunctionDef, ast.Lambda)
    found, left = set(), list(ast.parse(source).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        if not isinstance(node, own):
            left += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_parameter_keeps_its_value_in_all_cells(path):
    """So that `start` can be run again below, as JupyterLab's "Run Selected Cell and All Below" does."""
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    others = [_assigned(cell.source) & _assigned(parameters.source) for cell in cells if cell is not parameters]
    assert _assigned(parameters.source)
    assert not set().union(*others)


def _environment(checkout: Path, cache: str) -> dict[str, str]:
    return os.environ | {"PAR_CACHE": str(checkout / cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}  # the kernel, too


def _run(checkout: Path, cache: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "parlib.run", *arguments]
    return subprocess.run(command, cwd=checkout, env=_environment(checkout, cache), capture_output=True, text=True)


def _records(checkout: Path) -> dict[str, dict]:
    return {run: json.loads((checkout / "outputs" / "smoke" / f"{run}.json").read_text()) for run in RUNS}


def _saved(folder: Path, *changes: tuple[str, str]) -> None:
    """Save notebook 02 in a folder as JupyterLab would, with changes in its parameters cell."""
    path = folder / "notebooks" / "02_clean.ipynb"
    notebook = nbformat.read(path, 4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for old, new in changes:
        assert old in cell.source
        cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def made(shared_checkout) -> Path:
    """A checkout in which the runner has run notebooks 01 and 02, the second while it was saved with other defaults."""
    path = shared_checkout / "notebooks" / "02_clean.ipynb"
    whole = path.read_text()
    _saved(shared_checkout, ("tau: float = 2.15", "tau: float = 1.0"), ("pairs: int = 12000", "pairs: int = 100"), ('"small"', '"paper"'))
    done = _run(shared_checkout, "cache", "params/smoke", "--only", *RUNS)
    path.write_text(whole)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PAR" in done.stdout.splitlines()[-1]  # the table of its attacks
    return shared_checkout


def test_a_notebook_saved_with_other_defaults_makes_the_run_that_is_asked(made):
    asked = check("02_clean", {"scale": "smoke"}).model_dump(mode="json", exclude={"experiment"})
    assert {name: asked[name] for name in ("tau", "pairs", "scale")} == {"tau": 2.15, "pairs": 200, "scale": "smoke"}
    (record,) = (made / "outputs/smoke/02_clean").glob("*.json")
    assert json.loads(record.read_text())["params"] == asked


JOBS = """
experiment: main
defaults: {scale: smoke}
runs:
  - notebook: 01_poison
  - {notebook: 02_clean, method: finetune, batch: 500}  # of 200 pairs
  - {notebook: 02_clean, method: par}
"""


def test_notebooks_and_functions_on_ray_give_the_same_records(made):
    by_notebook = _records(made)
    (made / "outputs").rename(made / "by_notebook")
    (made / "jobs.yaml").write_text(JOBS)
    try:
        done = _run(made, "another_cache", "jobs.yaml", "--functions", "--jobs", "2", "--threads", "1")
        by_function = _records(made)
    finally:
        (made / "outputs").rename(made / "by_function")
        (made / "by_notebook").rename(made / "outputs")
    assert done.returncode == 1  # what can't be made is named, and all else is made
    assert "Traceback" not in done.stderr
    assert re.search(r"error: 1 runs failed.*02_clean/finetune_badnet_stripes_s0_batch500.*500.*200", done.stderr)
    assert len(list((made / "another_cache" / "models").glob("*/training.json"))) == 3  # all of it was trained once more
    for run, record in by_notebook.items():
        other = by_function[run]
        assert list(record) == list(other)
        assert (record["provenance"]["threads"], other["provenance"]["threads"]) == (1, 1)
        record["metrics"].pop("base_seconds", None), other["metrics"].pop("base_seconds", None)
        for name in set(record) - {"seconds", "provenance"}:
            assert record[name] == other[name], f"{run}: {name}"


def _cells(notebook: str, **parameters: str) -> list:
    """The code cells of a notebook, with values written into its parameters cell."""
    cells = [cell.source for cell in nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", 4).cells if cell.cell_type == "code"]
    for name, value in parameters.items():
        (old,) = (line for line in "\n".join(cells).splitlines() if line.startswith(f"{name}: "))
        cells = [cell.replace(old, f"{old.partition(' = ')[0]} = {value}") for cell in cells]
    return [new_code_cell(cell) for cell in cells]


PARTS = {
    "first": lambda: _cells("02_clean", scale="'smoke'"),
    "tau changed": lambda: _cells("02_clean", scale="'smoke'", tau="1.0"),
    "evaluate": lambda: _cells("05_evaluate", scale="'smoke'"),
    "evaluate again": lambda: _cells("05_evaluate", scale="'smoke'"),
    "errors": lambda: [
        new_code_cell(source, metadata={"tags": ["raises-exception"]})
        for source in ("run = start('02_clean', {'tau': 9.0})", "int('x')", "run = start('02_clean', {'tau': 1 / 0})")
    ],
}


@pytest.fixture(scope="module")
def session(made) -> dict[str, list]:
    """The outputs of one kernel in which all of PARTS run, one after another."""
    parts = {name: cells() for name, cells in PARTS.items()}
    notebook = new_notebook(cells=[cell for cells in parts.values() for cell in cells])
    environment = _environment(made, "cache") | {"PAR_PROGRESS": "display"}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(made)}})
    client.execute(env=environment)
    ran = iter(notebook.cells)
    return {name: [next(ran).outputs for _ in cells] for name, cells in parts.items()}


def _printed(part: list) -> str:
    return "".join(output.text for outputs in part for output in outputs if output.output_type == "stream")


def test_a_scale_that_is_set_in_the_parameters_cell_brings_its_sizes(session, made):
    assert "run 02_clean/par_badnet_stripes_s0 at scale smoke" in _printed(session["first"])
    record = _records(made)["02_clean/par_badnet_stripes_s0"]
    assert (record["params"]["pairs"], record["params"]["epochs"], record["params"]["batch"]) == (200, 2, 50)
    assert "equal to the earlier record" in _printed(session["first"])


def test_run_all_again_with_another_tau_is_another_run(session, made):
    printed = _printed(session["tau changed"])
    assert "run 02_clean/par_badnet_stripes_s0_tau1 at scale smoke" in printed
    record = json.loads((made / "outputs/smoke/02_clean/par_badnet_stripes_s0_tau1.json").read_text())
    assert (record["params"]["tau"], record["params"]["pairs"]) == (1.0, 200)
    figures = [output for outputs in session["tau changed"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == len(list((made / "outputs/smoke/02_clean").glob("par_badnet_stripes_s0_tau1_*.png")))


def test_progress_in_a_notebook_is_one_line_that_says_how_long_it_took(session):
    displayed = [output for outputs in session["tau changed"] for output in outputs if output.output_type == "display_data"]
    (progress,) = (text for output in displayed if "steps in" in (text := output["data"]["text/plain"]))
    assert progress.startswith("par: ")
    assert "\r" not in _printed(session["tau changed"])


def test_run_all_again_of_the_evaluation_shows_the_same(session):
    once, again = session["evaluate"], session["evaluate again"]
    assert _printed(once) == _printed(again)
    for one, other in zip(once, again, strict=True):
        assert [output.get("data") for output in one] == [output.get("data") for output in other]
    tables = [output["data"]["text/html"] for outputs in once for output in outputs if "text/html" in output.get("data", {})]
    assert any("PAR" in table for table in tables)


def test_an_error_of_parlib_is_one_line_and_any_other_keeps_its_traceback(session):
    ((ours,), (theirs,), (mistake,)) = session["errors"]
    assert (ours.ename, len(ours.traceback)) == ("ValueError", 1)
    assert ours.traceback[0].startswith("ValueError: ")
    assert "tau = 9.0" in ours.traceback[0]
    assert (theirs.ename, mistake.ename) == ("ValueError", "ZeroDivisionError")
    assert all("Traceback" in "\n".join(one.traceback) for one in (theirs, mistake))


def test_a_parameter_that_is_misspelt_ends_papermill_in_a_line_that_names_it(own_outputs, monkeypatch):
    (own_outputs / "notebooks").symlink_to(ROOT / "notebooks")
    monkeypatch.setattr(notebooks, "ROOT", own_outputs)
    with pytest.raises(RuntimeError, match="ValueError.*'taau'.*'tau'") as caught:
        notebooks.execute(Planned({"taau": 2.0}, check("02_clean", {})))
    error, where = str(caught.value).splitlines()
    assert "cell" in where
    assert (own_outputs / where.rpartition(" ")[2].strip(")")).exists()


def _namespace(*cells: str) -> dict:
    """A notebook's globals() after its cells, the last of which is running."""
    found: dict = {"In": ["", *cells, "run = start(...)"]}
    for cell in cells:
        exec(cell, found)
    return found


def test_what_papermill_is_told_stays_though_it_is_a_default(own_outputs):
    own = _namespace("scale: str = 'smoke'\ntrain_scenes: int = 24000\nbatch: int = 32")
    assert (start("01_poison", own).params.train_scenes, start("01_poison", own).params.batch) == (400, 32)
    told = _namespace("scale: str = 'small'\ntrain_scenes: int = 24000", "scale = 'smoke'\ntrain_scenes = 24000")
    assert start("01_poison", told).params.train_scenes == 24000


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves notebook 02 with changes, in a project of its own."""
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "02_clean.ipynb", tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    return lambda *changes: _saved(tmp_path, *changes)


def test_a_notebook_is_told_what_it_would_take_otherwise_and_no_more(saved):
    run = Planned({"seed": 1}, check("02_clean", {"seed": 1}))
    assert notebooks.told(run) == {"seed": 1}
    saved(
        ("tau: float = 2.15", "tau: float = 2.0 + 0.1"),
        ("lr: float | None = None", "lr: float | None = 0.5"),
        ("seed: int = 0", "seed = 3"),
    )
    assert notebooks.told(run) == {"seed": 1, "tau": 2.15, "lr": run.params.lr}
    saved(("tau: float = 2.0 + 0.1", "%time"))
    assert notebooks.told(run) == run.params.model_dump() | {"seed": 1}


def test_a_notebook_whose_parameters_cell_lost_its_tag_is_not_run(saved, tmp_path):
    path = tmp_path / "notebooks" / "02_clean.ipynb"
    path.write_text(path.read_text().replace('"parameters"', '"old"'))
    with pytest.raises(ValueError, match=r"02_clean\.ipynb.*'parameters'"):
        notebooks.execute(Planned({}, check("02_clean", {})))


def test_a_name_in_the_parameters_cell_that_is_no_parameter_is_refused(own_outputs):
    with pytest.raises(ValueError, match="'taau'.*'tau'"):
        start("02_clean", _namespace("taau: float = 1.0"))
    start("01_poison", _namespace("taau = [1.0].copy()", "seed: int = 0"))  # another cell's
    start("01_poison", _namespace("seed: int = 0", "shown: int"))
