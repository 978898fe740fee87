"""How long the runs of a grid take on so many workers, by list scheduling: a free worker takes, of what can be made, the task on which the
longest chain of others waits.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
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
    lengths = {name: task.seconds for name, task in found.items()}
    for name in reversed([*_sorter(found).static_order()]):
        for need in found[name].needs & found.keys():
            lengths[need] = max(lengths[need], found[need].seconds + lengths[name])
    return lengths


def wall(found: Mapping[str, Task], workers: int) -> float:
    """Seconds until all tasks are done by so many workers, each of which makes one at a time."""
    first, waiting, now = chains(found), _sorter(found), 0.0
    waiting.prepare()
    ready: list[tuple[float, str]] = []
    running: list[tuple[float, str]] = []
    while waiting.is_active():
        for name in waiting.get_ready():
            heapq.heappush(ready, (-first[name], name))
        while ready and len(running) < workers:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + found[name].seconds, name))
        now, done = heapq.heappop(running)
        waiting.done(done)
    return now


def _sorter(found: Mapping[str, Task]) -> TopologicalSorter[str]:
    return TopologicalSorter({name: task.needs & found.keys() for name, task in found.items()})


def summary(found: Mapping[str, Task], workers: Iterable[int] = (1, 2, 4, 8, 16, 32)) -> list[dict[str, Any]]:
    """A row for each number of workers: hours in all, and how many times as fast as one worker."""
    alone = sum(task.seconds for task in found.values())
    return [{"workers": n, "hours": (seconds := wall(found, n)) / 3600, "times": alone / seconds if seconds else 1.0} for n in workers]
