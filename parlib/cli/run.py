"""The runner: `python -m parlib.run params/small [--only ID ...]` makes the runs that are missing or stale, in order.

A run is a notebook and its parameters; --functions calls the experiment's function instead: the same record, without a kernel, an
executed notebook and figures.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where they are used: --help answers at once
    from parlib.cli.plan import Planned


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m parlib.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("params", type=Path, help="a folder of parameter files such as params/small, or one file")
    parser.add_argument(
        "--only", nargs="+", metavar="ID", help="make these runs and what they need, such as 02_clean/par_badnet_stripes_s0"
    )
    parser.add_argument("--functions", action="store_true", help="call the experiments' functions instead of running notebooks")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="with --functions: runs at once, on Ray (default 1)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads of a run with --jobs (default: the CPUs, shared out)")
    parser.add_argument("--list", action="store_true", help="say what there is to do and why, and do nothing")
    parser.add_argument("--dry-run", action="store_true", help="look at checkpoint, data, disk, time and memory, and train nothing")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write the notebooks with their parameters there, unexecuted")
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
    from parlib.cli.plan import choose, plan, with_needs

    planned = plan(asked.params)
    wanted = choose(planned, asked.only) if asked.only else planned
    runs = with_needs(wanted, planned)
    if asked.prepare:
        from parlib.cli import notebooks

        notebooks.prepare(runs, asked.prepare)
    elif asked.dry_run:
        from parlib.cli.dry_run import dry_run

        return dry_run(wanted)
    elif asked.list:
        for run in runs:
            print(f"{run.id}: {run.state()}")
    else:
        from parlib.cache import lock
        from parlib.cli.summary import show
        from parlib.records.store import outputs

        if asked.jobs > 1 and not asked.functions:
            raise ValueError("--jobs is for --functions: notebooks run one at a time")
        with lock(outputs(runs[0].params.scale) / ".lock", wait=False, doing="python -m parlib.run"):
            make_all(runs, asked)
        show(runs)
    return 0


def make_all(runs: list["Planned"], asked: argparse.Namespace) -> None:
    """Make what is missing or stale, with progress and the time left."""
    from parlib.cli import notebooks
    from parlib.cli.seconds import expected_seconds
    from parlib.experiments.registry import make
    from parlib.records.status import other_params
    from parlib.records.store import move_aside, read_file, record_path

    if asked.jobs > 1:
        from parlib.cli.jobs import make_together

        return make_together(runs, jobs=asked.jobs, threads=asked.threads)
    waiting = expected_seconds([run for run in runs if run.state() != "done"])
    began = time.monotonic()
    for i, run in enumerate(runs):
        state = run.state()
        if state == "done" or (run.view and asked.functions):
            print(f"[{i + 1}/{len(runs)}] {run.id}: {state}", flush=True)
            continue
        left = [waiting.get(run.id)] + [waiting[later.id] for later in runs[i + 1 :] if later.id in waiting]
        total = sum(seconds for seconds in left if seconds is not None)
        about = f", about {total / 60:.0f} min left" if total else ""
        unknown = f", {left.count(None)} of unknown length" if None in left else ""
        so_far = f"{(time.monotonic() - began) / 60:.0f} min so far{about}{unknown}"
        print(f"[{i + 1}/{len(runs)}] {run.id}: {state}; running it ({so_far})", flush=True)
        path = record_path(run.params.scale, run.id)
        if path.exists() and other_params(read_file(path), run.params):
            print(f"a record of the same name with other parameters is now {move_aside(path)}", flush=True)
        if asked.functions:
            make(run.params)
        else:
            notebooks.execute(run)
    return None
