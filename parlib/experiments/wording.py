"""How a parameter's value is written in a run id, which names it may have, and how an error tells what is wrong with it."""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import AfterValidator, BaseModel

from parlib.cache import digest
from parlib.train.compute import Compute


def shown(value: Any) -> str:
    """A value as part of a run id: as it is where it is short and plain, else a digest."""
    said = (f"{value:g}" if float(f"{value:g}") == value else repr(value)) if isinstance(value, float) else str(value)
    if isinstance(value, list) and all(isinstance(one, int) for one in value):
        said = "-".join(map(str, value))
    plain = said.isascii() and said.replace(".", "").replace("-", "").isalnum()
    like_a_digest = isinstance(value, str) and re.fullmatch("[0-9a-f]{8}", value) is not None
    return said if plain and not like_a_digest else digest(value)[:8]


def known(what: str, value: str, names: Iterable[str]) -> str:
    """The value, where it is among the names; else ValueError, which names the near miss."""
    names = list(names)
    if not isinstance(value, str) or value not in names:
        said = f"unknown {what} {value!r}{_near(str(value), names)} known are: "
        raise ValueError(f"{said}{', '.join(names[:12])}{' ...' if len(names) > 12 else ''}")
    return value


def one_of(what: str, names: Callable[[], Iterable[str]]) -> AfterValidator:
    """For a field that is one of these names, as they are when it is checked."""
    return AfterValidator(lambda value: known(what, value, names()))


def _near(value: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, names, n=1)
    return f", did you mean {near[0]!r}?" if near else ";"


def explain(kind: type[BaseModel], name: str, value: Any, problem: Any) -> str:
    """What is wrong with a parameter, from pydantic's account of it, in a line that says what is allowed."""
    if problem["type"] == "extra_forbidden":
        fields = Compute.model_fields if "." in name else kind.model_fields
        return f"unknown parameter {name!r}{_near(name.rpartition('.')[2], fields)} allowed are: {', '.join(fields)}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    field = kind.model_fields[name.partition(".")[0]]
    wanted = getattr(field.annotation, "__name__", str(field.annotation))
    hint = " (in YAML write 1.0e-5, not 1e-5)" if isinstance(value, str) and wanted == "float" else ""
    hint += " (a list of values is for python -m parlib.run)" if isinstance(value, list) else ""
    given = repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
    return f"{name} = {given}: {problem['msg'].lower()}{hint}; {name.partition('.')[0]} is {field.description}"
