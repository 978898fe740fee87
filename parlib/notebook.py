"""What every notebook begins and ends with: a run with checked parameters, its figures and its record."""

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from parlib.cache import ROOT, atomic_file, cache_dir, check_writable, file_sha256, versions
from parlib.data import Pairs
from parlib.ids import run_id
from parlib.keys import SCHEMA, inputs, key
from parlib.params import Attack, Params, check, literals
from parlib.records import address, differences, other_params, outputs, read_file, record_path
from parlib.train import Trained


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

    def file(self, name: str, path: Path) -> Path:
        """Keep a copy of a small file beside the record as <run>_<name> with its suffix; return where it is."""
        copy = outputs(self.params.scale) / f"{self.id}_{name}{path.suffix}"
        with atomic_file(copy) as temporary:
            shutil.copyfile(path, temporary)
        self.artifacts[name] = copy
        return copy

    def skipped(self, **sources: Trained | Pairs | None) -> None:
        """List the rows of others' data that couldn't be used beside the record, as <run>_skipped.jsonl, where there are any.

        sources: by what they are, in a word, models trained on such data, and images to evaluate on.
        """
        rows = []
        for name, source in sources.items():
            if found := source and source.skipped.get("rows"):
                print(f"{name}: skipped of {source.skipped['seen']} rows read: {source.skipped['kinds']}")
                rows += [{"in": name} | row for row in found]
        if rows:
            path = outputs(self.params.scale) / f"{self.id}_skipped.jsonl"
            with atomic_file(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            self.artifacts["skipped"] = path

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
            "artifacts": {name: address(path) | {"sha256": file_sha256(path)} for name, path in (self.artifacts | files).items()},
            "metrics": _rounded(metrics),
            "history": _rounded(history or {}),
            "seed": getattr(self.params, "seed", 0),
            "n": n,
            "seconds": round(seconds, 1),
            **({"timings": _rounded(timings)} if timings else {}),
            "device": _device(self.params),
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
    parameters; FileNotFoundError where an earlier run is missing; OSError when the outputs or the cache can't be written: all
    of it before any work is done.
    """
    params = check(notebook, literals(notebook, namespace))
    run = Run(notebook, run_id(notebook, params), params, inputs(params))
    path = record_path(params.scale, run.id)
    check_writable(path)
    if isinstance(params, Attack):  # which trains
        check_writable(cache_dir() / "models")
    if other := other_params(path, params):
        raise ValueError(f"{path} holds a run with other parameters ({other}); move it away first")
    print(f"run {run.id} at scale {params.scale}, on {_device(params)}")
    return run


def beside(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Another model's headline metrics, to stand in a record beside its own: <name>_clean_accuracy, <name>_asr, ..."""
    kept = ("clean_accuracy", "triggered_accuracy", "retrieval_asr")
    found = {f"{name}_{metric}": metrics[metric] for metric in kept if metric in metrics}
    return found | {f"{name}_asr": metrics["attack_success_rate"]}


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: enough to compare, and small to keep."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _device(params: Params) -> str:
    compute = getattr(params, "compute", None)
    if getattr(params, "gpus", 0) or (compute and compute.device == "cuda"):
        return f"{torch.cuda.get_device_name()} x {compute.processes if compute else params.gpus}"
    return f"cpu ({platform.machine()}), {torch.get_num_threads()} threads"


def _git() -> str:
    """The commit, with + where files differ from it; empty outside a checkout."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed else "")
