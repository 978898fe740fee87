"""Runs and their records: one JSON a run, from which the table and the figures are made."""

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from parlib.cache import ROOT, atomic_file, cache_dir, check_writable, digest, file_sha256, versions
from parlib.data import SIDE
from parlib.keys import SCHEMA, key
from parlib.model import WEIGHTS, Clip, load
from parlib.params import (
    NOTEBOOKS,
    Clean,
    Params,
    Poison,
    Swept,
    check,
    distinct_attacks,
    expand,
    literals,
    preset,
    run_id,
    scale_defaults,
)
from parlib.sources import listed


def outputs(scale: str) -> Path:
    """Where a scale's runs write: outputs/<scale>."""
    return ROOT / "outputs" / scale


def record_path(scale: str, run: str) -> Path:
    """The record of a run id."""
    return outputs(scale) / f"{run}.json"


def command(run: str, scale: str = "small") -> str:
    """The command that makes a run and all that it needs."""
    return f"python -m parlib.run params/{scale} --only {run}"


@dataclass
class Run:
    """A notebook's run: its id, its checked parameters, and what it has drawn so far."""

    notebook: str
    id: str
    params: Params
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)

    def figure(self, name: str, figure: Figure) -> Figure:
        """Save a figure beside the record as <run>_<name>.png; return it, to be shown."""
        path = outputs(self.params.scale) / f"{self.id}_{name}.png"
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
        self.artifacts[name] = path
        return figure

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Save a frame beside the record as <run>_<name>.csv; return it."""
        path = outputs(self.params.scale) / f"{self.id}_{name}.csv"
        with atomic_file(path) as temporary:
            frame.to_csv(temporary, index=False)
        self.artifacts[name] = path
        return frame

    def save(
        self,
        *,
        metrics: dict[str, Any],
        seconds: float,
        n: int,
        history: dict[str, list] | None = None,
        timings: dict[str, Any] | None = None,
        **files: Path,
    ) -> dict[str, Any]:
        """Write the record, atomically, and return it; files: further artifacts by name. timings: what differs from run to
        run, which metrics and history must not.
        """
        record = {
            "schema": SCHEMA,
            "run": self.id,
            "notebook": self.notebook,
            "params": self.params.model_dump(),
            "inputs": self.inputs,
            "artifacts": {name: _address(path) | {"sha256": file_sha256(path)} for name, path in (self.artifacts | files).items()},
            "metrics": _rounded(metrics),
            "history": _rounded(history or {}),
            "seed": getattr(self.params, "seed", 0),
            "n": n,
            "seconds": round(seconds, 1),
            **({"timings": _rounded(timings)} if timings else {}),
            "device": _device(),
            "versions": versions() | {"python": platform.python_version()},
            "git": _git(),
            "key": key(self.notebook, self.params, self.inputs),
        }
        path = record_path(self.params.scale, self.id)
        before = read_file(path) if path.exists() else None
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        if before and before["key"] == record["key"]:
            same = before["metrics"] == record["metrics"]
            print("equal to the earlier record of this run" if same else f"differs from the earlier record: {differences(record, before)}")
        print(f"record: {path.relative_to(ROOT)}")
        return record


def start(notebook: str, namespace: Mapping[str, Any]) -> Run:
    """Check a notebook's parameters, out of its globals(), and name its run.

    Raises ValueError on a parameter that isn't known or doesn't fit, and where a record of this id holds other
    parameters; FileNotFoundError where an earlier run is missing; OSError when the output folder can't be written: all
    of it before any work is done.
    """
    params = check(notebook, literals(notebook, namespace))
    run = Run(notebook, run_id(notebook, params), params, inputs(params))
    path = record_path(params.scale, run.id)
    check_writable(path)
    if other := _other_params(path, params):
        raise ValueError(f"{path} holds a run with other parameters ({other}); move it away first")
    print(f"run {run.id} at scale {params.scale}, on {_device()}")
    return run


def upstream(params: Clean) -> tuple[Clip, dict[str, Any] | None]:
    """02's poisoned model and its record, None for an external checkpoint.

    Raises FileNotFoundError, naming the command that makes it, when the run is missing, ValueError when the checkpoint
    can't be read.
    """
    source, record = _source(params)
    if record is not None:
        weights = located(record["artifacts"]["weights"])
        if not weights.exists() or file_sha256(weights) != record["artifacts"]["weights"]["sha256"]:
            remedy = command(record["run"], params.scale)
            raise FileNotFoundError(f"the weights of {record['run']} are gone or damaged; make them again with: {remedy}")
    clip = load(source)
    side = clip.config["vision_cfg"]["image_size"]
    if side != SIDE:
        raise ValueError(f"{source} takes images of {side} px; the embedded scenes are of {SIDE} px")
    return clip, record


def base(params: Clean) -> Clip:
    """The clean base from which the poisoned model of a cleaning was made; FileNotFoundError naming the command that makes it."""
    _, record = _source(params)
    if record is None:
        raise ValueError(f"{params.poisoned} comes without its clean base; name a run of 01_poison")
    weights = located(record["artifacts"]["base_weights"])
    if not weights.exists():
        raise FileNotFoundError(f"the base's weights are gone; make them again with: {command(record['run'], params.scale)}")
    return load(f"local-dir:{weights.parent}")


def _source(params: Clean) -> tuple[str, dict[str, Any] | None]:
    """Where 02's poisoned model is, as `load` wants it, and its record."""
    if params.poisoned.startswith(("local-dir:", "hf-hub:")):
        return params.poisoned, None
    run = params.poisoned or poisoned_run(params)
    record = read(params.scale, run)
    if record["notebook"] != "01_poison":
        raise ValueError(f"{run} is no poisoned model; name a run of 01_poison, local-dir:PATH or hf-hub:ID")
    for name in ("encoder", "trigger", "target", "classes"):
        if record["params"][name] != getattr(params, name):
            raise ValueError(f"{run} was made with {name} = {record['params'][name]!r}, not {getattr(params, name)!r}: say the same here")
    return f"local-dir:{located(record['artifacts']['weights']).parent}", record


def planted(params: Clean, record: dict[str, Any] | None) -> dict[str, Any]:
    """Options of the trigger to test on a cleaned model: as it was planted, unless the parameters say otherwise."""
    found = record["params"] if record is not None else {}
    patch, strength = params.patch or found.get("patch", 0), params.strength or found.get("strength", 0.0)
    return preset(params.trigger, params.target, patch=patch, strength=strength)


def beside(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Another model's headline metrics, to stand in a record beside its own: <name>_clean_accuracy, <name>_asr, ..."""
    found = {f"{name}_{metric}": metrics[metric] for metric in ("clean_accuracy", "triggered_accuracy", "retrieval_asr")}
    return found | {f"{name}_asr": metrics["attack_success_rate"]}


def poisoned_run(params: Clean) -> str:
    """The 01 run that a cleaning starts from when none is named: the same encoder, trigger, target and seed."""
    return run_id("01_poison", poisoned_params(params))


def poisoned_params(params: Clean) -> Params:
    """Parameters of that 01 run."""
    same = {name: getattr(params, name) for name in ("scale", "encoder", "trigger", "target", "seed")}
    return check("01_poison", scale_defaults("01_poison", params.scale) | same)


def read(scale: str, run: str) -> dict[str, Any]:
    """A run's record; FileNotFoundError naming the command that makes it."""
    path = record_path(scale, run)
    if not path.exists():
        raise FileNotFoundError(f"{run} has not been run yet; make it with: {command(run, scale)}")
    return read_file(path)


def read_file(path: Path) -> dict[str, Any]:
    """A record from its file; ValueError naming the file when it is none."""
    try:
        record = json.loads(path.read_text())
        record["params"], record["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record ({type(error).__name__}: {error}); delete it and run it again") from None
    return record


def move_aside(params: Params, run: str) -> Path | None:
    """Keep a record of this id that holds other parameters under another name, and say which; None where there is none."""
    path = record_path(params.scale, run)
    if not _other_params(path, params):
        return None
    aside = path.with_suffix(f".{read_file(path)['key'][:8]}.old")
    return path.rename(aside).relative_to(ROOT)


def _other_params(path: Path, params: Params) -> dict[str, str]:
    held = read_file(path)["params"] if path.exists() else params.model_dump()
    return {name: f"{held.get(name)} -> {value}" for name, value in params.model_dump().items() if held.get(name) != value}


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Records of all poisoned and cleaned models under a folder, in the order of their ids."""
    return [read_file(path) for path in sorted(folder.glob("0[1-4]_*/*.json"))]


def inputs(params: Params) -> dict[str, Any]:
    """What a run builds on, as its record names it: {name: {run, sha256}}.

    02: the poisoned model (sha256 of its weights; empty for the hub's). 03, 04: those of their trials, and data of others (sha256 of
    the names and sizes of its files). 05: every record, by its metrics.
    """
    if isinstance(params, Swept):
        found = [inputs(trial)["poisoned"] for trial in distinct_attacks(params)]
        others = sorted({trial.data for trial in expand(params) if ":" in trial.data})
        return {source["run"]: source for source in found} | {data: {"run": data, "sha256": listed(data)} for data in others}
    if isinstance(params, Clean):
        source, record = _source(params)
        if record is not None:
            options = {name: value for name, value in planted(params, record).items() if name in ("patch", "strength")}
            return {"poisoned": {"run": record["run"], "sha256": record["artifacts"]["weights"]["sha256"]} | options}
        local = Path(source.removeprefix("local-dir:")).expanduser() / WEIGHTS
        return {"poisoned": {"run": source, "sha256": file_sha256(local) if local.is_file() else ""}}
    if isinstance(params, Poison):
        return {}
    return {record["run"]: {"run": record["run"], "sha256": digest(record["metrics"], record["history"])} for record in fresh(params.scale)}


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


def differences(record: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Headline metrics of a record minus another's, where they differ."""
    names = ("clean_accuracy", "attack_success_rate", "triggered_accuracy", "retrieval_asr", "tr_at_1", "ir_at_1")
    pairs = {name: (record["metrics"].get(name, 0.0), other["metrics"].get(name, 0.0)) for name in names}
    return {name: round(ours - theirs, 6) for name, (ours, theirs) in pairs.items() if ours != theirs}


def _address(path: Path) -> dict[str, str]:
    """Where an artifact is, without naming this machine: relative to the cache or to the project."""
    if path.is_relative_to(cache_dir()):
        return {"in": "cache", "path": path.relative_to(cache_dir()).as_posix()}
    return {"in": "project", "path": path.relative_to(ROOT).as_posix()}


def located(artifact: dict[str, str]) -> Path:
    """Where an artifact of a record is on this machine."""
    return (cache_dir() if artifact["in"] == "cache" else ROOT) / artifact["path"]


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: enough to compare, and small to keep."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _device() -> str:
    return f"cpu ({platform.machine()}), {torch.get_num_threads()} threads"


def _git() -> str:
    """The commit, with + where files differ from it; empty outside a checkout."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed else "")
