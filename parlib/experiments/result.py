"""What an experiment's function returns, and how it becomes a record: the same from a notebook, a grid, or a trial."""

import json
import platform
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from parlib.cache import ROOT, atomic_file, cache_dir, check_writable, file_sha256
from parlib.data.pairs import Pairs
from parlib.experiments.params import Params
from parlib.records.identity import differences as changes
from parlib.records.status import other_params
from parlib.records.store import SCHEMA, address, outputs, read_file, record_path
from parlib.train.cached import Trained
from parlib.train.compute import check_device


@dataclass
class Result:
    """What a run found.

    metrics and history are the same from run to run; timings are not. files: artifacts by name; tables: kept beside the record as csv.
    n: images evaluated on. record: where it was read from one.
    """

    params: Any  # of the experiment's own class
    metrics: dict[str, Any]
    n: int
    seconds: float = 0.0
    history: dict[str, list[Any]] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    skipped: dict[str, Trained | Pairs | None] = field(default_factory=dict)
    record: dict[str, Any] | None = None


def prepare(params: Params) -> dict[str, Any]:
    """What a run is made of. Raise, before any work is done, ValueError where the record of this id is another run's, or a GPU is asked for
    that is not there; FileNotFoundError where what a run builds on is missing; and OSError where outputs or cache can't be written.
    """
    if (compute := getattr(params, "compute", None)) is not None:
        check_device(compute)
    identity = params.identity()
    path = record_path(params.scale, params.id)
    check_writable(path)
    check_writable(cache_dir() / "models")
    if path.exists() and (other := other_params(read_file(path), params)):
        raise ValueError(f"{path} holds a run with other parameters ({', '.join(other)}); move it away first")
    return identity


def save(result: Result, made_of: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the record of a result, atomically, and what it keeps beside itself; return the record. RuntimeError where what the run builds
    on is no longer what it was made of.
    """
    if result.record is not None:
        return result.record
    params = result.params
    identity = params.identity()
    if made_of is not None and (changed := changes(made_of, identity)):
        raise RuntimeError(f"what {params.id} builds on was made again while it ran ({', '.join(changed)}): start it again")
    beside, path = outputs(params.scale) / params.id, record_path(params.scale, params.id)
    files = {name: _kept(file, beside, name) for name, file in result.files.items()}
    for name, frame in result.tables.items():
        files[name] = beside.with_name(f"{beside.name}_{name}.csv")
        with atomic_file(files[name]) as temporary:
            frame.to_csv(temporary, index=False)
    if rows := _skipped_rows(result.skipped):
        files["skipped"] = beside.with_name(f"{beside.name}_skipped.jsonl")
        with atomic_file(files["skipped"]) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = read_file(path) if path.exists() else None
    record = {
        "schema": SCHEMA,
        "run": params.id,
        "notebook": params.notebook,
        "experiment": params.experiment or (before or {}).get("experiment", ""),
        "params": params.model_dump(exclude={"experiment"}),
        "identity": identity,
        "made_from": {name: found.run for name, found in params.inputs().items()},
        "artifacts": {name: address(file) | {"sha256": file_sha256(file)} for name, file in files.items()},
        "metrics": rounded(result.metrics),
        "history": rounded(result.history),
        "n": result.n,
        "seconds": round(result.seconds, 1),
        **({"timings": rounded(result.timings)} if result.timings else {}),
        "provenance": {"git": _git(), "python": platform.python_version(), "device": device(params), "threads": torch.get_num_threads()},
    }
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    if before and before["identity"] == record["identity"]:
        ours, theirs = record["metrics"], before["metrics"]
        names = sorted(name for name in {*ours, *theirs} - {"base_seconds"} if ours.get(name) != theirs.get(name))
        others = ", ".join(f"{name} {ours.get(name)} (was {theirs.get(name)})" for name in names)
        print(f"differs from the earlier record in {others}" if others else "equal to the earlier record of this run")
    print(f"record: {path.relative_to(ROOT)}")
    return record


def _kept(file: Path, beside: Path, name: str) -> Path:
    """Where an artifact stays: in the cache if it is weights or a poisoned copy, else as a copy beside the record."""
    if file.is_relative_to(cache_dir() / "models") or file.is_relative_to(cache_dir() / "poisoned"):
        return file
    copy = beside.with_name(f"{beside.name}_{name}{file.suffix}")
    with atomic_file(copy) as temporary:
        shutil.copyfile(file, temporary)
    return copy


def _skipped_rows(sources: dict[str, Trained | Pairs | None]) -> list[dict[str, str]]:
    """The rows of external data that couldn't be used."""
    rows = []
    for name, source in sources.items():
        if source is not None and (found := source.skipped.get("rows")):
            print(f"{name}: skipped of {source.skipped['seen']} rows read: {source.skipped['kinds']}")
            rows += [{"in": name} | row for row in found]
    return rows


def beside(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Another model's headline metrics, to stand in a record beside its own: <name>_clean_accuracy, <name>_asr, ..."""
    kept = ("clean_accuracy", "clean_accuracy_seen", "clean_accuracy_unseen", "triggered_accuracy", "retrieval_asr")
    found = {f"{name}_{metric}": metrics[metric] for metric in kept if metric in metrics}
    return found | {f"{name}_asr": metrics["attack_success_rate"]}


def rounded(value: Any) -> Any:
    """Floats to six significant digits: enough to compare, and small to keep."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def device(params: Params) -> str:
    """What a run computes on."""
    compute = getattr(params, "compute", None)
    if getattr(params, "gpus", 0) or (compute and compute.device == "cuda"):
        return f"{torch.cuda.get_device_name()} x {compute.processes if compute else getattr(params, 'gpus', 1)}"
    return f"cpu ({platform.machine()}, {_processor()})"


def _processor() -> str:
    """The kind of CPU, as far as sums may be rounded otherwise on another: its name, family and model, and the instructions torch takes."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    said = f"{found.get('model name') or platform.processor() or 'unknown'}"
    said += "".join(f" {word} {found[name]}" for word, name in (("family", "cpu family"), ("model", "model")) if name in found)
    return f"{said}, {torch.backends.cpu.get_cpu_capability()}"


def _git() -> str:
    """The commit, with + where files differ from it; empty outside a checkout."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed else "")
