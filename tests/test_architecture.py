"""The house itself: imports point one way, a module is one room, nothing is found by reflection, and notebooks show the idea."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import nbformat
import pytest

from parlib.cache import ROOT
from parlib.experiments.registry import EXPERIMENTS
from parlib.train.compute import Compute

ORDER = ["", "records", "model", "method", "data", "train", "measure", "attack", "external", "experiments", "report", "cli"]
BASE = {"parlib", "parlib.stages", "parlib.cache", "parlib.progress"}
FILES = sorted((ROOT / "parlib").rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _imported(path: Path) -> set[str]:
    """The modules of parlib that a module imports anywhere in it; not those for types alone."""
    found = set()
    for node in _without_types(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {one if (one := f"{node.module}.{name.name}") in MODULES else str(node.module) for name in node.names}
    return {name for name in found if name.partition(".")[0] == "parlib"}


def _without_types(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _without_types(node)


IMPORTS = {name: _imported(path) for name, path in MODULES.items()}


def _floor(module: str) -> int:
    return 0 if module in BASE else ORDER.index(module.split(".")[1])


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    if module == "parlib.run":  # the name by which readers call the runner
        assert IMPORTS[module] == {"parlib.cli.run"}
        return
    upwards = [name for name in IMPORTS[module] if _floor(name) > _floor(module)]
    assert not upwards, f"{module} imports {', '.join(upwards)}"


def test_no_modules_import_each_other():
    reached: dict[str, set[str]] = {}

    def reach(module: str, above: tuple[str, ...]) -> set[str]:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in reached:
            reached[module] = {module}.union(*(reach(name, (*above, module)) for name in IMPORTS[module]))
        return reached[module]

    for module in MODULES:
        reach(module, ())


def test_the_method_needs_the_model_alone():
    """The paper's own part can be read, and taken elsewhere, by itself; WordNet's files are read with the project's digests."""
    names = [name for module in MODULES if module.startswith("parlib.method.") for name in IMPORTS[module] if "wordnet" not in module]
    assert {name.split(".")[1] for name in names} <= {"method", "model"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_one_room(module):
    assert len(MODULES[module].read_text().splitlines()) <= 320


def test_no_result_is_identified_by_its_source():
    for module, path in MODULES.items():
        text = path.read_text()
        assert not re.search(r"getsource|ast\.dump|ast\.unparse|fingerprint|__code__", text), module


# Notebooks


def _code(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def _kind(annotation: Any) -> str:
    """A field's type as a parameters cell writes it."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [_kind(one) for one in get_args(annotation)]
        return " | ".join(kinds)
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0]).__name__
    if annotation in (None, NoneType):
        return "None"
    return "dict" if annotation is Compute else (get_origin(annotation) or annotation).__name__


def test_every_experiment_has_its_notebook():
    assert [path.stem for path in NOTEBOOKS] == list(EXPERIMENTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_rules(path):
    stored, code = nbformat.read(path, 4), _code(path)
    sources = [cell.source for cell in code]
    assert stored.metadata.kernelspec.name == "python3"
    assert len(code) <= 14
    assert sum(len(source.splitlines()) for source in sources) <= 110
    for source in sources:
        assert not re.search(r"^[%!]|sys\.path|https?://", source, re.M)
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(ast.parse(source)))
    assert sum(bool(re.search(r"^(import|from) ", source, re.M)) for source in sources) == 1
    assert [cell.metadata.get("tags", []) for cell in code].count(["parameters"]) == 1
    assert any("\nassert " in f"\n{source}" for source in sources)
    words = [cell.source for cell in stored.cells if cell.cell_type == "markdown"]
    assert words[0].startswith("# ")
    assert "**Question.**" in words[0]
    assert len(words[-1].split()) <= 140


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_hold_no_errors_and_no_progress(path):
    outputs = [output for cell in _code(path) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    shown = "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)
    assert not re.search(r"\d%\||\r| in \d\d:\d\d$", shown, re.M)
    assert str(ROOT) not in shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_parameters_cell_repeats_names_types_defaults_and_descriptions(path):
    source = next(cell.source for cell in _code(path) if "parameters" in cell.metadata.get("tags", []))
    fields, usual = EXPERIMENTS[path.stem].model_fields, EXPERIMENTS[path.stem].defaults()
    nodes, lines = ast.parse(source).body, source.splitlines()
    assert lines.count("# advanced") == 1
    lines.remove("# advanced")
    assert sorted(node.target.id for node in nodes) == sorted(fields)
    for node, line in zip(nodes, lines, strict=True):
        name = node.target.id
        value = ast.literal_eval(node.value)
        kind = _kind(fields[name].annotation)
        wanted = f"{kind} | None" if usual[name] is None and "None" not in kind else kind
        assert (ast.unparse(node.annotation), value, line.partition("  # ")[2]) == (wanted, usual[name], fields[name].description)
        assert type(value) is type(usual[name])


def test_how_threads_wait_and_what_pages_are_asked_for_is_said_before_torch_is_loaded():
    said = {"GOMP_SPINCOUNT": "8000", "THP_MEM_ALLOC_ENABLE": "1"}
    code = f"import os, sys, parlib; print(*(os.environ[name] for name in {list(said)}), 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name not in said}
    shown = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)
    assert shown.split() == [*said.values(), "False"]
