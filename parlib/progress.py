"""Progress with the time left: a bar on a terminal, a line now and then in a log, one line that changes in a notebook."""

import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_EVERY = {"bar": 2.0, "lines": 30.0, "display": 2.0}  # seconds


def progress(items: Iterable[Any] | None = None, title: str = "", *, shown: bool = True, **options: Any) -> tqdm:
    """tqdm over items, as PAR_PROGRESS says (bar, lines or display); unset, as the surroundings say. It leaves nothing behind but, in a
    notebook, a line that says how long it took. set_postfix adds what should be watched, such as the loss.
    """
    how = os.environ.get("PAR_PROGRESS") or _surroundings()
    kind = {"bar": _Steady, "lines": _Lines, "display": _Display}[how]
    return kind(items, title, file=sys.stdout, mininterval=_EVERY[how], ascii=True, leave=False, disable=not shown, **options)


def _surroundings() -> str:
    if "ipykernel" in sys.modules:
        from IPython import get_ipython

        if hasattr(get_ipython(), "kernel"):
            return "display"
    return "bar" if sys.stdout.isatty() else "lines"


class _Steady(tqdm):
    """tqdm by a clock that is never set: after a jump of the usual one it would be silent until that has caught up."""

    _time = property(lambda self: time.monotonic, lambda self, clock: None)


class _Lines(_Steady):
    """Each state is a line of its own, the first one after mininterval."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n and self.n != self.total:
            print(msg or str(self), flush=True)

    def clear(self, nolock: bool = False) -> None:
        """What was shown stays."""


class _Display(_Lines):
    """One output of a notebook's cell, which changes; its last state says how long it took."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        self._say(msg or str(self))

    def close(self) -> None:
        if not self.disable and self.n:
            self._say(f"{self.desc.rstrip(': ')}: {self.n} {self.unit} in {self.format_interval(self.format_dict['elapsed'])}")
        self.disable = True

    def _say(self, text: str) -> None:
        from IPython.display import display

        data = {"text/plain": text}
        if not hasattr(self, "handle"):
            self.handle: Any = display(data, raw=True, display_id=True)
        else:
            self.handle.update(data, raw=True)
