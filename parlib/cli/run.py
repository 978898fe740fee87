"""The runner: `python -m parlib.run params/small [--only ID ...]` makes the runs that are missing or stale, in order.

A run is a notebook and its parameters; --functions calls the experiment's function instead: the same record, without a kernel, an
executed notebook and figures.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parlib.cli.plan import Planned


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m parlib.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("params", type=Path, help="a folder of parameter files such as params/small, or one file")
    add("--only", nargs="+", metavar="ID", help="make these runs and what they need, such as 02_clean/par_badnet_stripes_s0")
    add("--functions", action="store_true", help="call the experiments' functions instead of running notebooks")
    add("--jobs", type=int, default=0, metavar="N", help="with --functions: runs at once, on Ray (default 1; on a cluster: what it bears)")
    add("--threads", type=int, default=0, metavar="N", help="threads of a run with --jobs (default: the CPUs, shared out)")
    add("--ray-address", default="", metavar="ADDRESS", help="with --functions: a running cluster, such as auto, that shares this folder")
    add("--schedule", action="store_true", help="say how long it takes on 1 to 32 workers, by the seconds on record, and do nothing")
    add("--list", action="store_true", help="say what there is to do and why, and do nothing")
    add("--dry-run", action="store_true", help="look at checkpoint, data, disk, time and memory, and train nothing")
    add("--prepare", type=Path, metavar="FOLDER", help="write the notebooks of what is not done there, with their parameters, unexecuted")
    asked = parser.parse_args(arguments)
    os.environ.setdefault("PAR_PROGRESS", "bar" if sys.stdout.isatty() else "lines")
    try:
        status = _do(asked)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as --list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, RuntimeError, OSError, FloatingPointError) as error:  # the last: a training that diverged
        print(f"error: {error}", file=sys.stderr)
        return 1


def _do(asked: argparse.Namespace) -> int:
    """What the command line asks for; imports are here, so that --help answers at once."""
    from parlib.cache import check_surroundings
    from parlib.cli.plan import choose, needs_of, plan, with_needs

    check_surroundings()
    planned = plan(asked.params)
    wanted = choose(planned, asked.only) if asked.only else planned
    runs = with_needs(wanted, planned)
    if asked.prepare:
        from parlib.cli.notebooks import prepare

        prepare(runs, asked.prepare)
    elif asked.dry_run:
        from parlib.cli.dry_run import dry_run

        return dry_run([run for run in runs if run in wanted or run.state() != "done"], needs_of(runs))
    elif asked.list:
        for run in runs:
            print(f"{run.id}: {run.state()}")
    elif asked.schedule:
        from parlib.cli.make import say_schedule

        say_schedule(runs)
    else:
        _make(asked, runs)
    return 0


def _make(asked: argparse.Namespace, runs: list["Planned"]) -> None:
    """Make the runs: in a folder that no other runner writes to, on CPUs that no other runner of this cache uses."""
    import torch

    from parlib.cache import lock
    from parlib.cli import make, together
    from parlib.records.store import outputs

    several, doing = asked.jobs > 1 or asked.ray_address, f"python -m parlib.run {asked.params.name}"
    if several and not asked.functions:
        raise ValueError("--jobs and --ray-address are for --functions: notebooks run one at a time")
    on_gpu = all(getattr(getattr(run.params, "compute", None), "device", "cpu") == "cuda" for run in runs if not run.view)
    held = 1 if on_gpu or asked.ray_address else torch.get_num_threads()
    if asked.jobs > 1 and not asked.ray_address:
        held = asked.jobs * asked.threads or os.cpu_count() or 1
    with lock(outputs(runs[0].params.scale) / ".lock", wait=False, doing=doing), together.cpus(held, doing):
        if several:
            together.make_together(runs, jobs=asked.jobs, threads=asked.threads, address=asked.ray_address)
        else:
            make.make_all(runs, functions=asked.functions)
    make.show(runs)
