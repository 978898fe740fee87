"""What a result is: what was asked, what went in, and the version of each computation. Records hold it, caches are keyed by it."""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from parlib.stages import ENVIRONMENT, STAGES


def identity(*, params: Mapping[str, Any], inputs: Mapping[str, str], stages: Iterable[str]) -> dict[str, Any]:
    """The identity of a result of today's code, whose digest is the key of a cache. params: those that differ from their defaults; inputs:
    sha256 by name; stages: names in STAGES, KeyError on any other.
    """
    versions = {name: STAGES[name] for name in sorted(set(stages))}
    return {"params": dict(params), "inputs": dict(inputs), "stages": versions, "environment": dict(environment())}


@cache
def environment() -> dict[str, str]:
    """major.minor.patch of the installed packages in ENVIRONMENT, without a local suffix such as +cpu."""
    return {name: ".".join(version(name).partition("+")[0].split(".")[:3]) for name in ENVIRONMENT}


def differences(made: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """In what an identity on record differs from what is asked now, such as "method/par 1 -> 2" or "inputs.poisoned"."""
    found = []
    for part, prefix in (("params", ""), ("inputs", "inputs."), ("stages", ""), ("environment", "")):
        before, after = made[part], asked[part]
        for name in dict.fromkeys([*before, *after]):
            if before.get(name) != after.get(name):
                told = f" {_short(before.get(name))} -> {_short(after.get(name))}" if part != "inputs" else ""
                found.append(f"{prefix}{name}{told}")
    return found


def _short(value: Any) -> str:
    shown = "default" if value is None else str(value)
    return shown if len(shown) < 40 else f"{shown[:37]}..."
