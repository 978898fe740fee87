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

from parlib import records, report
from parlib.cache import ROOT
from parlib.params import NOTEBOOKS, check, run_id
from parlib.report import BEGIN, END, REFERENCE, readme_table


def stored_outputs_of(notebook: str) -> str:
    """The run whose outputs a notebook stores: the one of its own defaults."""
    return run_id(notebook, check(notebook, {}))


def stored_notebook(notebook: str, executed: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of an executed copy, without what differs between two runs of the same thing."""
    source, ran = nbformat.read(records.notebook_path(notebook), 4), nbformat.read(executed, 4)
    cells = [cell for cell in ran.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in cells] != [cell.source for cell in source.cells]:
        raise ValueError(f"{executed.relative_to(ROOT)} ran another version of {notebook}; run it again")
    count = itertools.count(1)
    for cell, run in zip(source.cells, cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [_tidy(output) for output in run.outputs if not _is_noise(output)], next(count)
    source.metadata = nbformat.from_dict({"kernelspec": source.metadata.kernelspec, "language_info": {"name": "python"}})
    return source


def _is_noise(output: Any) -> bool:
    return output.output_type == "stream" and (output.name == "stderr" or not _last_line(output.text).strip())


def _last_line(text: str) -> str:
    """What a terminal shows after carriage returns: of each line the part after the last one."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def _tidy(output: Any) -> Any:
    if output.output_type == "stream":
        output.text = _last_line(output.text)
    output.pop("execution_count", None)
    if output.output_type == "execute_result":
        output.execution_count = None
    output.metadata = {}
    return output


def publish() -> None:
    """Copy the small-scale records and figures to outputs/reference, store the notebooks' outputs, rewrite README's table.

    Raises ValueError when a run of the main job is missing.
    """
    folder = records.outputs("small")
    shown = {notebook: stored_outputs_of(notebook) for notebook in NOTEBOOKS}
    for run in shown.values():
        if not (folder / f"{run}.json").exists() or not (folder / f"{run}.ipynb").exists():
            raise ValueError(f"{run} has not been run yet; make it with: {records.command(run)}")
    notebooks = {name: stored_notebook(name, folder / f"{run}.ipynb") for name, run in shown.items()}
    shutil.rmtree(REFERENCE, ignore_errors=True)
    for path in sorted([*folder.glob("0*/*.json"), *folder.glob("0*.json")]):
        record = json.loads(path.read_text())
        target = REFERENCE / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(record, separators=(",", ":")) + "\n")
        if record["run"] in shown.values():
            for figure in folder.glob(f"{record['run']}_*.png"):
                shutil.copy(figure, REFERENCE / figure.relative_to(folder))
    report.table(records.read_all(REFERENCE)).to_csv(REFERENCE / "table.csv", index=False)
    for name, notebook in notebooks.items():
        nbformat.write(notebook, records.notebook_path(name))
    readme = ROOT / "README.md"
    readme.write_text(re.sub(f"{BEGIN}.*?{END}", f"{BEGIN}\n{readme_table()}\n{END}", readme.read_text(), flags=re.S))
    print(f"published {len(list(REFERENCE.rglob('*.json')))} records, three notebooks and README's table")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m parlib.publish", description=publish.__doc__).parse_args()
    try:
        publish()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
