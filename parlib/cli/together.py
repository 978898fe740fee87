"""Several runs at once, on this machine or on a cluster, by Ray; and runners that share a machine's CPUs."""

import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from parlib.cache import ROOT, cache_dir, lock
from parlib.cli.make import expected_seconds, make_room
from parlib.cli.plan import Planned, needs_of
from parlib.experiments import registry
from parlib.experiments.params import Params
from parlib.progress import progress
from parlib.report.schedule import Task, chains, wall
from parlib.train.compute import Compute
from parlib.train.ray import ray_running

_RETRIES = 3  # times that a run is made again whose worker died


def make_together(runs: list[Planned], *, jobs: int = 0, threads: int = 0, address: str = "") -> None:
    """Make what is missing or stale by its function, `jobs` runs at a time (0: as many as the CPUs bear) with `threads` each (0: the CPUs,
    shared out): what others build on before them, the longest chain first. A run whose worker died is made again. address: a running
    cluster, which shares this checkout and the cache; else a Ray of our own. RuntimeError, naming one, where runs failed, once all others
    are made.
    """
    import ray

    if address and not threads:
        raise ValueError("--ray-address wants --threads, such as 2, the published runs' number: on another one results differ by rounding")
    threads = threads or max(1, (os.cpu_count() or 1) // max(1, jobs))
    with ray_running(address, cpus=threads, gpus=0, of="a run", checkout=True):
        there = int(ray.cluster_resources().get("CPU", 1))
        jobs = jobs or max(1, there // threads)
        # A sweep takes no CPU itself: its trials take theirs. Where more runs are asked for than the CPUs bear, Ray does not count them.
        task: Any = ray.remote(max_retries=_RETRIES)(_make)
        held = threads if jobs * threads <= there else 0
        gpus, at_once = ray.cluster_resources().get("GPU", 0), min(jobs, sum(not _spreads(run) for run in runs))

        def ask(run: Planned):
            cpus_held, share = (0, 0) if _spreads(run) else (held, _gpu_share(run.params, at_once, gpus))
            return task.options(num_cpus=cpus_held, num_gpus=share).remote(run.params, threads, str(ROOT))

        print(f"{len(runs)} runs, {jobs} at a time with {threads} threads each", flush=True)
        failed = _in_order([run for run in runs if not run.view], jobs, ask)
    if failed:
        run, why = next(iter(failed.items()))
        raise RuntimeError(f"{len(failed)} runs failed, such as {run}: {why}; the same command tries them again")


def _in_order(runs: list[Planned], jobs: int, ask) -> dict[str, str]:
    """Ask for each run once what it builds on is there; return those that failed, and why."""
    import ray

    needs, seconds = needs_of(runs), expected_seconds(runs)
    found = {run.id: Task(seconds[run.id] or 0.0, frozenset(needs[run.id])) for run in runs}
    first = chains(found)
    waiting, asked, failed = sorted(runs, key=lambda run: -first[run.id]), {}, {}
    bar = progress(title="runs", total=len(runs), unit="runs")
    while waiting or asked:
        for run in list(waiting):
            if lacking := needs[run.id] & failed.keys():
                failed[run.id] = f"it builds on {min(lacking)}"
            elif needs[run.id] & {one.id for one in [*waiting, *asked.values()]}:
                continue
            elif run.state() != "done":
                if not _spreads(run) and sum(not _spreads(one) for one in asked.values()) >= jobs:
                    continue
                make_room(run)
                asked[ask(run)] = run
                waiting.remove(run)
                continue
            waiting.remove(run)
            bar.update()
        if asked:
            (done, *_), _ = ray.wait(list(asked), num_returns=1)
            run = asked.pop(done)
            try:
                ray.get(done)
            except Exception as error:  # whatever it is, the others go on
                failed[run.id] = " ".join(str(error).split())[-200:]
            left = {one.id: found[one.id] for one in [*waiting, *asked.values()]}
            bar.set_postfix_str(f"about {wall(left, jobs) / 60:.0f} min left", refresh=False)
            bar.update()
    bar.close()
    return failed


def _spreads(run: Planned) -> bool:
    """Whether a run is many trials, which Ray shares out."""
    return len(run.params.trials()) > 1 or bool(getattr(run.params, "search", ""))


def _gpu_share(params: Params, at_once: int, gpus: float) -> float:
    """What a run takes of a GPU, so that so many spread over all: 1 / the runs of each. 0 on the CPU, and where its own processes
    take theirs.
    """
    compute: Compute | None = getattr(params, "compute", None)
    if compute is None or compute.device != "cuda" or compute.processes > 1 or not gpus:
        return 0
    return 1 / math.ceil(at_once / gpus)


def _make(params: Params, threads: int, root: str) -> str:
    if str(ROOT) != root:  # its records would go elsewhere
        raise RuntimeError(f"a worker has its parlib in {ROOT}: all machines of a cluster must see this checkout as {root}")
    torch.set_num_threads(threads)
    return registry.make(params)["run"]


@contextmanager
def cpus(count: int, doing: str) -> Iterator[None]:
    """Hold so many of this machine's CPUs among the runners of one cache; wait, and say so, while others hold them. Two trainings of two
    threads each on two CPUs wait for each other's threads, and take many times as long as one after another.
    """
    folder, have = cache_dir() / "cpus" / platform.node(), os.cpu_count() or 1
    with ExitStack() as held:
        with lock(folder / "next.lock", wait=True, doing=doing):  # the first to wait is the first to start
            said = False
            while True:
                with ExitStack() as found:
                    others, got = [], 0
                    for i in range(have):
                        try:
                            found.enter_context(lock(folder / f"{i}.lock", wait=False, doing=doing))
                        except RuntimeError as error:
                            others.append(str(error).partition(" is at work")[0])
                            continue
                        got += 1
                        if got >= min(count, have):
                            held.push(found.pop_all())
                            break
                    else:
                        if not said:
                            print(f"waiting for {', '.join(dict.fromkeys(others))}: of {have} CPUs here {count} are wanted", flush=True)
                            said = True
                if got >= min(count, have):
                    break
                time.sleep(2)
        yield
