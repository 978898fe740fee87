"""Records on disk: one JSON a run, from which the table and the figures are made."""

import json
from pathlib import Path
from typing import Any

from parlib.cache import ROOT, cache_dir
from parlib.params import Params


def outputs(scale: str) -> Path:
    """Where a scale's runs write: outputs/<scale>."""
    return ROOT / "outputs" / scale


def record_path(scale: str, run: str) -> Path:
    """The record of a run id."""
    return outputs(scale) / f"{run}.json"


def command(run: str, scale: str = "small") -> str:
    """The command that makes a run and all that it needs."""
    return f"python -m parlib.run params/{scale} --only {run}"


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
    if not other_params(path, params):
        return None
    aside = path.with_suffix(f".{read_file(path)['key'][:8]}.old")
    return path.rename(aside).relative_to(ROOT)


def other_params(path: Path, params: Params) -> dict[str, str]:
    """The parameters that a record on disk holds with other values than these; empty where there is no record.

    One that the record does not know is newer than it, and names no other run.
    """
    held = params.model_dump() | (read_file(path)["params"] if path.exists() else {})
    return {name: f"{held[name]} -> {value}" for name, value in params.model_dump().items() if held[name] != value}


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Records of all poisoned and cleaned models under a folder, in the order of their ids."""
    return [read_file(path) for path in sorted(folder.glob("0[1-4]_*/*.json"))]


def differences(record: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Headline metrics of a record minus another's, where they differ."""
    names = ("clean_accuracy", "attack_success_rate", "triggered_accuracy", "retrieval_asr", "tr_at_1", "ir_at_1")
    pairs = {name: (record["metrics"].get(name, 0.0), other["metrics"].get(name, 0.0)) for name in names}
    return {name: round(ours - theirs, 6) for name, (ours, theirs) in pairs.items() if ours != theirs}


def address(path: Path) -> dict[str, str]:
    """Where an artifact is, without naming this machine: relative to the cache or to the project."""
    if path.is_relative_to(cache_dir()):
        return {"in": "cache", "path": path.relative_to(cache_dir()).as_posix()}
    return {"in": "project", "path": path.relative_to(ROOT).as_posix()}


def located(artifact: dict[str, str]) -> Path:
    """Where an artifact of a record is on this machine."""
    return (cache_dir() if artifact["in"] == "cache" else ROOT) / artifact["path"]
