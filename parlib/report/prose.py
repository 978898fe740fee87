"""README, docs and the notebooks' findings from templates: every number that they state is computed from the published records."""

import ast
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from parlib.cache import ROOT, atomic_file
from parlib.experiments.registry import check
from parlib.measure.selection import MARGIN
from parlib.measure.tradeoff import area
from parlib.report import adaptive, inspection, kept, numbers, paper, regimes, studies
from parlib.report.rows import MAIN

TEMPLATES = ROOT / "docs" / "templates"
_FINDINGS = "<!-- on the published runs; from docs/templates/notebooks -->\n"  # which no viewer shows


def constant(path: str, name: str) -> Any:
    """A constant of a module, without importing it."""
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    raise ValueError(f"{path} has no constant {name}")


def render(template: str) -> str:
    """A template's text with its numbers."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= numbers.FILTERS
    for module in (numbers, studies, kept):
        public = ((name, value) for name, value in vars(module).items() if not name.startswith("_"))
        environment.globals |= {name: value for name, value in public if getattr(value, "__module__", "") == module.__name__}
    environment.globals |= {"check": check, "constant": constant, "area": area}
    environment.globals |= {"adaptive": adaptive, "inspection": inspection, "regimes": regimes}
    environment.globals |= {"paper": paper.published, "paper_source": paper.source, "main": list(MAIN), "margin": MARGIN}
    return environment.get_template(template).render()


def targets() -> dict[str, Path]:
    """Where each template is written to, by its name; those of notebooks are shown in them and written nowhere."""
    names = sorted(path.name for path in TEMPLATES.glob("*.md"))
    return {name: ROOT / name if name == "README.md" else ROOT / "docs" / name for name in names}


def write_all() -> None:
    """README and docs; and the findings in the notebooks' stored outputs."""
    numbers.forget()
    for name, path in targets().items():
        with atomic_file(path) as temporary:
            temporary.write_text(render(name))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        for said in closings(notebook):
            own, _, _ = said["text/markdown"].partition(_FINDINGS)
            said["text/markdown"] = own + _FINDINGS + render(f"notebooks/{path.stem}.md")
        with atomic_file(path) as temporary:
            nbformat.write(notebook, temporary)


def findings(params: Any) -> list[str]:
    """A notebook's closing words on the published runs, where this run is among them or the notebook is a view of them; else nothing."""
    template = f"notebooks/{params.notebook}.md"
    shown = (TEMPLATES / template).exists() and params.id == check(params.notebook, {}).id and params.scale == "small"
    return [_FINDINGS + render(template)] if shown else []


def closings(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The stored outputs of a notebook that hold findings."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data for output in outputs if _FINDINGS in output.get("data", {}).get("text/markdown", "")]
