"""One trial of a sweep: a cleaning through notebook 02's training, on material that all trials share."""

from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from parlib.data import Pairs
from parlib.evaluate import EvalSet, evaluate
from parlib.grids import attack_of, distinct_attacks, expand
from parlib.lineage import evaluation_images, planted, upstream, watched_images
from parlib.methods import Recipe
from parlib.model import Clip
from parlib.params import Clean, Sweep
from parlib.poison import attacked
from parlib.streams import Stream
from parlib.synthetic import load_pairs
from parlib.train import Told, Trained, train

_COMMON = {"scale", "classes", "eval_scenes", "evaluation", "retrieval", "templates", "max_skipped", "compute", "tests"}


@dataclass(frozen=True)
class Poisoned:
    """A poisoned model, the scenes to evaluate on, those of the looks, its trigger's options, and what a table says of it."""

    clip: Clip
    test: EvalSet
    watched: EvalSet
    options: dict[str, Any]
    columns: dict[str, Any]


@dataclass(frozen=True)
class Material:
    """What the trials of a sweep share; it goes into Ray's object store once.

    attacks: by what tells one attack from another (params.attack_of). pairs: clean pairs by the name of the data and their number.
    """

    attacks: dict[tuple, Poisoned]
    pairs: dict[tuple[str, int], Pairs | Stream]


def gather(params: Sweep) -> Material:
    """Load all that a sweep's trials need; FileNotFoundError, naming the command that makes it, where a poisoned model is missing."""
    attacks = {}
    scenes, captioned = evaluation_images(params)
    watched = watched_images(params, scenes)
    for trial in distinct_attacks(params):
        before, record = upstream(trial)
        options = planted(trial, record)
        test = attacked(scenes, captioned=captioned, **options)
        known = {"poisoned_clean_accuracy": "clean_accuracy", "poisoned_asr": "attack_success_rate"}
        found = evaluate(before, test)
        found = {name: found[metric] for name, metric in known.items()}
        if record is not None:
            found |= {"rate": record["params"]["rate"]} | {name: record["metrics"][name] for name in ("base_clean_accuracy", "base_asr")}
        attacks[attack_of(trial)] = Poisoned(before, test, attacked(watched, **options), options, found)
    wanted = sorted({(trial.data, trial.pairs) for trial in expand(params)})
    return Material(attacks, {(data, n): load_pairs(data, n, params.classes, params.side, params.max_skipped) for data, n in wanted})


def recipe_of(params: Clean) -> Recipe:
    """The training recipe that notebook 02 makes of its parameters."""
    return Recipe(**{field.name: getattr(params, field.name) for field in fields(Recipe) if hasattr(params, field.name)})


def clean(params: Clean, material: Material, *, device: str = "cpu", tell=None) -> dict[str, Any]:
    """One trial: its parameters, metrics, and what S did, as a row of the sweep's table.

    tell: called with the metrics of each look, while it trains; at once for those of an earlier sitting.
    """
    poisoned, compute = material.attacks[attack_of(params)], params.compute.model_copy(update={"device": device})
    pairs, watch = material.pairs[params.data, params.pairs], Told(poisoned.watched, tell)
    options = {"reference": poisoned.clip, "watch": watch, "compute": compute, "title": params.method}
    cleaned = train(poisoned.clip, pairs, recipe_of(params), **options)
    return trial_row(params, poisoned.options) | _measured(cleaned, params, evaluate(cleaned.clip, poisoned.test)) | poisoned.columns


def trial_row(params: Clean, options: dict[str, Any]) -> dict[str, Any]:
    """A trial's parameters as columns, those of its trigger as they were planted."""
    return params.model_dump(exclude=_COMMON) | {k: options[k] for k in ("patch", "strength")}


def _measured(cleaned: Trained, params: Clean, found: dict[str, Any]) -> dict[str, Any]:
    names = ("clean_accuracy", "attack_success_rate", "asr_with_target_class", "triggered_accuracy", "tr_at_1", "ir_at_1", "retrieval_asr")
    row = {name: found[name] for name in names if name in found}
    row |= {f"asr_{end}": found[f"attack_success_rate_{end}"] for end in ("ci_low", "ci_high")}
    for tower in ("image", "text"):
        if s := cleaned.history.get(f"s_{tower}"):
            row |= {f"s_{tower}_max": max(s), f"s_{tower}_end": sum(s[-len(s) // 10 :]) / len(s[-len(s) // 10 :])}
            row[f"share_above_tau_{tower}"] = sum(value > params.tau for value in s) / len(s)
    return row | {"seconds": cleaned.seconds, "weights": cleaned.sha256, "error": ""}


def columns(trials: pd.DataFrame) -> dict[str, list]:
    """A sweep's table as columns for a record: None where a trial has no value."""
    return trials.astype(object).where(trials.notna(), None).to_dict("list")
