"""Notebooks run headless by papermill, or written with their parameters for others to run."""

import logging
import os
import sys
from pathlib import Path

import papermill
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from parlib.cache import ROOT
from parlib.cli.plan import Planned
from parlib.records.store import outputs


class _Manager(AsyncKernelManager):
    """A kernel that is done is not interrupted before it is shut down: it would log a KeyboardInterrupt as an error."""

    async def _async_interrupt_kernel(self) -> None:
        if not self.shutting_down:
            await super()._async_interrupt_kernel()


def notebook_path(notebook: str) -> Path:
    """The notebook of that name."""
    return ROOT / "notebooks" / f"{notebook}.ipynb"


def execute(run: Planned) -> None:
    """Run a notebook headless, with the executed copy beside the record; RuntimeError, in the notebook's words, where a cell fails."""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    done = outputs(run.params.scale) / f"{run.id}.ipynb"
    partial = done.with_suffix(".running.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    encrypted = Config({"KernelManager": {"transport_encryption": "required"}})  # or ipykernel warns at each start
    options = {"kernel_name": "python3", "progress_bar": False, "stdout_file": sys.stdout, "cwd": str(ROOT)}
    options |= {"config": encrypted, "kernel_manager_class": _Manager}
    try:
        papermill.execute_notebook(str(notebook_path(run.params.notebook)), str(partial), run.values, **options)
    except PapermillExecutionError as error:
        where = f"(in cell {error.cell_index + 1}; the executed copy is {partial.relative_to(ROOT)})"
        raise RuntimeError(f"{error.ename}: {error.evalue}\n{where}") from None
    os.replace(partial, done)


def prepare(runs: list[Planned], folder: Path) -> None:
    """Write each run's notebook, with its parameters but not executed, as NN_<id>.ipynb: for pytest --nbval-lax."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, run in enumerate(runs):
        path = folder / f"{i:02d}_{run.id.replace('/', '_')}.ipynb"
        source = str(notebook_path(run.params.notebook))
        papermill.execute_notebook(source, str(path), run.values, prepare_only=True, progress_bar=False)
