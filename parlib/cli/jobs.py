"""A grid as many runs at once on Ray: each calls its experiment's function, as one machine would, with a set number of threads."""

import os

import torch

from parlib.cli.plan import Planned
from parlib.experiments.params import Params
from parlib.experiments.registry import make
from parlib.progress import progress
from parlib.train.ray import ray_running


def make_together(runs: list[Planned], *, jobs: int, threads: int = 0) -> None:
    """Make what is missing or stale, `jobs` runs at a time with `threads` each (0: the CPUs, shared out): first what others build on.

    Records are those of one machine with as many threads. RuntimeError, naming them, where runs failed, once all others are made.
    """
    import ray

    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    failed: dict[str, str] = {}
    with ray_running("", cpus=threads, gpus=0, of="a run", talk=False):
        task = ray.remote(num_cpus=0, max_retries=1)(_make)  # how many run at once is counted here
        for notebook in dict.fromkeys(run.params.notebook for run in runs if not run.view):
            waiting = [run for run in runs if run.params.notebook == notebook and run.state() != "done"]
            bar, asked = progress(title=notebook, total=len(waiting), unit="runs"), {}
            while waiting or asked:
                while waiting and len(asked) < jobs:
                    next_run = waiting.pop(0)
                    asked[task.remote(next_run.params, threads)] = next_run.id
                (done, *_), _ = ray.wait(list(asked), num_returns=1)
                run = asked.pop(done)
                try:
                    ray.get(done)
                except Exception as error:  # whatever it is, the others go on
                    failed[run] = " ".join(str(error).split())[-200:]
                bar.update()
            bar.close()
    if failed:
        run, why = next(iter(failed.items()))
        raise RuntimeError(f"{len(failed)} runs failed, such as {run}: {why}; the same command tries them again")


def _make(params: Params, threads: int) -> str:
    torch.set_num_threads(threads)
    return make(params)["run"]
