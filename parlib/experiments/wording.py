"""How a parameter's value is written in a run id, and how an error tells what is wrong with it."""

import difflib
import re
from typing import Any

from pydantic import BaseModel

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


def explain(kind: type[BaseModel], name: str, value: Any, problem: Any) -> str:
    """What is wrong with a parameter, from pydantic's account of it, in a line that says what is allowed."""
    if problem["type"] == "extra_forbidden":
        fields = Compute.model_fields if "." in name else kind.model_fields
        near = difflib.get_close_matches(name.rpartition(".")[2], fields, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        return f"unknown parameter {name!r}{hint} allowed are: {', '.join(fields)}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    field = kind.model_fields[name.partition(".")[0]]
    wanted = getattr(field.annotation, "__name__", str(field.annotation))
    hint = " (in YAML write 1.0e-5, not 1e-5)" if isinstance(value, str) and wanted == "float" else ""
    hint += " (a list of values is for python -m parlib.run)" if isinstance(value, list) else ""
    given = repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
    return f"{name} = {given}: {problem['msg'].lower()}{hint}; {name.partition('.')[0]} is {field.description}"
