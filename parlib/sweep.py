"""Many cleanings at once on Ray Tune: grids, or Optuna's suggestions, over any parameter of notebook 02, and its data.

Each trial is notebook 02's training, through the same cache (on another number of threads it is another training). So a sweep that
was killed resumes by being run again: what was trained is read back, what was cut short goes on from its last checkpoint, and
Optuna, told the same results, suggests the same trials again. What ASHA stops depends on which trial reports first: with it a
table is not the same twice.
"""

import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from parlib.cache import cache_dir, digest, lock
from parlib.data import Pairs, load_scenes
from parlib.evaluate import EvalSet, evaluate
from parlib.methods import METHODS
from parlib.model import Clip, embed_images
from parlib.params import Sweep, Trial, attack_of, check, common, distinct_attacks, expand
from parlib.poison import attacked
from parlib.records import planted, upstream
from parlib.report import MARGIN, choose
from parlib.synthetic import frechet, load_pairs, vendi
from parlib.train import Recipe, Told, Trained, fit, train

_AXES = ("encoder", "trigger", "seed", "data", "tau", "self_weight", "pool", "lr", "schedule", "batch_norm", "pairs", "epochs", "batch")
_REST = ("target", "poisoned", "patch", "strength")  # which seldom vary, or follow from those
_SUGGESTED = 4  # trials that Optuna suggests before it is told results; not the number of workers, or they would decide the suggestions
_LOOKS = Recipe.looks  # after the one before the first step


@dataclass(frozen=True)
class Material:
    """What the trials of a sweep share; it goes into Ray's object store once.

    attacks: for each attack its poisoned model, the scenes to evaluate on, the scenes of the looks, the trigger's options and
    what is known of the poisoned model. pairs: clean pairs by the name of the data and their number.
    """

    attacks: dict[tuple, tuple[Clip, EvalSet, EvalSet, dict[str, Any], dict[str, Any]]]
    pairs: dict[tuple[str, int], Pairs]


def gather(params: Sweep) -> Material:
    """Load all that a sweep's trials need; FileNotFoundError, naming the command that makes it, where a poisoned model is missing."""
    attacks = {}
    scenes = load_scenes(params.split, params.eval_scenes, params.classes)
    watched = load_scenes("validation", params.eval_scenes, params.classes).first(min(500, params.eval_scenes))
    for trial in distinct_attacks(params):
        before, record = upstream(trial)
        options = planted(trial, record)
        test = attacked(scenes, **options)
        known = {"poisoned_clean_accuracy": "clean_accuracy", "poisoned_asr": "attack_success_rate"}
        found = evaluate(before, test)
        found = {name: found[metric] for name, metric in known.items()}
        if record is not None:
            found |= {"rate": record["params"]["rate"]} | {name: record["metrics"][name] for name in ("base_clean_accuracy", "base_asr")}
        attacks[attack_of(trial)] = (before, test, attacked(watched, **options), options, found)
    wanted = sorted({(trial.data, trial.pairs) for trial in expand(params)})
    return Material(attacks, {(data, n): load_pairs(data, n, params.classes) for data, n in wanted})


def recipe_of(params: Trial) -> Recipe:
    """The training recipe that notebook 02 makes of its parameters."""
    return Recipe(**{field.name: getattr(params, field.name) for field in fields(Recipe) if hasattr(params, field.name)})


def clean(params: Trial, material: Material, *, device: str = "cpu", tell=None) -> dict[str, Any]:
    """One trial: its parameters, metrics, and what S did, as a row of the sweep's table.

    tell: called with the metrics of each look, while it trains; at once for those of an earlier sitting.
    """
    before, test, watched, options, poisoned = _on(device, material.attacks[attack_of(params)])
    pairs, watch = _on(device, [material.pairs[params.data, params.pairs]])[0], Told(watched, tell)
    cleaned = train(before, pairs.pixels, pairs.captions, recipe_of(params), reference=before, watch=watch, title=params.method)
    return _row(params, options) | _measured(cleaned, params, evaluate(_on(device, [cleaned.clip])[0], test)) | poisoned


def _on(device: str, items: Iterable[Any]) -> list[Any]:
    """Models, scenes and pairs on a device; what is neither stays as it is."""
    moved = []
    for item in items:
        if isinstance(item, Clip):
            item.net.to(device)
        elif is_dataclass(item):
            tensors = {field.name: getattr(item, field.name) for field in fields(item)}
            item = replace(item, **{name: value.to(device) for name, value in tensors.items() if isinstance(value, torch.Tensor)})
        moved.append(item)
    return moved


def _row(params: Trial, options: dict[str, Any]) -> dict[str, Any]:
    return params.model_dump(exclude={"scale", "classes", "eval_scenes"}) | {k: options[k] for k in ("patch", "strength")}


def _measured(cleaned: Trained, params: Trial, found: dict[str, Any]) -> dict[str, Any]:
    names = ("clean_accuracy", "attack_success_rate", "asr_with_target_class", "triggered_accuracy", "tr_at_1", "ir_at_1", "retrieval_asr")
    row = {name: found[name] for name in names}
    row |= {f"asr_{end}": found[f"attack_success_rate_{end}"] for end in ("ci_low", "ci_high")}
    for tower in ("image", "text"):
        if s := cleaned.history.get(f"s_{tower}"):
            row |= {f"s_{tower}_max": max(s), f"s_{tower}_end": sum(s[-len(s) // 10 :]) / len(s[-len(s) // 10 :])}
            row[f"share_above_tau_{tower}"] = sum(value > params.tau for value in s) / len(s)
    return row | {"seconds": cleaned.seconds, "weights": cleaned.sha256, "error": ""}


def sweep(params: Sweep, material: Material) -> pd.DataFrame:
    """All trials on Ray as one table, a row a trial in the order of the grids; its attrs hold the `seconds` with Ray's start.

    A trial that failed or diverged is a row with its `error`; one that ASHA stopped is a row with stopped = True and what it
    last measured, in the middle of its training. Raises ValueError when no trial can ever get the CPUs or GPUs that it asks for.
    """
    began, folder = time.monotonic(), cache_dir() / "ray" / digest(params.model_dump())[:16]
    with lock(folder.with_suffix(".lock"), wait=True, doing=f"the sweep {params.name}"):
        shutil.rmtree(folder, ignore_errors=True)
        with _ray(params, material):
            results = _tuner(params, material, folder).fit()
            rows = [_result(i, result, params, material) for i, result in enumerate(results)]
        shutil.rmtree(folder, ignore_errors=True)
    table = pd.DataFrame(rows).reindex(columns=list(dict.fromkeys(itertools.chain(*rows, _ALWAYS))))
    table.attrs["seconds"] = time.monotonic() - began
    return table


def _tuner(params: Sweep, material: Material, folder: Path):
    import ray
    from ray import tune

    grid = [] if params.search == "optuna" else expand(params)
    count = len(grid) or params.samples
    stored = {key: ray.put(item) for key, item in (material.attacks | material.pairs).items()}  # once, whatever the number of trials
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, params=params, grid=grid, stored=stored), {"cpu": params.cpus, "gpu": params.gpus}
        ),
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


_ALWAYS = ("clean_accuracy", "attack_success_rate", "triggered_accuracy", "poisoned_clean_accuracy", "poisoned_asr", "seconds", "weights")


def _trial(config: dict[str, Any], params: Sweep, grid: list[Trial], stored: dict[tuple, Any]) -> None:
    """What a Ray worker does: one cleaning, on as many threads as it was given CPUs."""
    import ray
    from ray import tune

    torch.set_num_threads(params.cpus)
    trial = grid[config["trial"]] if grid else check("space", common(params) | config)
    attack, data = attack_of(trial), (trial.data, trial.pairs)
    material = Material({attack: ray.get(stored[attack])}, {data: ray.get(stored[data])})
    try:
        device, tell = ("cuda" if params.gpus else "cpu"), (lambda look: tune.report({"goal": _goal(look), "row": look}))
        row = clean(trial, material, device=device, tell=tell)
    except FloatingPointError as error:  # a setting that diverges is a finding, not a failure
        row = {"error": f"diverged: {error}"}
    tune.report({"goal": _goal(row), "row": row | {"ended": True}})


def _goal(found: dict[str, Any]) -> float:
    """What a search maximises, on a backdoor that one planted oneself: clean accuracy - ASR."""
    return found["clean_accuracy"] - found["attack_success_rate"] if "clean_accuracy" in found else -1.0


def _result(i: int, result, params: Sweep, material: Material) -> dict[str, Any]:
    """A trial's row, whether it ended well, diverged, was stopped or failed."""
    measured = dict((result.metrics or {}).get("row", {}))
    ended, stopped = measured.pop("ended", False), bool((result.metrics or {}).get("done"))
    if ended and not measured.get("error"):
        return {"stopped": False} | measured
    trial = check("space", common(params) | (result.config or {})) if params.search == "optuna" else expand(params)[i]
    error = measured.pop("error", "")
    if not ended and (result.error or not stopped):
        error = " ".join(str(getattr(result.error, "cause", None) or result.error or "did not finish").split())[-300:]
    *_, options, poisoned = material.attacks[attack_of(trial)]
    return {"stopped": not error} | _row(trial, options) | measured | poisoned | {"error": error}


def failures(trials: pd.DataFrame) -> None:
    """Raise RuntimeError, naming them, when trials of a sweep have failed; to be called once the table is safe. A trial that
    diverged has not failed.
    """
    failed = trials[(trials["error"] != "") & ~trials["error"].str.startswith("diverged")]
    if len(failed):
        shown = failed.iloc[0]
        what = f"{shown['method']}, lr {shown['lr']:g}, tau {shown['tau']:g}, batch {shown['batch']}: {shown['error']}"
        raise RuntimeError(f"{len(failed)} of {len(trials)} trials failed, such as {what}; the same command tries them again")


@contextmanager
def _ray(params: Sweep, material: Material) -> Iterator[None]:
    """A quiet Ray without telemetry: our own, stopped at the end, or the running cluster at an address, which is left running."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    # Several nodes need the cache in a folder that they share.
    environment = {"py_modules": [str(Path(__file__).parent)], "env_vars": {"PAR_CACHE": str(cache_dir())}}
    options: dict[str, Any] = {"address": params.ray_address, "runtime_env": environment}
    if not params.ray_address:
        if params.cpus > (os.cpu_count() or 1):
            raise ValueError(f"a trial asks for {params.cpus} CPUs; this machine has {os.cpu_count()}")
        os.environ["RAY_AUTH_MODE"] = "disabled"  # else a token file is written to the home folder
        options = {"address": "local", "include_dashboard": False, "object_store_memory": max(2**28, 2 * _bytes(material))}
    import ray

    ray.init(log_to_driver=False, logging_level="ERROR", **options)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for what, asked in (("CPU", params.cpus), ("GPU", params.gpus)):
            if asked > (most := max(node.get(what, 0) for node in nodes)):
                raise ValueError(f"a trial asks for {asked:g} {what}s; Ray has {most:g} on one machine")
        yield
    finally:
        ray.shutdown()


def _bytes(material: Material) -> int:
    """About what the shared data take, models left out."""
    scenes = [scenes for _, *pair, _, _ in material.attacks.values() for scenes in pair]
    return sum(item.pixels.nbytes + getattr(item, "triggered", item.pixels).nbytes for item in [*material.pairs.values(), *scenes])


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
            self.bar = tqdm(total=count, desc="trials", file=sys.stdout, ascii=True, leave=False)

        def on_trial_complete(self, iteration, trials, trial, **info):
            self.bar.update()

        on_trial_error = on_trial_complete

        def on_experiment_end(self, trials, **info):
            self.bar.close()

    return Progress()


def columns(trials: pd.DataFrame) -> dict[str, list]:
    """A sweep's table as columns for a record: None where a trial has no value."""
    return trials.astype(object).where(trials.notna(), None).to_dict("list")


def overhead(params: Sweep, material: Material, trials: pd.DataFrame) -> dict[str, float]:
    """What Ray costs: the wall time of a sweep against the same trainings in a plain loop, shared among the workers.

    The loop is timed by its first training, without Ray and cache, on a trial's threads with nothing beside it.
    loop_seconds: of the whole loop; overhead: the share of the wall time beyond loop_seconds / workers. Empty where that says
    nothing: off this machine's CPUs, for trials that differ in length, and where trials were read from the cache, as their time is
    then not the sweep's.
    """
    wall, workers = trials.attrs["seconds"], max(1, (os.cpu_count() or 1) // params.cpus)
    unlike = trials[["method", "data", "pairs", "epochs", "batch"]].drop_duplicates()
    if params.ray_address or params.gpus or len(unlike) > 1 or trials["stopped"].any() or (trials["error"] != "").any():
        return {}
    if params.search == "optuna" or wall < trials["seconds"].sum() / workers:
        return {}
    first = expand(params)[0]
    before, _, watched, _, _ = material.attacks[attack_of(first)]
    pairs, threads, reword = material.pairs[first.data, first.pairs], torch.get_num_threads(), METHODS[first.method].reword
    reworded = before.tokenizer(reword(pairs.captions, first.seed)) if reword else None
    options = {"reworded": reworded, "reference": before, "watch": watched, "title": "alone"}
    torch.set_num_threads(params.cpus)
    try:
        _, seconds = fit(before.copy(), pairs.pixels, before.tokenizer(pairs.captions), recipe_of(first), **options)
    finally:
        torch.set_num_threads(threads)
    loop = seconds * len(trials)
    return {"wall_seconds": wall, "loop_seconds": loop, "workers": workers, "overhead": 1 - loop / workers / wall}


def area(trials: pd.DataFrame) -> float:
    """The hypervolume of a trade-off curve: the share of the unit square of clean accuracy and 1 - ASR that its points dominate."""
    best, total = 0.0, 0.0
    for accuracy, asr in sorted(zip(trials["clean_accuracy"], trials["attack_success_rate"], strict=True), reverse=True):
        total += accuracy * max(0.0, 1 - asr - best)
        best = max(best, 1 - asr)
    return total


def below(one: pd.DataFrame, other: pd.DataFrame) -> float | None:
    """The share of the clean accuracies that two trade-off curves both attain at which the first one's ASR is the lower; None where
    they share none.

    At a clean accuracy a curve's ASR is the lowest of its points that are at least so accurate.
    """
    found = [curve[["clean_accuracy", "attack_success_rate"]].to_numpy() for curve in (one, other)]
    low, high = max(points[:, 0].min() for points in found), min(points[:, 0].max() for points in found)
    if low >= high:
        return None
    cuts = sorted({low, high, *(accuracy for points in found for accuracy, _ in points if low < accuracy < high)})
    total = 0.0
    for start, end in itertools.pairwise(cuts):  # between two cuts neither changes
        ours, theirs = (points[points[:, 0] >= end, 1].min() for points in found)
        total += (end - start) * (ours < theirs)
    return total / (high - low)


def tau_rule(curve: pd.DataFrame) -> Any:
    """The label of the trial whose tau to take without knowing the trigger, among trials of PAR that differ in tau alone: the largest
    tau that both encoders hold, S_phi and S_psi ending at it or above, at a clean accuracy within MARGIN of the poisoned model's;
    the smallest tau where there is none.
    """
    held = curve[["s_image_end", "s_text_end"]].min(axis=1) >= curve["tau"]
    good = curve[held & (curve["clean_accuracy"] >= curve["poisoned_clean_accuracy"] - MARGIN)]
    return good["tau"].idxmax() if len(good) else curve["tau"].idxmin()


def rule_and_best(traced: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """For each curve over tau, what `tau_rule` takes beside what one would take who knew the trigger (report.choose)."""
    rows = []
    for label, curve in traced.items():
        if curve["knob"].iloc[0] == "tau" and len(curve) > 1:
            ours, best = curve.loc[tau_rule(curve)], curve.loc[choose(curve)]
            row = {"curve": label, "encoder": ours["encoder"], "trigger": ours["trigger"]}
            for name, trial in (("rule", ours), ("best", best)):
                row |= {f"{name}_tau": trial["tau"], f"{name}_clean_accuracy": trial["clean_accuracy"]}
                row[f"{name}_asr"] = trial["attack_success_rate"]
            rows.append(row)
    return pd.DataFrame(rows)


def curves(trials: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A grid's trade-off curves by label: two or more trials that differ only in their method's own knob (tau, self_weight, pool,
    or else lr), in its order, with the columns `knob` and `value`.
    """
    found = {}
    for method, runs in trials.groupby("method", sort=False):
        knob, others = (METHODS[method].options or ("lr",))[0], []
        for axis in (*_AXES, *_REST):  # those that tell trials apart, and don't just follow from another one
            if axis != knob and len(runs[[*others, axis]].drop_duplicates()) > (len(runs[others].drop_duplicates()) if others else 1):
                others.append(axis)
        for values, curve in runs.groupby(others, sort=False) if others else [((), runs)]:
            label = ", ".join([method, *(f"{axis} {value}" for axis, value in zip(others, values, strict=True))])
            if len(curve) > 1:
                found[label] = curve.sort_values(knob).assign(knob=knob, value=curve[knob])
    return found


def gaps(clip: Clip, pairs: dict[tuple[str, int], Pairs], classes: int, count: int = 4000) -> pd.DataFrame:
    """How far each set of pairs lies from scenes of the training split (Fréchet distance), and how varied it is (Vendi score), in a
    model's image embedding: a row a set, by the first `count` pairs.
    """
    known = embed_images(clip, load_scenes("train", min(count, 120 * classes), classes).pixels)
    rows = []
    for (data, n), found in pairs.items():
        image = embed_images(clip, found.pixels[:count])
        rows.append({"data": data, "pairs": n, "gap": frechet(image, known), "diversity": vendi(image)})
    return pd.DataFrame(rows)
