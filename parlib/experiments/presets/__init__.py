"""Tuned and usual values, read from the YAML files beside this module."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

_LENGTHS = ("size", "tile")  # px, in proportion to the image where a size has no preset; so are wanet's offsets, one a pixel


@cache
def _read(name: str) -> dict[Any, Any]:
    return yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text())


def trigger_options(trigger: str, side: int = 64) -> dict[str, float]:
    """The usual options of a trigger at an image size in px. ValueError on a trigger that has none."""
    presets = _read("triggers").get(trigger)
    if presets is None:
        raise ValueError(f"{trigger!r} has no usual options; those that have are: {', '.join(_read('triggers'))}")
    if side in presets or side == 336:
        return dict(presets.get(side, presets[224]))
    scaled = (*_LENGTHS, "offsets") if trigger == "wanet" else _LENGTHS
    return {name: round(value * side / 224) if name in scaled else value for name, value in presets[224].items()}


def proportion(trigger: str) -> dict[str, float]:
    """The paper's options in proportion to 64 px; empty for a trigger that it has not."""
    return dict(_read("triggers").get(trigger, {}).get("proportion", {}))


def drawn_triggers(new: bool = False) -> list[str]:
    """All triggers that have usual options; new: those of them that the paper has not."""
    return [name for name, presets in _read("triggers").items() if presets.get("new") or not new]


def tuned(method: str, encoder: str) -> dict[str, Any]:
    """lr, batch and schedule as the search chose them for a method, and for an encoder where it was searched anew."""
    methods = _read("methods")
    own = methods.get(method, {"like": "finetune"})
    like = own.get("like", method)
    found = methods[like] | methods.get(encoder, {}).get(like, {}) | (own if "like" in own else {})
    return {name: found[name] for name in ("lr", "batch", "schedule")}


def planting(encoder: str, trigger: str, kind: str) -> dict[str, Any]:
    """How a base is pretrained and a trigger is planted: base_epochs, base_lr, lr, rate, epochs, and trigger_options where they are
    not the usual ones.
    """
    known = _read("planting")
    found = {"epochs": known["epochs"], "rate": known["rates"][kind]}
    found |= known["encoders"].get(encoder, known["encoders"]["small_resnet"])
    return found | known["triggers"].get(trigger, {}) | known["triggers"].get(f"{encoder}/{trigger}", {})


def scale_values(notebook: str, scale: str, *of: str) -> dict[str, Any]:
    """What a scale takes where a parameter is left at its default; of: a method and an encoder, which may have values of their own."""
    known = _read("scales").get(scale, {})
    found: dict[str, Any] = {}
    for name in (notebook, *(f"{notebook}/{one}" for one in of)):
        found |= known.get(name, {})
    return found
