"""The runner: `python -m parlib.run params/small [--only ID ...]` makes the runs that are missing or stale, in order.

A run is a notebook and its parameters; --functions calls the experiment's function instead: the same record, without a kernel, an
executed notebook and figures.
"""

import argparse
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m parlib.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("params", type=Path, help="a folder of parameter files such as params/small, or one file")
    add("--only", nargs="+", metavar="ID", help="make these runs and what they need, such as 02_clean/par_badnet_stripes_s0")
    add("--functions", action="store_true", help="call the experiments' functions instead of running notebooks")
    add("--jobs", type=int, default=1, metavar="N", help="with --functions: runs at once, on Ray (default 1)")
    add("--threads", type=int, default=0, metavar="N", help="threads of a run with --jobs (default: the CPUs, shared out)")
    add("--list", action="store_true", help="say what there is to do and why, and do nothing")
    add("--dry-run", action="store_true", help="look at checkpoint, data, disk, time and memory, and train nothing")
    add("--prepare", type=Path, metavar="FOLDER", help="write the notebooks with their parameters there, unexecuted")
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
    from parlib.cli.plan import choose, plan, with_needs

    check_surroundings()
    planned = plan(asked.params)
    wanted = choose(planned, asked.only) if asked.only else planned
    runs = with_needs(wanted, planned)
    if asked.prepare:
        from parlib.cli.notebooks import prepare

        prepare(runs, asked.prepare)
    elif asked.dry_run:
        from parlib.cli.dry_run import dry_run

        return dry_run(wanted)
    elif asked.list:
        for run in runs:
            print(f"{run.id}: {run.state()}")
    else:
        from parlib.cache import lock
        from parlib.cli import make
        from parlib.records.store import outputs

        if asked.jobs > 1 and not asked.functions:
            raise ValueError("--jobs is for --functions: notebooks run one at a time")
        with lock(outputs(runs[0].params.scale) / ".lock", wait=False, doing="python -m parlib.run"):
            if asked.jobs > 1:
                make.make_together(runs, jobs=asked.jobs, threads=asked.threads)
            else:
                make.make_all(runs, functions=asked.functions)
        make.show(runs)
    return 0
