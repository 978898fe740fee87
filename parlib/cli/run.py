"""The runner: `python -m parlib.cli.run params/small [--only ID ...]` executes the runs that are missing or stale, in order.

A run is a notebook and its parameters. Lists in a parameter file are axes: one run for each combination.
"""

import argparse
import itertools
import logging
import os
import re
import statistics
import sys
import time
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_origin

import papermill
import yaml
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from parlib import keys, lineage, records, report, tables
from parlib.cache import ROOT, lock
from parlib.model.checkpoints import SOURCES
from parlib.experiments.grids import distinct_attacks, expand
from parlib.experiments.ids import run_id, scale_defaults, specific
from parlib.records.status import notebook_path
from parlib.method.methods import METHODS
from parlib.experiments.params import NOTEBOOKS, Clean, Params, Poison, Sweep, check
from parlib.attack.triggers import TRIGGERS

_AROUND = 15.0  # seconds of a run beside its training: kernel start, data, evaluation, figures


@dataclass(frozen=True)
class Planned:
    """A run to be made: values are what the notebook is told."""

    notebook: str
    values: dict[str, Any]
    params: Params

    @property
    def id(self) -> str:
        """Its run id."""
        return run_id(self.notebook, self.params)

    def state(self) -> str:
        """done, missing, or why it must be made again."""
        try:
            return keys.state(self.params.scale, self.id, keys.planned_key(self.params))
        except FileNotFoundError:
            return "missing"
        except ValueError as error:  # such as an upstream run that will be made again before this one
            return f"stale: {error}"


def plan(path: Path) -> list[Planned]:
    """All runs of a parameter file, or of all files in a folder but those that end in _own, which are to be filled in first, in the
    order in which they can be made.

    Raises ValueError on a file that isn't named after a notebook, holds a parameter that doesn't fit, or asks for two runs of one id.
    """
    if not path.exists():
        known = ", ".join(f"params/{folder.name}" for folder in sorted((ROOT / "params").iterdir()))
        raise ValueError(f"{path} does not exist; the parameter folders are: {known}")
    runs: dict[str, Planned] = {}
    for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
        if path.is_dir() and file.stem.endswith("_own"):
            print(f"{file.name} is left out: fill it in and run it by its name", flush=True)
            continue
        notebook = next((name for name in NOTEBOOKS if file.stem.startswith(name)), None)
        if notebook is None:
            raise ValueError(f"{file} must begin with the name of a notebook: {', '.join(NOTEBOOKS)}")
        try:
            values = yaml.safe_load(file.read_text()) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{file} must hold names and values, not a {type(values).__name__}")
        values = scale_defaults(notebook, file.parent.name) | values
        axes, own = {name: _axis(notebook, name, value) for name, value in values.items()}, {}
        for choice in itertools.product(*axes.values()):
            chosen = dict(zip(axes, choice, strict=True))
            planned = Planned(notebook, chosen, check(notebook, chosen))
            if own.setdefault(planned.id, planned).params != planned.params:
                raise ValueError(f"{file} asks twice for {planned.id}: compute and tests don't make two runs of one; use two files")
        runs |= {run: planned for run, planned in own.items() if run not in runs}
    if not runs:
        raise ValueError(f"{path} holds no parameter file")
    return [runs[run] for run in sorted(runs, key=lambda run: runs[run].notebook)]


def _axis(notebook: str, name: str, value: Any) -> list[Any]:
    """The values of a parameter that stand in a file: a list is an axis of runs, unless the parameter itself is a list; then only
    a list of such lists is one. ValueError where an axis has no value.
    """
    field = NOTEBOOKS[notebook].model_fields.get(name)
    if not isinstance(value, list):
        return [value]
    if field is not None and get_origin(field.annotation) is list and not (value and all(isinstance(item, list) for item in value)):
        return [value]
    if not value:
        raise ValueError(f"{notebook}: {name} is an axis of runs without a value; name one or more")
    return value


def with_needs(wanted: list[Planned], planned: list[Planned]) -> list[Planned]:
    """The wanted runs and those that they build on, in the order in which they can be made."""
    known = {run.id: run for run in planned}
    found: dict[str, Planned] = {}
    for run in wanted:
        for cleaning in _cleanings(run.params):
            needed = cleaning.poisoned or lineage.poisoned_run(cleaning)
            if needed not in known and not cleaning.poisoned:
                params = lineage.poisoned_params(cleaning)
                known[needed] = Planned("01_poison", params.model_dump(exclude_defaults=True), params)
            if needed in known:
                found[needed] = known[needed]
        found[run.id] = run
    return sorted(found.values(), key=lambda run: run.notebook)


def _cleanings(params: Params) -> list[Clean]:
    """The cleanings of a run that start from a run of 01, one for each attack."""
    return [cleaning for cleaning in distinct_attacks(params) if not cleaning.poisoned.startswith(SOURCES)]


def choose(planned: list[Planned], only: list[str]) -> list[Planned]:
    """The runs named by id, planned or with a method, trigger, encoder and seed of their own.

    Raises ValueError on any other id, with those that come near.
    """
    known = {run.id: run for run in planned}
    for run in only:
        named = _named(run, planned[0].params.scale)
        if run not in known and named is not None:
            known[run] = named
        if run not in known:
            near = get_close_matches(run, known, n=3, cutoff=0.3) or list(known)[:5]
            raise ValueError(f"no parameter file plans {run!r}; near it are: {', '.join(near)}")
    return [known[run] for run in only]


def _named(run: str, scale: str) -> Planned | None:
    """The run of an id that names method, trigger, attack, encoder and seed alone; None where it says more or something else."""
    notebook, _, name = run.partition("/")
    longest = sorted(TRIGGERS, key=len, reverse=True)  # badnet_stripes before badnet
    attacked = rf"(?P<trigger>{'|'.join(longest)})(?:_(?P<attack>label_consistent))?"
    pattern = rf"(?:(?P<method>{'|'.join(METHODS)})_)?{attacked}(?:_(?P<encoder>.+))?_s(?P<seed>\d+)"
    found = re.fullmatch(pattern, name)
    if notebook not in NOTEBOOKS or found is None:
        return None
    values = {key: value for key, value in found.groupdict().items() if value is not None} | {"seed": int(found["seed"])}
    values = scale_defaults(notebook, scale, *specific(values)) | {"scale": scale} | values
    try:
        planned = Planned(notebook, values, check(notebook, values))
    except ValueError:
        return None
    return planned if planned.id == run else None


def execute(run: Planned) -> None:
    """Run a notebook headless; its printed progress goes to the terminal, the executed copy beside the record."""
    done = records.outputs(run.params.scale) / f"{run.id}.ipynb"
    partial = done.with_suffix(".running.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    source = notebook_path(run.notebook)
    options = {"kernel_name": "python3", "progress_bar": False, "stdout_file": sys.stdout, "cwd": str(ROOT)}
    encrypted = Config({"KernelManager": {"transport_encryption": "required"}})  # or ipykernel warns at each start
    papermill.execute_notebook(str(source), str(partial), run.values, config=encrypted, **options)
    os.replace(partial, done)


def prepare(runs: list[Planned], folder: Path) -> None:
    """Write each run's notebook, with its parameters but not executed, as NN_<id>.ipynb: for pytest --nbval-lax."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, run in enumerate(runs):
        path = folder / f"{i:02d}_{run.id.replace('/', '_')}.ipynb"
        papermill.execute_notebook(str(notebook_path(run.notebook)), str(path), run.values, prepare_only=True, progress_bar=False)


def expected_seconds(runs: list[Planned]) -> dict[str, float | None]:
    """How long each run took when it was last made here, else in the published one, else by what runs like it took for each
    pair that they saw; None where there is none like it.
    """
    if not runs:
        return {}
    scale = runs[0].params.scale
    made = [record for folder in (report.REFERENCE, records.outputs(scale)) for record in records.read_all(folder)]
    known = {record["run"]: record for record in made if record["params"]["scale"] == scale}  # what is published is small
    paces: dict[Any, list[float]] = {}
    for record in known.values():
        try:
            params = check(record["notebook"], record["params"])
        except ValueError:  # of an earlier version
            continue
        paces.setdefault(_kind(record["notebook"], params), []).append(record["seconds"] / _seen(params))
    found: dict[str, float | None] = {}
    base = 0.0
    for run in runs:
        record, like = known.get(run.id), paces.get(_kind(run.notebook, run.params))
        guess = statistics.median(like) * _seen(run.params) if like else None
        seconds = record["seconds"] if record and record["params"] == run.params.model_dump() else guess
        found[run.id] = None if seconds is None else seconds + _AROUND
        if record and run.notebook == "01_poison" and not base and not records.located(record["artifacts"]["base_weights"]).exists():
            base = record["metrics"].get("base_seconds", 0.0)  # the first run that needs the base trains it
            found[run.id] += base
    return found


def _kind(notebook: str, params: Params) -> tuple[str, ...]:
    """Runs of one kind take the same time for a pair."""
    return notebook, str(getattr(params, "encoder", "")), str(getattr(params, "method", ""))


def _seen(params: Params) -> int:
    """Pairs that a run sees in its training."""
    if isinstance(params, Poison):
        return params.epochs * params.train_scenes
    if isinstance(params, Sweep) and params.samples:
        return params.samples * params.epochs * params.pairs
    return max(1, sum(trial.epochs * trial.pairs for trial in expand(params)))


def make(runs: list[Planned]) -> None:
    """Make what is missing or stale, with progress and the time left."""
    waiting = expected_seconds([run for run in runs if run.state() != "done"])
    began = time.monotonic()
    for i, run in enumerate(runs):
        state = run.state()
        if state == "done":
            print(f"[{i + 1}/{len(runs)}] {run.id}: done", flush=True)
            continue
        left = [waiting.get(run.id)] + [waiting[later.id] for later in runs[i + 1 :] if later.id in waiting]
        known = sum(seconds for seconds in left if seconds is not None)
        about = f", about {known / 60:.0f} min left" if known else ""
        unknown = f", {left.count(None)} of unknown length" if None in left else ""
        so_far = f"{(time.monotonic() - began) / 60:.0f} min so far{about}{unknown}"
        print(f"[{i + 1}/{len(runs)}] {run.id}: {state}; running it ({so_far})", flush=True)
        if moved := records.move_aside(run.params, run.id):
            print(f"a record of the same name with other parameters is now {moved}", flush=True)
        execute(run)


def dry_run(runs: list[Planned]) -> int:
    """Print what each run would meet; 1 where something will not do."""
    from parlib.cli.dry_run import rehearse

    good = True
    for run in runs:
        print(f"{run.id}:", flush=True)
        for what, found, fine in rehearse(run.params):
            print(f"  {'ok' if fine else 'NO'}  {what}: {found}", flush=True)
            good = good and fine
    print("nothing was trained; all of it will do" if good else "nothing was trained; mend what is marked NO")
    return 0 if good else 1


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m parlib.cli.run", description=__doc__)
    parser.add_argument("params", type=Path, help="a folder of parameter files such as params/small, or one file")
    parser.add_argument(
        "--only", nargs="+", metavar="ID", help="make these runs and what they need, such as 02_clean/par_badnet_stripes_s0"
    )
    parser.add_argument("--list", action="store_true", help="say what there is to do, and do nothing")
    parser.add_argument("--dry-run", action="store_true", help="look at checkpoint, data, disk, time and memory, and train nothing")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write the notebooks with their parameters there, unexecuted")
    asked = parser.parse_args(arguments)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        planned = plan(asked.params)
        wanted = choose(planned, asked.only) if asked.only else planned
        runs = with_needs(wanted, planned)
        if asked.prepare:
            prepare(runs, asked.prepare)
        elif asked.dry_run:
            return dry_run(wanted)
        elif asked.list:
            for run in runs:
                print(f"{run.id}: {run.state()}")
        else:
            with lock(records.outputs(runs[0].params.scale) / ".lock", wait=False, doing="python -m parlib.cli.run"):
                make(runs)
            tables.show(runs[0].params.scale, [run.id for run in runs])
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except PapermillExecutionError as error:
        print(f"error: {error.ename}: {error.evalue}", file=sys.stderr)
        print(f"(in cell {error.cell_index + 1}; the executed copy is beside the records: *.running.ipynb)", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
