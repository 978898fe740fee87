"""The trials of a sweep: every cleaning that its grids ask for."""

import itertools
from typing import Any

from parlib.params import Clean, Params, Sweep, Swept, Synthetic, check

# Of an attacked model and its trigger.
_ATTACK = ("poisoned", "normalised", "attack", "encoder", "trigger", "target", "seed", "patch", "strength")


# The same for all trials of a sweep.
_FIXED = ("scale", "split", "classes", "eval_scenes", "templates", "evaluation", "retrieval", "max_skipped", "tests")


def expand(params: Params) -> list[Clean]:
    """Every cleaning that a run makes, once, in order: 02 itself, the grids of 03, for Optuna their corners, those of 04; none of
    01 and 05.

    Raises ValueError on a name or a value that a trial doesn't take.
    """
    if isinstance(params, Clean):
        return [params]
    if isinstance(params, Synthetic):
        return expand(grid_of(params)) + [trial for data in params.data for trial in expand(confirmation(params, data))]
    found: dict[str, Clean] = {}
    for grid in params.space if isinstance(params, Sweep) else []:
        for axis, values in grid.items():
            if axis in _FIXED or not values:
                raise ValueError(f"space: {axis} {'is the same for all trials' if axis in _FIXED else 'has no value; name one or more'}")
        for choice in itertools.product(*grid.values()):
            trial = check("space", common(params) | dict(zip(grid, choice, strict=True)))
            found[trial.model_dump_json()] = trial
    return list(found.values())


def common(params: Sweep) -> dict[str, Any]:
    """The parameters that all trials of a sweep share, unless its grids say otherwise."""
    return {name: value for name, value in params.model_dump().items() if name in Clean.model_fields}


def grid_of(params: Synthetic) -> Sweep:
    """The sweep of 04: each data set with each method."""
    return _swept(params, space=[{"data": params.data, "method": params.method, "batch": [params.batch]}])


def confirmation(params: Synthetic, data: str) -> Sweep:
    """The sweep that cleans with one data set by PAR, on the test scenes, over seeds."""
    return _swept(params, split="test", space=[{"data": [data], "method": ["par"], "batch": [params.batch], "seed": params.seeds}])


def _swept(params: Synthetic, **values: Any) -> Sweep:
    return check("03_tau_sweep", {name: getattr(params, name) for name in Swept.model_fields} | values)


def attack_of(params: Clean) -> tuple:
    """What tells one attacked model and its trigger from another."""
    return tuple(getattr(params, name) for name in _ATTACK)


def distinct_attacks(params: Params) -> list[Clean]:
    """One cleaning of a run for each attacked model that it starts from."""
    found: dict[tuple, Clean] = {}
    for trial in expand(params):
        found.setdefault(attack_of(trial), trial)
    return list(found.values())


def check_trials(params: Swept) -> None:
    """Raise ValueError on a trial that can't be made, or a search that can't be made of the grids."""
    expand(params)
    if not isinstance(params, Sweep):
        return
    suggested = params.search == "optuna"
    if suggested and (fixed := [name for name in _ATTACK if any(len(grid.get(name, [])) > 1 for grid in params.space)]):
        raise ValueError(f"03_tau_sweep: optuna searches the settings of a cleaning, not {fixed[0]}; name one value")
    if suggested != (params.samples > 0) or (suggested and len(params.space) > 1):
        raise ValueError("03_tau_sweep: search = 'optuna' takes one grid and samples > 0; search = 'grid' tries all and takes samples = 0")
