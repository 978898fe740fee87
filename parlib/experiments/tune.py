"""The engine of the sweeps: cleanings as trials of Ray Tune.

Each trial is the function of 02, through the same cache (on another number of threads it is another training). So a sweep that was
killed resumes by being run again: what was trained is read back, what was cut short goes on from its last checkpoint, and Optuna,
told the same results, suggests the same trials again. What ASHA stops depends on which trial reports first: with it a table is not
the same twice.
"""

import itertools
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from parlib.cache import cache_dir, digest, lock
from parlib.experiments.clean_params import Clean
from parlib.experiments.trials import Material, Sweep, as_row, trial_row
from parlib.method.methods import METHODS, Recipe
from parlib.progress import progress
from parlib.train.ray import nbytes, ray_running

_SUGGESTED = 4  # trials that Optuna suggests before it is told results; not the number of workers, or they would decide the suggestions
_LOOKS = Recipe.looks  # after the one before the first step
_ALWAYS = ("clean_accuracy", "attack_success_rate", "triggered_accuracy", "poisoned_clean_accuracy", "poisoned_asr", "seconds", "weights")


def run_trials(params: Sweep, trials: list[Clean], material: Material) -> tuple[pd.DataFrame, float]:
    """All trials as one table, a row a trial in their order, and the seconds that it took with Ray's start. Of Optuna's search those that
    it suggested.

    A trial that failed or diverged is a row with its `error`; one that ASHA stopped is a row with stopped = True and what it
    last measured, in the middle of its training. Raises ValueError when no trial can ever get the CPUs or GPUs that it asks for.
    """
    began, folder = time.monotonic(), cache_dir() / "ray" / digest(params.model_dump())[:16]
    grid = [] if params.search == "optuna" else trials
    with lock(folder.with_suffix(".lock"), wait=True, doing=f"the sweep {params.id}"):
        shutil.rmtree(folder, ignore_errors=True)
        scenes = [scenes for before in material.subjects.values() for scenes in (before.test, before.watched)]
        held = sum(nbytes(item) for item in [*material.pairs.values(), *scenes])  # models are small beside them
        with ray_running(params.ray_address, cpus=params.cpus, gpus=params.gpus, of="a trial", memory=2 * held):
            results: Any = _tuner(params, grid, material, folder).fit()
            rows = [_result(i, result, params, grid, material) for i, result in enumerate(results)]
        shutil.rmtree(folder, ignore_errors=True)
    table = pd.DataFrame(rows).reindex(columns=list(dict.fromkeys(itertools.chain(*rows, _ALWAYS))))
    return table, time.monotonic() - began


def _tuner(params: Sweep, grid: list[Clean], material: Material, folder: Path):
    import ray
    from ray import tune

    count = len(grid) or params.samples
    shared = material.subjects | material.pairs | material.inverted
    stored = {key: ray.put(item) for key, item in shared.items()}  # once, whatever the number of trials
    trainable = tune.with_parameters(_trial, params=params, grid=grid, stored=stored)
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": params.cpus, "gpu": params.gpus}),
        param_space={"trial": tune.grid_search(list(range(count)))} if grid else _ranges(params.space[0]),
        tune_config=tune.TuneConfig(
            metric="goal",
            mode="max",
            num_samples=1 if grid else count,
            search_alg=None if grid else _optuna(params),
            scheduler=_asha() if params.asha else None,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="sweep", storage_path=str(folder), verbose=0, callbacks=[_progress(count)]),
    )


def _trial(config: dict[str, Any], params: Sweep, grid: list[Clean], stored: dict[Any, Any]) -> None:
    """What a Ray worker does: one cleaning, on as many threads as it was given CPUs."""
    import ray
    from ray import tune

    torch.set_num_threads(params.cpus)
    trial = grid[config["trial"]] if grid else params.trial(config)
    attacked, data = trial.attacked_model, trial.clean_set
    inverted = {name: ray.get(stored[name]) for name in [trial.inverted_set] if name in stored}
    material = Material({attacked: ray.get(stored[attacked])}, {data: ray.get(stored[data])}, inverted)
    try:
        device, tell = ("cuda" if params.gpus else "cpu"), (lambda look: tune.report({"goal": _goal(look), "row": look}))
        row = trial_row(trial, material, device=device, tell=tell)
    except FloatingPointError as error:  # a setting that diverges is a finding, not a failure
        row = {"error": f"diverged: {error}"}
    tune.report({"goal": _goal(row), "row": row | {"ended": True}})


def _goal(found: dict[str, Any]) -> float:
    """What a search maximises, on a backdoor that one planted oneself: clean accuracy - ASR."""
    return found["clean_accuracy"] - found["attack_success_rate"] if "clean_accuracy" in found else -1.0


def _result(i: int, result, params: Sweep, grid: list[Clean], material: Material) -> dict[str, Any]:
    """A trial's row, whether it ended well, diverged, was stopped or failed."""
    measured = dict((result.metrics or {}).get("row", {}))
    ended, stopped = measured.pop("ended", False), bool((result.metrics or {}).get("done"))
    if ended and not measured.get("error"):
        return {"stopped": False} | measured
    trial = grid[i] if grid else params.trial(result.config or {})
    error = measured.pop("error", "")
    if not ended and (result.error or not stopped):
        error = " ".join(str(getattr(result.error, "cause", None) or result.error or "did not finish").split())[-300:]
    before = material.subjects[trial.attacked_model]
    return {"stopped": not error} | as_row(trial, before, measured) | {"error": error}


def failures(trials: pd.DataFrame) -> None:
    """Raise RuntimeError, naming them, when trials of a sweep have failed; to be called once the table is safe. A trial that
    diverged has not failed.
    """
    failed = trials[(trials["error"] != "") & ~trials["error"].str.startswith("diverged")]
    if len(failed):
        shown = failed.iloc[0]
        options = "".join(f", {name} {shown[name]:g}" for name in ("lr", *METHODS[shown["method"]].options, "batch"))
        what = f"{shown['method']}{options}: {shown['error']}"
        raise RuntimeError(f"{len(failed)} of {len(trials)} trials failed, such as {what}; the same command tries them again")


def _ranges(grid: dict[str, list[Any]]) -> dict[str, Any]:
    """Tune's space of a grid: two floats are the ends of a range, on a log scale where it doesn't begin at 0; else a choice."""
    from ray import tune

    found = {}
    for name, values in grid.items():
        if len(values) == 2 and all(isinstance(value, float) for value in values):
            found[name] = (tune.loguniform if values[0] > 0 else tune.uniform)(*values)
        else:
            found[name] = tune.choice(values)
    return found


def _optuna(params: Sweep):
    """Optuna's TPE, seeded; it is told results by the batch, so that the same results bring the same suggestions."""
    import optuna
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return ConcurrencyLimiter(OptunaSearch(metric="goal", mode="max", seed=params.seed), max_concurrent=_SUGGESTED, batch=True)


def _asha():
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(max_t=_LOOKS + 2, grace_period=2, reduction_factor=2)


def _progress(count: int):
    """A bar on stdout with the time left."""
    from ray.tune import Callback

    class Progress(Callback):
        def setup(self, **info):
            self.bar = progress(title="trials", total=count, unit="trials")

        def on_trial_complete(self, iteration, trials, trial, **info):
            self.bar.update()

        on_trial_error = on_trial_complete

        def on_experiment_end(self, trials, **info):
            self.bar.close()

    return Progress()
