"""The paper's numbers, out of paper.yaml, as fractions."""

from pathlib import Path
from typing import Any

import yaml

_PAPER: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
# The trade-off curves, as (clean accuracy, ASR).
CURVES: dict[str, list[tuple[float, float]]] = {
    label: [(accuracy / 100, asr / 100) for accuracy, asr in points] for label, points in _PAPER["curves"].items() if label != "source"
}


def stands_for(encoder: str) -> str:
    """The paper's encoder that one of ours stands for; empty where there is none."""
    return _PAPER["encoders"].get(encoder, "")


def published(encoder: str, trigger: str, attack: str = "dirty_label") -> dict[str, tuple[float, float | None]]:
    """The paper's (ASR, clean accuracy) by method, of the encoder that stands for ours."""
    found = _PAPER["results"].get(stands_for(encoder), {}).get(trigger, {}) if attack == "dirty_label" else {}
    pairs = {method: value if isinstance(value, list) else [value, None] for method, value in found.items()}
    return {method: (asr / 100, None if accuracy is None else accuracy / 100) for method, (asr, accuracy) in pairs.items()}


def source(part: str) -> str:
    """Where the numbers of a part (results, curves) are from."""
    return _PAPER[part]["source"]
