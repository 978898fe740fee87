"""What every notebook begins and ends with: its checked parameters, its figures, its record."""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from parlib.cache import ROOT, atomic_file, check_surroundings
from parlib.experiments.params import Params
from parlib.experiments.registry import EXPERIMENTS, FUNCTIONS
from parlib.experiments.result import Result, device, prepare, save
from parlib.records.store import outputs


class Run:
    """A notebook's run: its parameters, and where it keeps its figures and its record."""

    def __init__(self, params: Params, made_of: dict[str, Any] | None = None):
        self.params, self.id, self.made_of = params, params.id, made_of

    def figure(self, name: str, figure: Figure | None) -> Figure | None:
        """Save a figure beside the record as <run>_<name>.png and .svg; return it, to be shown. None: there was nothing to draw."""
        if figure is None:
            return None
        for suffix in ("png", "svg"):
            path = outputs(self.params.scale) / f"{self.id}_{name}.{suffix}"
            with atomic_file(path) as temporary:
                figure.savefig(temporary, format=suffix, dpi=110, bbox_inches="tight", metadata={"Date": None} if suffix == "svg" else None)
        return figure

    def save(self, result: Result) -> dict[str, Any]:
        return save(result, self.made_of)


def start(notebook: str, namespace: Mapping[str, Any]) -> Run:
    """Check a notebook's parameters, out of its globals(), and name its run.

    Raises ValueError on a parameter that isn't known or doesn't fit, and where the record of this id is another run's;
    FileNotFoundError where an earlier run is missing; OSError when the outputs or the cache can't be written: all of it before any
    work is done, and in a notebook as one line.
    """
    _short_errors()
    check_surroundings()
    kind = EXPERIMENTS[notebook]
    usual = kind.defaults()
    told: dict[str, bool] = {}
    for name, injected in _assigned(namespace.get("In", [])):
        told[name] = told.get(name, False) or injected
    given = {name: namespace[name] for name in dict.fromkeys([*kind.model_fields, *told]) if name in namespace}
    given = {name: value for name, value in given.items() if name not in usual or told.get(name) or value != usual[name]}
    params = kind.check(given)
    made_of = prepare(params) if kind in FUNCTIONS else None
    filled = {name: value for name, value in params.asked().items() if given.get(name) != value and name != "compute"}
    print(f"run {params.id} at scale {params.scale}, on {device(params)}, {torch.get_num_threads()} threads")
    if filled:
        print("taken from the scale and the tuned values: " + ", ".join(f"{name} {value}" for name, value in filled.items()))
    return Run(params, made_of)


def _assigned(cells: list[str]) -> Iterator[tuple[str, bool]]:
    """The names that the parameters cell assigns, and papermill's below it: the cells of nothing but plain values before the one that
    runs now; and whether papermill assigned them, so that they were asked for even where they have their default.
    """
    for cell in reversed(cells[:-1]):
        try:
            statements = ast.parse(cell).body
        except SyntaxError:  # such as one with a magic
            return
        if not statements or not all(isinstance(one, ast.Assign | ast.AnnAssign) and _is_plain(one.value) for one in statements):
            return
        for one in statements:
            targets = one.targets if isinstance(one, ast.Assign) else [getattr(one, "target", None)]  # the parameters cell annotates
            yield from ((target.id, isinstance(one, ast.Assign)) for target in targets if isinstance(target, ast.Name))


def _is_plain(value: ast.expr | None) -> bool:
    try:
        ast.literal_eval(value or "")
    except (ValueError, SyntaxError):  # of an annotation alone, too
        return False
    return True


def _short_errors() -> None:
    """In a notebook, an error that parlib raises shows its line alone; any other keeps its traceback."""
    from IPython import get_ipython

    def show(shell: Any, kind: type, error: BaseException, trace: Any, tb_offset: int | None = None) -> list[str]:
        last = trace
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        ours = last is not None and last.tb_frame.f_code.co_filename.startswith(str(ROOT / "parlib"))
        lines = [f"{kind.__name__}: {error}"] if ours else shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset=tb_offset)
        shell._showtraceback(kind, error, lines)
        return lines

    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((ValueError, RuntimeError, OSError, FloatingPointError), show)
