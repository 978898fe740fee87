"""Notebooks run headless by papermill, or written with their parameters for others to run."""

import ast
import logging
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from parlib.cache import ROOT
from parlib.cli.plan import Planned
from parlib.experiments.registry import EXPERIMENTS
from parlib.records.store import outputs


class _Manager(AsyncKernelManager):
    """A kernel that is done is not interrupted before it is shut down: it would log a KeyboardInterrupt as an error."""

    async def _async_interrupt_kernel(self) -> None:
        if not self.shutting_down:
            await super()._async_interrupt_kernel()


def notebook_path(notebook: str) -> Path:
    return ROOT / "notebooks" / f"{notebook}.ipynb"


def edited(notebook: str) -> list[str]:
    """The parameters that a notebook's parameters cell, as it is saved, gives another value than their default: all where it can't be read.
    ValueError where there is no such cell, as then nothing that the notebook is told would count.
    """
    usual, path, found = EXPERIMENTS[notebook].defaults(), notebook_path(notebook), {}
    cells = [cell.source for cell in nbformat.read(path, 4).cells if "parameters" in cell.metadata.get("tags", [])]
    if not cells:
        raise ValueError(f"{path.relative_to(ROOT)} has no cell tagged 'parameters': tag it again, or take the notebook back from git")
    try:
        statements = ast.parse(cells[0]).body
    except SyntaxError:  # such as one with a magic
        return list(usual)
    for one in statements:
        targets = one.targets if isinstance(one, ast.Assign) else [one.target] if isinstance(one, ast.AnnAssign) else []
        found |= {target.id: getattr(one, "value", None) for target in targets if isinstance(target, ast.Name)}
    return [name for name, value in found.items() if name in usual and not _writes(value, usual[name])]


def _writes(value: ast.expr | None, usual: Any) -> bool:
    """Whether a cell's expression is a value as it is usually written."""
    try:
        found = ast.literal_eval(value or "")
    except (ValueError, SyntaxError):
        return False
    return type(found) is type(usual) and found == usual


def told(run: Planned) -> dict[str, Any]:
    """What a run's notebook is told: the run's own values, and those that the notebook, saved with other defaults, would take otherwise."""
    asked = run.params.model_dump()
    return run.values | {name: asked[name] for name in edited(run.params.notebook) if name not in run.values}


def execute(run: Planned) -> None:
    """Run a notebook headless, with the executed copy beside the record; RuntimeError, in the notebook's words, where a cell fails, and
    where it has not made this run.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # after a Ctrl-C nbclient's task may end in an error that nobody waits for
    done = outputs(run.params.scale) / f"{run.id}.ipynb"
    partial = done.with_suffix(".running.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    encrypted = Config({"KernelManager": {"transport_encryption": "required"}})  # or ipykernel warns at each start
    options = {"kernel_name": "python3", "progress_bar": False, "stdout_file": sys.stdout, "cwd": str(ROOT)}
    options |= {"config": encrypted, "kernel_manager_class": _Manager}
    try:
        papermill.execute_notebook(str(notebook_path(run.params.notebook)), str(partial), told(run), **options)
    except PapermillExecutionError as error:
        where = f"(in cell {error.cell_index + 1}; the executed copy is {partial.relative_to(ROOT)})"
        raise RuntimeError(f"{error.ename}: {error.evalue}\n{where}") from None
    os.replace(partial, done)
    record = done.with_suffix(".json")
    if record.exists() and (made := record.stat().st_mtime_ns) > done.stat().st_mtime_ns:
        os.utime(done, ns=(made, made))  # the clock was set back meanwhile; publishing asks which of the two is older
    if not run.view and (reason := run.state()) != "done":
        raise RuntimeError(f"notebooks/{run.params.notebook}.ipynb has run, and {run.id} is still not done ({reason}): it made another run")


def prepare(runs: list[Planned], folder: Path) -> None:
    """Write the notebook of each run that is not done, with its parameters but not executed, as NN_<id>.ipynb: for pytest --nbval-lax."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, run in enumerate(run for run in runs if run.state() != "done"):
        path = folder / f"{i:02d}_{run.id.replace('/', '_')}.ipynb"
        source = str(notebook_path(run.params.notebook))
        papermill.execute_notebook(source, str(path), told(run), prepare_only=True, progress_bar=False)
