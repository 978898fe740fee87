"""Making runs one after another, how long they will take, and what is said at the end."""

import statistics
import time
from contextlib import suppress
from typing import Any

from parlib.cache import ROOT, atomic_file
from parlib.cli import notebooks
from parlib.cli.plan import Planned, needs_of
from parlib.experiments import registry
from parlib.experiments.clean_params import Clean
from parlib.experiments.inspection import Inspect
from parlib.experiments.params import Params
from parlib.experiments.trials import Sweep
from parlib.model.checkpoints import SOURCES
from parlib.records.status import fresh, other_params
from parlib.records.store import REFERENCE, located, move_aside, outputs, read, read_all, read_file, record_path
from parlib.report import schedule
from parlib.report.closing import verdict
from parlib.report.outcome import against_published, closing_words
from parlib.report.rows import OWN, table
from parlib.report.tables import brief

_AROUND = 15.0  # seconds of a run beside its training: kernel start, data, evaluation, figures


def make_all(runs: list[Planned], *, functions: bool = False) -> None:
    """Make what is missing or stale, with progress and the time left; functions: without notebooks, and without what only draws."""
    waiting = expected_seconds([run for run in runs if run.state() != "done"])
    began = time.monotonic()
    for i, run in enumerate(runs):
        said = f"[{i + 1}/{len(runs)}] {run.id}: {(state := run.state())}"
        if state == "done" or (run.view and functions):
            print(said, flush=True)
            continue
        left = [waiting.get(run.id), *(waiting[later.id] for later in runs[i + 1 :] if later.id in waiting)]
        total = sum(seconds for seconds in left if seconds is not None)
        about = f", about {total / 60:.0f} min left" if total else ""
        unknown = f", {left.count(None)} of unknown length" if None in left else ""
        print(f"{said}; running it ({(time.monotonic() - began) / 60:.0f} min so far{about}{unknown})", flush=True)
        make_room(run)
        if functions:
            registry.make(run.params)
        else:
            notebooks.execute(run)


def make_room(run: Planned) -> None:
    """Move another run's record of the same name aside, and say so."""
    path = record_path(run.params.scale, run.id)
    if path.exists() and other_params(read_file(path), run.params):
        print(f"a record of the same name with other parameters is now {move_aside(path)}", flush=True)


def expected_seconds(runs: list[Planned]) -> dict[str, float | None]:
    """Seconds that each run took here, else when published, else by what runs like it took for each pair that they saw; None without."""
    if not runs:
        return {}
    scale = runs[0].params.scale
    made = [*read_all(REFERENCE), *read_all(outputs(scale))]
    known = {record["run"]: record for record in made if record["params"]["scale"] == scale}  # what is published is small
    paces: dict[Any, list[float]] = {}
    for record in known.values():
        with suppress(ValueError):  # of an earlier version
            params = registry.check(record["notebook"], record["params"])
            paces.setdefault(_kind(params), []).append(record["seconds"] / max(1, params.cost()))
    found: dict[str, float | None] = {}
    base = 0.0
    for run in runs:
        record, like = known.get(run.id), paces.get(_kind(run.params))
        seconds = record["seconds"] if record else statistics.median(like) * run.params.cost() if like else 0.0 if run.view else None
        if record and run.params.notebook == "01_poison" and not base and not located(record["artifacts"]["base_weights"]).exists():
            base = record["metrics"].get("base_seconds", 0.0)  # the first run that needs the base trains it
            seconds += base
        found[run.id] = None if seconds is None else seconds + _AROUND
    return found


def say_schedule(runs: list[Planned]) -> None:
    """Print the hours of these runs' trainings, those of the longest chain, and how long all take on 1 to 32 workers, made anew, by the
    seconds that each took here, else when published, else by what runs like it took.
    """
    scale = runs[0].params.scale
    known = {record["run"]: record for record in [*read_all(REFERENCE), *read_all(outputs(scale))] if record["params"]["scale"] == scale}
    runs = [run for run in runs if not run.view]
    needs, seconds = needs_of(runs), expected_seconds([run for run in runs if run.id not in known])
    found = schedule.tasks(known[run.id] for run in runs if run.id in known)
    made = {run: known[run]["artifacts"]["weights"]["sha256"] for run in known if "weights" in known[run]["artifacts"]}
    found |= {run: schedule.Task(took or 0.0, frozenset(made.get(need, need) for need in needs[run])) for run, took in seconds.items()}
    hours, longest = sum(task.seconds for task in found.values()) / 3600, max(schedule.chains(found).values(), default=0.0) / 3600
    unknown = f", {count} of unknown length left out" if (count := list(seconds.values()).count(None)) else ""
    print(f"{len(found)} trainings, {hours:.1f} hours in all, {longest:.2f} in the longest chain{unknown}")
    for row in schedule.summary(found):
        print(f"{row['workers']:4} workers: {row['hours']:6.2f} hours, {row['times']:5.1f} times as fast as one")
    print("training alone, on as many threads as each had, as if workers did not slow each other")


def _kind(params: Params) -> tuple[str, ...]:
    """Runs of one kind take the same time for a pair."""
    return params.notebook, str(getattr(params, "encoder", "")), str(getattr(params, "method", ""))


def show(runs: list[Planned]) -> None:
    """Print the runs' attacks in a table and how they differ from the published ones, and what each of one's own did; write table.csv and,
    of notebook 05, report.html.
    """
    scale = runs[0].params.scale
    folder, ids = outputs(scale), [run.id for run in runs if not run.view]
    if ids and read_all(folder):
        rows = table(fresh(scale, registry.check))
        with atomic_file(folder / "table.csv") as temporary:
            rows.to_csv(temporary, index=False)
        attacks = rows.loc[rows["run"].isin(ids), ["experiment", "encoder", "trigger", "attack"]].drop_duplicates()
        if len(found := brief(rows.merge(attacks))):
            print("\n" + found.to_string(index=False))
    for run in ids if scale == "small" else []:
        print(run, against_published(read(scale, run)))
    for run in runs:
        params = run.params  # of what no table shows
        if params.experiment not in OWN and not getattr(params, "poisoned", "").startswith(SOURCES):
            continue
        if type(params) in (Clean, Sweep):
            print(closing_words(read(scale, run.id)))
        elif type(params) is Inspect and not params.name:
            print("\n".join([f"\n{run.id}:", *verdict(params, read(scale, run.id)["metrics"])]))
    executed = folder / "05_evaluate.ipynb"
    if any(run.id == "05_evaluate" for run in runs) and executed.exists():
        from nbconvert import HTMLExporter  # here, as it takes a second and a half

        page, _ = HTMLExporter(exclude_input=True).from_filename(str(executed))
        with atomic_file(folder / "report.html") as temporary:
            temporary.write_text(page)
        print(f"report: {(folder / 'report.html').relative_to(ROOT)}")
