"""How long runs will take, from how long runs like them took."""

import statistics
from typing import Any

from parlib.cli.plan import Planned
from parlib.experiments.params import Params
from parlib.experiments.registry import check
from parlib.records.store import REFERENCE, located, outputs, read_all

_AROUND = 15.0  # seconds of a run beside its training: kernel start, data, evaluation, figures


def expected_seconds(runs: list[Planned]) -> dict[str, float | None]:
    """How long each run took when it was last made here, else in the published one, else by what runs like it took for each
    pair that they saw; None where there is none like it.
    """
    if not runs:
        return {}
    scale = runs[0].params.scale
    made = [record for folder in (REFERENCE, outputs(scale)) for record in read_all(folder)]
    known = {record["run"]: record for record in made if record["params"]["scale"] == scale}  # what is published is small
    paces: dict[Any, list[float]] = {}
    for record in known.values():
        try:
            params = check(record["notebook"], record["params"])
        except ValueError:  # of an earlier version
            continue
        paces.setdefault(_kind(params), []).append(record["seconds"] / max(1, params.cost()))
    found: dict[str, float | None] = {}
    base = 0.0
    for run in runs:
        record, like = known.get(run.id), paces.get(_kind(run.params))
        seconds = record["seconds"] if record else statistics.median(like) * run.params.cost() if like else 0.0 if run.view else None
        if record and run.params.notebook == "01_poison" and not base and not located(record["artifacts"]["base_weights"]).exists():
            base = record["metrics"].get("base_seconds", 0.0)  # the first run that needs the base trains it
            seconds = (seconds or 0.0) + base
        found[run.id] = None if seconds is None else seconds + _AROUND
    return found


def _kind(params: Params) -> tuple[str, ...]:
    """Runs of one kind take the same time for a pair."""
    return params.notebook, str(getattr(params, "encoder", "")), str(getattr(params, "method", ""))
