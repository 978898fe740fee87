"""Records on disk: one JSON a run, from which tables and figures are made."""

import json
import re
from pathlib import Path
from typing import Any

from parlib.cache import ROOT, cache_dir, file_sha256

SCHEMA = 2
REFERENCE = ROOT / "outputs" / "reference"  # what was published
ELSEWHERE = ROOT / "outputs" / "elsewhere"  # records of another kind of machine, which beside those say how far a run is a draw


def outputs(scale: str) -> Path:
    """Where a scale's runs write: outputs/<scale>."""
    return ROOT / "outputs" / scale


def record_path(scale: str, run: str) -> Path:
    return outputs(scale) / f"{run}.json"


def command(run: str, scale: str = "small") -> str:
    """The command that makes a run and all that it needs; what its user has named (`label`) stands in params/own."""
    labelled = "/" in run and "_" not in run.partition("/")[2]
    return f"python -m parlib.run params/{'own' if labelled else scale} --only {run}"


def read(scale: str, run: str) -> dict[str, Any]:
    """A run's record; FileNotFoundError naming the command that makes it; ValueError where it is no run's name."""
    if not re.match(r"\d\d_\w+(/.|$)", run):
        forms = "where one can stand here, file:PATH, local-dir:PATH, hf-hub:ID or open_clip:NAME:TAG"
        raise ValueError(f"{run!r} is no run, such as 02_clean/mine; a checkpoint is named, {forms}")
    path = record_path(scale, run)
    if not path.exists():
        raise FileNotFoundError(f"{run} has not been run yet; make it with: {command(run, scale)}")
    return read_file(path)


def read_file(path: Path) -> dict[str, Any]:
    """A record from its file; ValueError naming the file when it is none."""
    try:
        record = json.loads(path.read_text())
        if record["schema"] != SCHEMA:
            raise ValueError(f"its schema is {record['schema']}, not {SCHEMA}")
        _ = record["params"], record["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record ({type(error).__name__}: {error}); delete it and run it again") from None
    return record


def record_files(folder: Path) -> list[Path]:
    """The files of all records under a folder, in the order of their ids."""
    return sorted(folder.glob("[0-9][0-9]_*/*.json"))


def read_all(folder: Path) -> list[dict[str, Any]]:
    """All records under a folder, in the order of their ids."""
    return [read_file(path) for path in record_files(folder)]


def differences(record: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Headline metrics of a record minus another's, where they differ."""
    names = ("clean_accuracy", "attack_success_rate", "triggered_accuracy", "retrieval_asr", "tr_at_1", "ir_at_1")
    pairs = {name: (record["metrics"].get(name, 0.0), other["metrics"].get(name, 0.0)) for name in names}
    return {name: round(ours - theirs, 6) for name, (ours, theirs) in pairs.items() if ours != theirs}


def same_machine(record: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records were made with as many threads on one kind of machine, on which a training ends with the same bits. Where one
    does not name the kind of CPU, they were if both start from the same weights.
    """
    ours, theirs = ((one["provenance"]["device"], one["provenance"]["threads"]) for one in (record, other))
    start, others = (one["artifacts"].get("base_weights", {}).get("sha256") or one["identity"]["inputs"] for one in (record, other))
    longer, shorter = sorted((ours[0], theirs[0]), key=len, reverse=True)
    return ours == theirs or (ours[1] == theirs[1] and longer.startswith(f"{shorter.removesuffix(')')}, ") and start == others)


def address(path: Path) -> dict[str, str]:
    """Where an artifact is, without naming this machine: relative to the cache or to the project."""
    if path.is_relative_to(cache_dir()):
        return {"in": "cache", "path": path.relative_to(cache_dir()).as_posix()}
    return {"in": "project", "path": path.relative_to(ROOT).as_posix()}


def located(artifact: dict[str, str]) -> Path:
    """Where an artifact of a record is on this machine."""
    return (cache_dir() if artifact["in"] == "cache" else ROOT) / artifact["path"]


def artifact_file(record: dict[str, Any], name: str) -> Path:
    """The file of a record's artifact; FileNotFoundError, naming the command that makes it, where it is gone or another one, ValueError
    where the record names no such artifact.
    """
    run, artifacts, said = record["run"], record["artifacts"], name.replace("_", " ")
    if name not in artifacts:
        raise ValueError(f"{run} keeps no {said}; it keeps: {', '.join(artifacts) or 'nothing'}")
    path = located(artifacts[name])
    if not path.exists() or file_sha256(path) != artifacts[name]["sha256"]:
        remedy = command(run, record["params"]["scale"])
        raise FileNotFoundError(f"the {said} of {run} are gone or damaged; make them again with: {remedy}")
    return path


def move_aside(path: Path) -> Path:
    """Keep a record under another name, and say which; with it what lies beside it, under names that end alike."""
    end, artifacts = f".{file_sha256(path)[:8]}.old", read_file(path)["artifacts"].values()
    beside = [located(artifact) for artifact in artifacts if artifact["in"] == "project"] + [path.with_suffix(".ipynb")]
    for file in beside:
        if file.exists() and file.parent == path.parent:
            file.rename(file.with_name(file.name + end))
    return path.rename(path.with_suffix(end)).relative_to(ROOT)
