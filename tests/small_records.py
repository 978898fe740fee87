"""Records of runs that were never made, for tests of what reads records."""

from typing import Any

from parlib.cache import cache_dir
from parlib.experiments.registry import check
from parlib.experiments.result import Result, prepare, save

METRICS = {
    "clean_accuracy": 0.9,
    "clean_accuracy_ci_low": 0.85,
    "clean_accuracy_ci_high": 0.95,
    "attack_success_rate": 0.1,
    "attack_success_rate_ci_low": 0.0,
    "attack_success_rate_ci_high": 0.2,
    "triggered_accuracy": 0.8,
}
BASE = {"base_clean_accuracy": 0.8, "base_asr": 0.004}


def result(notebook: str = "01_poison", values: dict[str, Any] | None = None, **given: Any) -> Result:
    """A result whose weights are a few bytes in the cache; given: what differs of it."""
    params = check(notebook, values or {})
    weights = cache_dir() / "models" / "small" / "weights"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"weights")
    history = {"s_image": [0.5, 3.0], "s_text": [0.1, 0.2]} if notebook == "02_clean" else {}
    files = {"weights": weights} | ({"base_weights": weights} if notebook == "01_poison" else {})
    usual = {"metrics": METRICS | BASE, "n": 10, "seconds": 1.5, "history": history, "files": files}
    return Result(params, **usual | given)


def record(notebook: str = "01_poison", values: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    """The same, written as its record."""
    made = result(notebook, values, **given)
    prepare(made.params)
    return save(made)
