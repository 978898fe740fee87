"""What tests counted or measured and kept in docs with --write-figures, for the texts that state it."""

import json
from functools import cache
from typing import Any

from parlib.cache import ROOT


@cache
def _kept(name: str) -> dict[str, dict[str, Any]]:
    """What the tests of a module kept, by their names; empty where nothing was."""
    path = ROOT / "docs" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def faults() -> dict[str, str]:
    """What happened by kind of injected fault, in words."""
    words = {name: name.replace("_", " ").replace("[", ", ").rstrip("]") for name in _kept("faults")}
    return {words[name]: "; ".join(f"{what}: {count}" for what, count in counts.items()) for name, counts in _kept("faults").items()}


def gpu(test: str) -> dict[str, Any]:
    """What `tests/test_gpu.py` measured on one GPU, empty where it has not run there."""
    return _kept("gpu").get(test, {})


def speed(test: str) -> dict[str, Any]:
    """What `make bench` measured, empty where it has not run."""
    return _kept("speed").get(test, {})
