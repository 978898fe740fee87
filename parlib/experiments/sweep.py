"""Experiment 03: many cleanings at once on Ray Tune: grids, or Optuna's suggestions, over any parameter of 02, and its data."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch

from parlib.experiments.clean import known_backdoor
from parlib.experiments.result import Result
from parlib.experiments.trials import Cleanings, Material, Sweep, gather
from parlib.experiments.tune import failures, run_trials
from parlib.measure.selection import rule_and_best
from parlib.measure.tradeoff import area, below, curves, ended
from parlib.method.methods import rewording
from parlib.records.status import state
from parlib.records.store import read
from parlib.train.loop import fit


@dataclass(frozen=True)
class Sweeping:
    """A sweep's table, a row a trial in the order of the grids, and what it says: trade-off curves, their areas, the rule for tau."""

    result: Result
    trials: pd.DataFrame

    @property
    def ended(self) -> pd.DataFrame:
        """The trials that ran to their end."""
        return ended(self.trials)

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        return curves(self.ended) if getattr(self.result.params, "search", "grid") == "grid" else {}

    @property
    def areas(self) -> pd.DataFrame:
        """Each curve's area, and the share of the clean accuracies that both attain at which it lies below each other curve."""
        return pd.DataFrame(_shares(self.curves), dtype=float).T.add_prefix("below ").assign(area=_areas(self.curves)).rename_axis("curve")

    @property
    def advice(self) -> pd.DataFrame:
        """What the rule for tau takes on each curve, beside the best in hindsight."""
        return rule_and_best(self.curves)


def _areas(traced: dict[str, pd.DataFrame]) -> dict[str, float]:
    return {label: area(curve) for label, curve in traced.items()}


def _shares(traced: dict[str, pd.DataFrame]) -> dict[str, dict[str, float | None]]:
    return {label: {other: below(curve, traced[other]) for other in traced if other != label} for label, curve in traced.items()}


def sweep(params: Sweep) -> Sweeping:
    """All trials, on Ray. A sweep whose record is there, of today's versions, is read from it.

    Raises RuntimeError, naming them, when trials have failed (one that diverged has not), once all others are in the cache.
    """
    if (found := recorded(params)) is not None:
        return Sweeping(found, table_of(found))
    trials = params.trials()
    material = gather(trials)
    table, seconds = run_trials(params, trials, material)
    failures(table)
    cost = overhead(params, material, table, seconds) if params.alone else {}
    result = Result(params, metrics={}, n=params.eval_scenes, seconds=seconds, timings=cost)
    result.history, result.timings["seconds"] = columns(table.drop(columns="seconds")), columns(table)["seconds"]
    found = Sweeping(result, table)
    result.metrics |= {f"area_{label}": value for label, value in _areas(found.curves).items()}
    result.metrics |= {"below": _shares(found.curves), "rule": found.advice.to_dict("records")}
    result.tables |= {"trials": table.drop(columns="seconds"), "areas": found.areas.reset_index(), "advice": found.advice}
    return found


def recorded(params: Cleanings) -> Result | None:
    """The result of a run as its record holds it; None where it is missing or stale. Artifacts may be away: it is the table that counts."""
    reason = state(params)
    if reason != "done" and not reason.startswith("its "):
        return None
    record = read(params.scale, params.id)
    print(f"read from the record of {params.id}; delete it to train anew", flush=True)
    kept = {name: record[name] for name in ("metrics", "n", "seconds", "history", "timings")}
    return Result(params, record=record, **kept)


def table_of(result: Result) -> pd.DataFrame:
    return pd.DataFrame(result.history).assign(seconds=result.timings["seconds"])


def columns(trials: pd.DataFrame) -> dict[str, list]:
    """A table as columns for a record: None where a trial has no value."""
    return trials.astype(object).where(trials.notna(), None).to_dict("list")


def overhead(params: Sweep, material: Material, trials: pd.DataFrame, wall: float) -> dict[str, Any]:
    """What Ray costs: the wall time of a sweep against the same trainings in a plain loop, shared among the workers.

    The loop is timed by its first training, without Ray and cache, on a trial's threads with nothing beside it. loop_seconds: of the
    whole loop; overhead: the share of the wall time beyond loop_seconds / workers. Empty where that says nothing: off this machine's
    CPUs, for trials that differ in length, and where trials were read from the cache, as their time is then not the sweep's.
    """
    workers = max(1, (os.cpu_count() or 1) // params.cpus)
    unlike = trials[["method", "data", "pairs", "epochs", "steps", "batch"]].drop_duplicates()
    if params.ray_address or params.gpus or len(unlike) > 1 or trials["stopped"].any() or (trials["error"] != "").any():
        return {}
    if params.search == "optuna" or wall < trials["seconds"].sum() / workers:
        return {}
    first = params.trials()[0]
    before = material.subjects[first.attacked_model]
    threads = torch.get_num_threads()
    feed = material.pairs[first.clean_set].feed(before.clip, rewording(first.recipe()), first.seed)
    torch.set_num_threads(params.cpus)
    try:
        backdoor = known_backdoor(first, before, material.inverted.get(first.inverted_set))
        given: dict[str, Any] = {"reference": before.clip, "backdoor": backdoor, "watch": before.watched}
        _, seconds = fit(before.clip.copy(), feed, first.recipe(), title="alone", **given)
    finally:
        torch.set_num_threads(threads)
    loop = seconds * len(trials)
    return {"wall_seconds": wall, "loop_seconds": loop, "workers": workers, "overhead": 1 - loop / workers / wall}
