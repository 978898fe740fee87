"""`make publish`: what the reference run found goes into outputs/reference, the notebooks and README."""

import argparse
import itertools
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat

from parlib import keys, records, report, tables
from parlib.cache import ROOT, atomic_folder
from parlib.experiments.ids import run_id
from parlib.records.status import notebook_path
from parlib.experiments.params import NOTEBOOKS, check
from parlib.report.rows import REFERENCE
from parlib.cli.run import plan

_PATTERN = ("pattern", "learning")  # of a learned trigger: what it is, and how it was learned


def stored_outputs_of(notebook: str) -> str:
    """The run whose outputs a notebook stores: the one of its own defaults."""
    return run_id(notebook, check(notebook, {}))


def stored_notebook(notebook: str, executed: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of an executed copy, without what differs between two runs of the same thing."""
    if executed.stat().st_mtime < executed.with_suffix(".json").stat().st_mtime:
        raise ValueError(f"{executed.relative_to(ROOT)} is older than its record; delete the record and run it again")
    source, ran = nbformat.read(notebook_path(notebook), 4), nbformat.read(executed, 4)
    cells = [cell for cell in source.cells if cell.cell_type == "code"]
    runs = [cell for cell in ran.cells if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in runs] != [cell.source for cell in cells]:
        raise ValueError(f"{executed.relative_to(ROOT)} ran another version of {notebook}; run it again")
    for count, cell, run in zip(itertools.count(1), cells, runs):
        cell.outputs, cell.execution_count = [_tidy(output) for output in run.outputs if not _is_noise(output)], count
    source.metadata = nbformat.from_dict({"kernelspec": source.metadata.kernelspec, "language_info": {"name": "python"}})
    return source


def _is_noise(output: Any) -> bool:
    return output.output_type == "stream" and (output.name == "stderr" or not _last_line(output.text).strip())


def _last_line(text: str) -> str:
    """What a terminal shows after carriage returns: of each line the part after the last one."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def _tidy(output: Any) -> Any:
    """An output without counts, metadata and carriage returns, which differ from run to run."""
    if output.output_type == "stream":
        output.text = _last_line(output.text)
    else:
        output.metadata = {}
    if output.output_type == "execute_result":
        output.execution_count = None
    return output


def restore() -> None:
    """Copy the published records of runs that were not made here to outputs/small, with what is published beside them, so that
    notebooks 05 and 06 and the next `make publish` see them: for a grid that is made in several sittings or on several machines.
    Their weights stay away.
    """
    folder, count = records.outputs("small"), 0
    for path in sorted(REFERENCE.glob("0[1-4]_*/*.json")):
        target = folder / path.relative_to(REFERENCE)
        if not target.exists() or _restored(path.relative_to(REFERENCE).with_suffix("").as_posix()):
            beside = {Path(artifact["path"]).name for artifact in records.read_file(path)["artifacts"].values()}
            lacking = [name for name in (path.name, *beside) if (path.parent / name).exists() and not (target.parent / name).exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            for name in lacking:
                shutil.copy(path.parent / name, target.parent)
            count += bool(lacking)
    print(f"restored {count} records to {folder.relative_to(ROOT)}")


def publishable() -> dict[str, str]:
    """Every planned run and why it can't be published, empty where it can: it is done, here or, where only what is in the cache is
    gone, on another machine; or its record was restored.

    ValueError when a published run can't be published again, as it is stale, or neither here nor restored: it would be lost.
    """
    reasons = {run.id: run.state() for run in plan(ROOT / "params" / "small")}
    for run, reason in reasons.items():
        gone = re.fullmatch(r"its (\w+) is gone", reason)
        if reason == "done" or (gone and (_restored(run) or _cached(run, gone[1]))):
            reasons[run] = ""
    if lost := [run for run, reason in reasons.items() if reason and (REFERENCE / f"{run}.json").exists()]:
        remedy = "make them again, or take them back with: python -m parlib.cli.publish --restore"
        raise ValueError(f"{len(lost)} published runs would be lost, such as {lost[0]} ({reasons[lost[0]]}); {remedy}")
    return reasons


def _cached(run: str, name: str) -> bool:
    """Whether an artifact of a run lives in the cache, and so isn't published."""
    return records.read("small", run)["artifacts"][name]["in"] == "cache"


def _restored(run: str) -> bool:
    """Whether a run's record is the published one."""
    here, published = records.record_path("small", run), REFERENCE / f"{run}.json"
    return here.exists() and published.exists() and records.read_file(here) == records.read_file(published)


def publish() -> None:
    """Copy the small-scale records and figures to outputs/reference, store the notebooks' outputs, rewrite README's tables.

    Only runs that params/small plans and that are done, or restored, are published. A notebook whose run was restored keeps the
    outputs that it stores. ValueError when one that the notebooks show is neither done here nor restored.
    """
    folder = records.outputs("small")
    shown = {notebook: stored_outputs_of(notebook) for notebook in NOTEBOOKS}
    reasons = publishable()
    ready = [run for run, reason in reasons.items() if not reason]
    executed = {name: folder / f"{run}.ipynb" for name, run in shown.items() if not _restored(run)}
    if missing := [run for name, run in shown.items() if run not in ready or (name in executed and not executed[name].exists())]:
        raise ValueError(f"make these first, with make reproduce: {', '.join(missing)}")
    fresh = keys.fresh("small")
    if extra := {record["run"] for record in fresh} - set(ready):
        raise ValueError(f"notebook 05 shows runs that no file in params/small plans; move their records away: {', '.join(sorted(extra))}")
    notebooks = {name: stored_notebook(name, path) for name, path in executed.items()}
    mapped = {record["run"] for record in report.mapped(fresh, report.table(fresh))}
    with atomic_folder(REFERENCE) as reference:
        for run in ready:
            record = records.read("small", run)
            target = reference / f"{run}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(record, separators=(",", ":")) + "\n")
            for name, artifact in record["artifacts"].items():
                wanted = run in shown.values() or "timings" in record or (run in mapped and name == "points") or name in _PATTERN
                if artifact["in"] == "project" and wanted:  # of sweeps, which have timings, all figures and tables
                    shutil.copy(ROOT / artifact["path"], target.parent)
        report.table(records.read_all(reference)).to_csv(reference / "table.csv", index=False)
    for name, notebook in notebooks.items():
        nbformat.write(notebook, notebook_path(name))
    readme = ROOT / "README.md"
    readme.write_text(tables.with_tables(readme.read_text()))
    for run, reason in reasons.items():
        if reason:
            print(f"not published: {run} ({reason})")
    print(f"published {len(ready)} records, {len(notebooks)} notebooks and README's tables")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m parlib.cli.publish", description=publish.__doc__)
    parser.add_argument("--restore", action="store_true", help="copy published records that were not made here to outputs/small")
    try:
        restore() if parser.parse_args().restore else publish()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
