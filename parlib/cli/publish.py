"""`make publish`: what was found goes into outputs/reference, the notebooks and the texts that state numbers."""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat

from parlib.cache import ROOT, atomic_folder, check_surroundings
from parlib.cli.notebooks import notebook_path
from parlib.cli.plan import plan
from parlib.cli.verify import reproduced
from parlib.experiments.registry import EXPERIMENTS, check
from parlib.records.status import fresh, state
from parlib.records.store import REFERENCE, outputs, read, read_all, read_file, record_files, record_path
from parlib.report import prose
from parlib.report.rows import table

_KEPT = ("pattern", "points", "tests", "models")  # small artifacts, without which a run counts as gone; of runs that notebooks store, all


def stored_notebook(notebook: str, executed: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of an executed copy, without what differs between two runs of the same thing."""
    record = executed.with_suffix(".json")
    if record.exists() and executed.stat().st_mtime < record.stat().st_mtime:
        raise ValueError(f"{executed.relative_to(ROOT)} is older than its record; delete the record and run it again")
    source, ran = nbformat.read(notebook_path(notebook), 4), nbformat.read(executed, 4)
    cells = [cell for cell in source.cells if cell.cell_type == "code"]
    runs = [cell for cell in ran.cells if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in runs] != [cell.source for cell in cells]:
        raise ValueError(f"{executed.relative_to(ROOT)} ran another version of {notebook}; run it again")
    for count, (cell, run) in enumerate(zip(cells, runs, strict=True), 1):
        cell.outputs, cell.execution_count = _tidied(run.outputs), count
    kept = {name: (ran if name == "language_info" else source).metadata[name] for name in ("kernelspec", "language_info")}
    source.metadata = nbformat.from_dict(kept)  # with all that a kernel adds on opening, so that JupyterLab sees no change
    return source


def _tidied(outputs: list[Any]) -> list[Any]:
    """Outputs without errors' stream, counts, metadata, progress and what was there before, which differ from run to run; lines as a
    terminal shows them.
    """
    for output in outputs:
        if output.output_type == "stream":
            shown = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in output.text.split("\n")]  # after carriage returns
            output.text = "\n".join(line for line in shown if not re.search(r"\d%\|.*\[.*[<,].*\]|the earlier record", line))
        else:
            output.metadata = {}
            if "text/html" in output.data:  # beside which no viewer shows a table once more as plain text
                output.data.pop("text/plain", None)
        if output.output_type == "execute_result":
            output.execution_count = None
    kept = [one for one in outputs if one.output_type != "stream" or (one.name != "stderr" and one.text.strip())]
    return [one for one in kept if not re.search(r" in \d\d:\d\d$", one.get("data", {}).get("text/plain", ""))]


def restore() -> None:
    """Copy the published records of runs that were not made here, and what is published beside them, to outputs/small: for figures, and for
    the next `make publish` of a grid that is made on several machines. Their weights stay away.
    """
    folder, count = outputs("small"), 0
    for path in record_files(REFERENCE):
        target = folder / path.relative_to(REFERENCE)
        if not target.exists() or _restored(path.relative_to(REFERENCE).with_suffix("").as_posix()):
            beside = {Path(artifact["path"]).name for artifact in read_file(path)["artifacts"].values()}
            lacking = [
                name for name in (*sorted(beside), path.name) if (path.parent / name).exists() and not (target.parent / name).exists()
            ]
            target.parent.mkdir(parents=True, exist_ok=True)
            for name in lacking:
                shutil.copy(path.parent / name, target.parent)
            count += bool(lacking)
    print(f"restored {count} records to {folder.relative_to(ROOT)}")


def publishable() -> dict[str, str]:
    """Every planned run, and why it can't be published, empty where it can: it is done, here or, where only what is in the cache is gone,
    elsewhere; or its record was restored. ValueError when a published run would be lost, as it is stale, or neither here nor restored.
    """
    reasons = {}
    for run in (run for run in plan(ROOT / "params" / "small") if not run.view):
        reason = run.state()
        if re.fullmatch(r"its \w+ is gone", reason):
            reason = "done" if _restored(run.id) else state(run.params, cache=False)
        reasons[run.id] = "" if reason == "done" else reason
    if lost := [run for run, reason in reasons.items() if reason and (REFERENCE / f"{run}.json").exists()]:
        remedy = "make them again, or take them back with: python -m parlib.cli.publish --restore"
        raise ValueError(f"{len(lost)} published runs would be lost, such as {lost[0]} ({reasons[lost[0]]}); {remedy}")
    return reasons


def _restored(run: str) -> bool:
    here, published = record_path("small", run), REFERENCE / f"{run}.json"
    return here.exists() and published.exists() and read_file(here) == read_file(published)


def publish() -> None:
    """Copy the small-scale records and what figures are drawn from to outputs/reference, with the figures of the runs that the notebooks
    show; store the outputs of notebooks that have an executed copy; write README and docs. ValueError where no file plans a record's run.
    """
    folder, reasons = outputs("small"), publishable()
    ready = [run for run, reason in reasons.items() if not reason]
    if extra := {record["run"] for record in fresh("small", check)} - set(ready):
        raise ValueError(f"no file in params/small plans these runs; move their records away: {', '.join(sorted(extra))}")
    shown = {name: check(name, {}).id for name in EXPERIMENTS}
    notebooks = {name: stored_notebook(name, path) for name, run in shown.items() if (path := folder / f"{run}.ipynb").exists()}
    with atomic_folder(REFERENCE) as reference:
        for run in ready:
            record, target = read("small", run), reference / f"{run}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(record, separators=(",", ":")) + "\n")
            for name, artifact in record["artifacts"].items():
                wanted = run in shown.values() or "timings" in record or name in _KEPT
                here = (ROOT / artifact["path"], (REFERENCE / f"{run}.json").with_name(Path(artifact["path"]).name))
                if artifact["in"] == "project" and wanted and (file := next(filter(Path.exists, here), None)):
                    shutil.copy(file, target.parent)
        drawn = [run for run in ready if run.startswith(("03", "04")) or "pattern" in read("small", run)["artifacts"]]
        for run in dict.fromkeys([*shown.values(), *drawn]):
            _figures(folder, reference, run)
        table(read_all(reference)).to_csv(reference / "table.csv", index=False)
        hero = next(run for run in reproduced() if "/par_" in run)
        for shown_as, figures in {  # what README shows, drawn here or else published
            "regimes.png": [reference / "05_evaluate_regimes.png"],
            "picture.png": [folder / f"{hero}_picture.png", REFERENCE / "picture.png"],
        }.items():
            if figure := next(filter(Path.exists, figures), None):
                shutil.copy(figure, reference / shown_as)
    for name, notebook in notebooks.items():
        nbformat.write(notebook, notebook_path(name))
    prose.write_all()
    for run, reason in reasons.items():
        if reason:
            print(f"not published: {run} ({reason})")
    print(f"published {len(ready)} records, {len(notebooks)} notebooks, README and docs")


def _figures(folder: Path, reference: Path, run: str) -> None:
    """The figures of a run: those that it drew here, else those that are published."""
    found = [path for source in (REFERENCE, folder) for path in sorted((source / run).parent.glob(f"{Path(run).name}_*"))]
    named = re.compile(rf"{re.escape(Path(run).name)}_[a-z_]+\.(png|svg)")  # with digits it is of another run, whose id goes on
    for path in {path.name: path for path in found if named.fullmatch(path.name)}.values():
        (reference / run).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, (reference / run).parent)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m parlib.cli.publish", description=__doc__)
    parser.add_argument("--restore", action="store_true", help="copy published records that were not made here to outputs/small")
    parser.add_argument("--texts", action="store_true", help="write README and docs from their templates and the published records, alone")
    asked = parser.parse_args(arguments)
    try:
        check_surroundings()
        restore() if asked.restore else prose.write_all() if asked.texts else publish()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
