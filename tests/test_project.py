"""The repository itself: one list of pins, notebooks by the house's rules, README beside what was published."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from parlib.cache import ROOT, file_sha256
from parlib.records.status import notebook_path
from parlib.method.methods import METHODS
from parlib.experiments.params import NOTEBOOKS, check
from parlib.cli.publish import stored_outputs_of
from parlib.report.rows import COLUMNS, REFERENCE, table, trials
from parlib.report.tables import summary, with_tables


def test_pins_are_one_list():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = set(project["dependencies"]) | set(project["optional-dependencies"]["dev"])
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    theirs = set(next(item for item in conda if isinstance(item, dict))["pip"]) - {"-e ."}
    assert ours == theirs
    assert all(re.fullmatch(r"[\w\-.\[\]]+==[\d.]+", pin) for pin in ours)
    assert "--editable ." in (ROOT / "Dockerfile").read_text()


def test_dockerfile_is_clean_and_careful():
    found = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, env=_path())
    assert found.returncode == 0, found.stdout
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER \d+:\d+$", text, re.M)
    assert 'ENTRYPOINT ["tini"' in text


def _path() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_rules(notebook):
    stored = nbformat.read(notebook_path(notebook), 4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    text = [cell.source for cell in code]
    assert stored.metadata.kernelspec.name == "python3"
    assert len(code) <= 14
    assert sum(len(source.splitlines()) for source in text) <= 110
    assert not any(re.search(r"^\s*(def|class) |^[%!]|sys\.path|https?://", source, re.M) for source in text)
    assert sum("import " in source for source in text) == 1
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert any(source.startswith("assert ") for source in text)


def test_published_table_is_made_of_the_published_records():
    records = [json.loads(path.read_text()) for path in sorted(REFERENCE.glob("0[1-4]_*/*.json"))]
    assert records
    published = pd.read_csv(REFERENCE / "table.csv")
    assert list(published.columns) == COLUMNS
    fresh = table(records).to_csv(index=False)
    assert (REFERENCE / "table.csv").read_text() == fresh


def test_readme_shows_the_published_tables():
    text = (ROOT / "README.md").read_text()
    assert "<!-- table: written by make publish -->\n| encoder |" in text
    assert "<!-- new triggers: written by make publish -->\n| encoder |" in text
    assert with_tables(text) == text


def test_notebook_05_stores_the_published_table():
    outputs = [output for cell in nbformat.read(notebook_path("05_evaluate"), 4).cells for output in cell.get("outputs", [])]
    stored = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    published = summary(pd.read_csv(REFERENCE / "table.csv"))
    shown = next(page for page in stored if "paper's ASR" in page)
    cells = re.findall(r"<td>(.*?)</td>", shown)
    assert cells == published.astype(str).to_numpy().ravel().tolist()


def test_tuned_values_are_what_the_published_search_chose():
    found = trials(pd.read_csv(REFERENCE / "table.csv"))
    budget = {"small_resnet": 12, "small_vit": 4}  # the same for each method
    assert set(found.groupby(["encoder", "method"]).groups) == {(e, m) for e in budget for m in ("finetune", "cleanclip", "roclip", "par")}
    for (encoder, method), runs in found.groupby(["encoder", "method"]):
        tuned = check("02_clean", {"method": method, "encoder": encoder}).model_dump()
        chosen = runs[runs["chosen"]].iloc[0]
        names = ("lr", "batch", "schedule", "batch_norm", "epochs", "pairs", *METHODS[method].options)
        assert {name: chosen[name] for name in names} == {name: tuned[name] for name in names}
        assert len(runs) == budget[encoder]
        assert (runs["epochs"] * (runs["pairs"] // runs["batch"]) * runs["batch"]).between(0.98 * 48000, 48000).all()


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebooks_store_the_published_run(notebook):
    record = json.loads((REFERENCE / f"{stored_outputs_of(notebook)}.json").read_text())
    outputs = [output for cell in nbformat.read(notebook_path(notebook), 4).cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" for output in outputs)
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert f"run {record['run']} at scale small" in printed
    if "weights" in record["artifacts"]:
        assert f"weights {record['artifacts']['weights']['sha256'][:12]}" in printed
    figures = [artifact for artifact in record["artifacts"].values() if artifact["in"] == "project"]
    figures = [figure for figure in figures if figure["path"].endswith(".png")]
    assert len(figures) == sum("image/png" in output.get("data", {}) for output in outputs)
    for figure in figures:
        copy = (REFERENCE / record["run"]).parent / Path(figure["path"]).name
        assert file_sha256(copy) == figure["sha256"]


def test_misspelt_parameter_ends_papermill_in_a_line_that_names_the_allowed():
    asked = [sys.executable, "-m", "papermill", "notebooks/02_clean.ipynb", "-", "-p", "tua", "2.0", "--no-progress-bar"]
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert "unknown parameter 'tua', did you mean 'tau'? allowed are: scale, seed" in last


def test_nothing_names_a_machine():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "README.md" in files
    for name in files:
        if name.endswith((".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".json", ".cff", "Makefile", "Dockerfile")):
            assert not re.search(r"(?<![\w.])/(work|root|tmp|home)/[A-Za-z.]", (ROOT / name).read_text(), re.M), name
