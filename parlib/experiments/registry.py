"""The experiments by the name of their notebook, and the two ways to make a run: a notebook, or a call of `make`."""

from collections.abc import Callable, Mapping
from typing import Any

from parlib.experiments.adaptive import Adaptive, adaptive
from parlib.experiments.clean import clean
from parlib.experiments.clean_params import Clean
from parlib.experiments.downstream import Downstream, downstream
from parlib.experiments.inspection import Inspect, inspection
from parlib.experiments.params import Params
from parlib.experiments.poison import Poison, poison
from parlib.experiments.rebound import Rebound, rebound
from parlib.experiments.result import prepare, save
from parlib.experiments.sweep import sweep
from parlib.experiments.synthetic import Synthetic, synthetic
from parlib.experiments.trials import Sweep

# They read records and draw: their tables and figures are made anew each time.
_VIEWS: Any = [type(one, (Params,), {"notebook": one}) for one in ("05_evaluate", "06_new_triggers", "11_distil")]
_KINDS = (Poison, Clean, Sweep, Synthetic, Rebound, Adaptive, Downstream, Inspect, *_VIEWS)
EXPERIMENTS: dict[str, type[Params]] = {kind.notebook: kind for kind in sorted(_KINDS, key=lambda kind: kind.notebook)}
FUNCTIONS: dict[type[Params], Callable[[Any], Any]] = {
    Poison: poison,
    Clean: clean,
    Sweep: sweep,
    Synthetic: synthetic,
    Rebound: rebound,
    Adaptive: adaptive,
    Downstream: downstream,
    Inspect: inspection,
}


def check(notebook: str, values: Mapping[str, Any]) -> Params:
    """Parameters of a notebook from values, resolved; ValueError, one line, on what does not fit."""
    return EXPERIMENTS[notebook].check(values)


def make(params: Params) -> dict[str, Any]:
    """Make a run without its notebook, and return its record: the same that the notebook writes."""
    made_of = prepare(params)
    return save(FUNCTIONS[type(params)](params).result, made_of)
