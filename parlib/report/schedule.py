"""How long the runs of a grid take on so many workers, by list scheduling: a free worker takes, of what can be made, the task on which the
longest chain of others waits.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """One training. seconds: as long as it took; needs: the names of the tasks that it builds on."""

    seconds: float
    needs: frozenset[str] = frozenset()


def trainings_of(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What a record trained, of a sweep all trials: what names each training, and its seconds. The weights that it made name it; where a
    share of the poisoned weights was given back its seconds do, as several results then share one training.
    """
    if "timings" in record:
        names, seconds = record["history"]["weights"], record["timings"]["seconds"]
        shares = record["history"].get("interpolation") or [0.0] * len(names)
    else:
        names = [record["artifacts"]["weights"]["sha256"] if "weights" in record["artifacts"] else record["run"]]
        seconds, shares = [record["seconds"]], [record["params"].get("interpolation")]
    return [(str(time) if share and name else name, time) for name, time, share in zip(names, seconds, shares, strict=True)]


def tasks(records: Iterable[Mapping[str, Any]]) -> dict[str, Task]:
    """Every training behind these records once, by the sha256 of the weights that it made: bases, poisoned and cleaned models, and the
    trials of sweeps. What builds on a record that is not among them waits for nothing.
    """
    records = list(records)
    made = {record["run"]: record["artifacts"]["weights"]["sha256"] for record in records if "weights" in record["artifacts"]}
    found: dict[str, Task] = {}
    for record in records:
        needs = frozenset(made[run] for run in record["made_from"].values() if run in made)
        if "base_weights" in record["artifacts"]:
            base = record["artifacts"]["base_weights"]["sha256"]
            found.setdefault(base, Task(record["metrics"].get("base_seconds", 0.0)))
            needs |= {base}
        for training, seconds in trainings_of(record):
            if training and seconds is not None:  # of a trial that failed there are none
                found.setdefault(training, Task(seconds, needs - {training}))
    return found


def chains(found: Mapping[str, Task]) -> dict[str, float]:
    """Of each task the seconds from its start to the end of the longest chain that begins with it."""
    after: dict[str, list[str]] = {name: [] for name in found}
    for name, task in found.items():
        for need in task.needs & found.keys():
            after[need].append(name)
    lengths: dict[str, float] = {}

    def length(name: str) -> float:
        if name not in lengths:
            lengths[name] = found[name].seconds + max(map(length, after[name]), default=0.0)
        return lengths[name]

    return {name: length(name) for name in found}


def wall(found: Mapping[str, Task], workers: int) -> float:
    """Seconds until all tasks are done by so many workers, each of which makes one at a time."""
    first, waits = chains(found), {name: set(task.needs & found.keys()) for name, task in found.items()}
    ready = [(-first[name], name) for name, needs in waits.items() if not needs]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + found[name].seconds, name))
        now, done = heapq.heappop(running)
        for name, needs in waits.items():
            if done in needs:
                needs.remove(done)
                if not needs:
                    heapq.heappush(ready, (-first[name], name))
    return now


def summary(found: Mapping[str, Task], workers: Iterable[int] = (1, 2, 4, 8, 16, 32)) -> list[dict[str, Any]]:
    """A row for each number of workers: hours in all, and how many times as fast as one worker."""
    alone = sum(task.seconds for task in found.values())
    return [{"workers": n, "hours": (seconds := wall(found, n)) / 3600, "times": alone / seconds if seconds else 1.0} for n in workers]
