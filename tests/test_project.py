"""The repository itself: one list of pins and one lock, commands that exist, nothing that names a machine, and what is published."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from parlib.cache import ROOT
from parlib.cli.notebooks import notebook_path
from parlib.experiments.registry import EXPERIMENTS, check
from parlib.method.methods import METHODS
from parlib.records.store import REFERENCE, read_all, read_file
from parlib.report.rows import COLUMNS, table, trials

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_EXTRA = r"(?:\[[^]]+\])?"  # behind a package's name in the lock, such as [tune]


def _text(name: str) -> str:
    return (ROOT / name).read_text()


def _pin(requirement: str) -> tuple[str, str]:
    """The name, as registries write it, and the version."""
    name, version = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)", requirement).groups()
    return canonicalize_name(name), version


@cache
def _locked() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version in re.findall(rf"^([\w.-]+){_EXTRA}==([\w.+]+)", _text("requirements.lock"), re.M):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def test_every_pin_is_in_the_one_lock_with_hashes():
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    pins = dict(_pin(requirement) for requirement in asked + PROJECT["build-system"]["requires"])
    assert len(pins) == len(asked), "two versions of one package are pinned"
    assert {name: _locked().get(name) for name in pins} == {name: {version} for name, version in pins.items()}
    entries = re.split(rf"^(?=[\w.-]+{_EXTRA}==)", _text("requirements.lock"), flags=re.M)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)


def test_what_is_asked_for_with_an_extra_is_locked_with_it():
    """Else pip, which takes it for a requirement of its own, looks for the newest version, and refuses it as it has no hash."""
    asked = [Requirement(line) for one in metadata.distributions() if one.name != "parlib" for line in one.requires or ()]
    asked = [one for one in asked if one.extras and (one.marker is None or one.marker.evaluate({"extra": ""}))]
    locked = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)\[", _text("requirements.lock"), re.M)}
    assert {canonicalize_name(one.name) for one in asked} <= locked
    assert any(one.name == "jsonschema" for one in asked)


def test_everything_installs_from_the_lock():
    conda = yaml.safe_load(_text("environment.yml"))["dependencies"]
    (pip,) = (item["pip"] for item in conda if isinstance(item, dict))
    assert pip == ["--require-hashes", "-r requirements.lock"]
    for name in ("Makefile", "Dockerfile"):
        assert re.search(r"--require-hashes .*requirements\.lock", _text(name)), name
    assert "make test" in _text(".ci/run")
    requires = PROJECT["project"]["requires-python"]
    assert (requires, f"python={requires.removeprefix('>=')}" in conda) == (">=3.11", True)


def test_what_parlib_imports_is_declared():
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *(one for name in extras.keys() - {"dev"} for one in extras[name])]
    declared = {_pin(requirement)[0] for requirement in asked}
    brought = {"ipython": "ipykernel", "jinja2": "nbconvert", "jupyter-client": "papermill"}  # what it works with, and by what it comes
    sources = metadata.packages_distributions()
    for path in (ROOT / "parlib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.partition(".")[0] for name in names} - {"parlib", *sys.stdlib_module_names}:
                of = {re.sub(r"[-_.]+", "-", source).lower() for source in sources[name]}
                assert declared & {brought.get(source, source) for source in of}, f"{path}: {name}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_in_texts_exist(path):
    text = path.read_text()
    code = "\n".join(span or line for span, line in re.findall(r"`([^`\n]+)`|^ {4,}(.*)$", text, re.M))
    assert set(re.findall(r"^make ([a-z][a-z-]*)", code, re.M)) <= _targets()
    for module in re.findall(r"python -m (parlib[\w.]*)", code):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
    for name in re.findall(r"(?<![\w/])(params/(?:small|smoke|paper|examples)[\w/.-]*)", text):
        assert (ROOT / name.rstrip(".")).exists(), name


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", _text("Makefile"), re.M))


def test_make_lists_its_targets():
    phony = re.search(r"^\.PHONY: (.*)$", _text("Makefile"), re.M)[1].split()
    assert _targets() == set(phony)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(target in shown for target in ("reproduce", "verify", "test", "lab"))


def test_the_dockerfile_is_clean_and_careful():
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    found = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stdout
    user = re.findall(r"^USER (\d+):\d+$", _text("Dockerfile"), re.M)
    assert user
    assert int(user[-1]) > 0
    assert re.search(r'^ENTRYPOINT \["tini"', _text("Dockerfile"), re.M)
    let_in = {line.removeprefix("!") for line in _text(".dockerignore").splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", _text("Dockerfile"), re.M) for name in line.split()}
    assert copied == let_in


def test_the_citation_names_the_paper_s_authors():
    cited = yaml.safe_load(_text("CITATION.cff"))["preferred-citation"]
    assert [author["family-names"] for author in cited["authors"]] == ["Singh", "Croce", "Hein"]
    assert "2412.00727" in str(cited)


def test_nothing_names_a_machine_or_a_registry():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]
    assert ROOT / "README.md" in files
    here = re.compile(r"(?<![\w.])/(work|root|tmp|home|opt|Users)/[A-Za-z.]")
    registry = re.compile(
        r"pypi\.org|pythonhosted\.org|pypi\.[a-z]+/|anaconda\.(org|com)|download\.pytorch|simple/?index|--index-url +https?:"
    )
    for path in files:
        if path.suffix not in (".png", ".svg", ".safetensors"):
            text = path.read_text()
            assert not here.search(text), f"{path}: {here.search(text)[0]}"
            assert not registry.search(text), f"{path}: {registry.search(text)[0]}"


# What is published


def test_the_published_table_is_made_of_the_published_records():
    published = pd.read_csv(REFERENCE / "table.csv")
    assert list(published.columns) == COLUMNS
    assert (REFERENCE / "table.csv").read_text() == table(read_all(REFERENCE)).to_csv(index=False)


def test_tuned_values_are_what_the_published_search_chose():
    found = trials(table(read_all(REFERENCE)))
    budget = {"small_resnet": 12, "small_vit": 4}  # the same for each method
    assert set(found.groupby(["encoder", "method"]).groups) == {(e, m) for e in budget for m in ("finetune", "cleanclip", "roclip", "par")}
    for (encoder, method), runs in found.groupby(["encoder", "method"]):
        tuned = check("02_clean", {"method": method, "encoder": encoder}).model_dump()
        chosen = runs[runs["chosen"]].iloc[0]
        names = ("lr", "batch", "schedule", "batch_norm", "epochs", "pairs", *METHODS[method].options)
        assert {name: chosen[name] for name in names} == {name: tuned[name] for name in names}
        assert len(runs) == budget[encoder]
        assert set(runs["experiment"]) == {"search"}
        assert (runs["epochs"] * (runs["pairs"] // runs["batch"]) * runs["batch"]).between(0.98 * 48000, 48000).all()


def test_a_preset_names_the_search_that_chose_it():
    for values in yaml.safe_load(_text("parlib/experiments/presets/methods.yaml")).values():
        for one in values.values() if all(isinstance(value, dict) for value in values.values()) else [values]:
            assert "like" in one or (ROOT / one["search"]).is_file()


@pytest.mark.parametrize("notebook", EXPERIMENTS)
def test_notebooks_store_the_published_run(notebook):
    run = check(notebook, {}).id
    outputs = [output for cell in nbformat.read(notebook_path(notebook), 4).cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert f"run {run} at scale small" in printed
    shown = sum("image/png" in output.get("data", {}) for output in outputs)
    stored = [path.name for path in (REFERENCE / run).parent.glob("*.png")]
    assert shown == sum(re.fullmatch(rf"{re.escape(Path(run).name)}_[a-z_]+\.png", name) is not None for name in stored) > 0
    if (REFERENCE / f"{run}.json").exists():
        assert read_file(REFERENCE / f"{run}.json")["run"] == run
