"""Experiment 08: attackers who expect the cleaning. What a method leaves of their backdoors, and how much of S is a rotation."""

from dataclasses import dataclass, replace
from typing import Any, Self

import pandas as pd
from pydantic import Field

from parlib.attack.adaptive import ATTACKERS
from parlib.attack.poison import poison
from parlib.experiments.clean import clean_model, known_backdoor, tried
from parlib.experiments.examined import CONTROLS, Examined, fresh_pairs, model_of
from parlib.experiments.lineage import load_pairs
from parlib.experiments.params import Input
from parlib.experiments.poison import Poison
from parlib.experiments.result import Result, beside
from parlib.experiments.subject import Subject, clean_pairs, subject
from parlib.experiments.sweep import columns
from parlib.external.stream import Stream
from parlib.measure.distance import turned
from parlib.measure.metrics import evaluate
from parlib.model.checkpoints import SOURCES
from parlib.model.clip import Clip
from parlib.train.cached import train

CAPS = (0.03, 0.9)  # an attacker may cost this much clean accuracy, and must reach this ASR
_SHOWN = ("clean_accuracy", "attack_success_rate", "triggered_accuracy")


class Adaptive(Examined):
    """Parameters of 08_adaptive: the attacker, and the cleaning of its model."""

    notebook = "08_adaptive"

    held_out: int = Field(2000, ge=20, description="clean pairs, others than the cleaning's, on which a rotation is fitted and tested")
    rounds: int = Field(1, ge=1, le=10, description="how often the model is poisoned and cleaned: after the first, the cleaned one again")

    def _resolved(self) -> Self:
        found = super()._resolved()
        if self.rounds > 1 and self.method in CONTROLS:
            raise ValueError(f"method = {self.method!r} cleans nothing: leave rounds at 1")
        if self.rounds > 1 and (self.poisoned.startswith(SOURCES) or self.cleaned.startswith(SOURCES)):
            raise ValueError("rounds above 1 poison a model as it was poisoned before: name runs, not checkpoints")
        if self.rounds > 1 and self.data != "scenes":
            raise ValueError("rounds above 1 are for the embedded scenes")
        return found

    def asked(self) -> dict[str, Any]:
        again = self.cleaning().asked() if self.trains and self.cleaned else {}  # of a model that is named; else its weights tell
        return again | super().asked()

    def inputs(self) -> dict[str, Input]:
        again = self.inverted_input() | self.wordnet_input() if self.trains and self.cleaned else {}
        return super().inputs() | again

    def stages(self) -> list[str]:
        how = ATTACKERS[self.attacker]
        again = ["poison", f"method/{how.method}", *self.cleaning().stages()] if self.trains else []
        others = [f"trigger/{name}" for name in how.others]
        return ["adaptive", *again, *others, *super().stages()]

    @property
    def trains(self) -> bool:
        return self.rounds > 1

    def cost(self) -> int:
        return (self.rounds - 1) * (self.planting().cost() + self.cleaning().cost()) if self.trains else 0


@dataclass(frozen=True)
class Adapted:
    """An attacker's model and what a method made of it.

    rounds: a row a round and model (poisoned, cleaned) with clean_accuracy, attack_success_rate and triggered_accuracy.
    """

    result: Result
    rounds: pd.DataFrame


def adaptive(params: Adaptive, given: Subject | None = None) -> Adapted:
    """Evaluate an attacker's model and its cleaning, under each trigger that was planted; part S into a rotation and the rest; and poison
    and clean again as often as is asked for.
    """
    before = given or subject(params)
    clip = model_of(params, before)
    metrics = evaluate(clip, before.test)
    rows = [_row(1, "poisoned", before.metrics), _row(1, "cleaned", metrics)]
    metrics |= within_caps(before) | turned(clip, before.clip, fresh_pairs(params, params.held_out, clip))
    metrics |= beside("poisoned", before.metrics) | before.about
    tables = {}
    if before.record is not None and (others := _planting(before).others()):
        planted = [(before.trigger, params.target), *others]
        tables["tests"] = tried({"before": before.clip, "after": clip}, before.scenes, planted)
        after = tables["tests"].loc[tables["tests"]["model"] == "after", "attack_success_rate"]
        metrics["worst_asr_of_triggers"] = after.max()
    seconds = 0.0
    for number in range(2, params.rounds + 1):
        clip, found, took = _again(params, before, clip, number)
        rows += found
        seconds += took
    shown = pd.DataFrame(rows)
    result = Result(params, metrics=metrics, n=len(before.test.labels), seconds=seconds, history=columns(shown), tables=tables)
    return Adapted(result, shown)


def within_caps(before: Subject) -> dict[str, Any]:
    """Whether the attacker kept to CAPS: at most 3 points of the base's clean accuracy, an ASR of 0.9 or more. Empty without a base."""
    if "base_clean_accuracy" not in before.planting:
        return {}
    lost = before.planting["base_clean_accuracy"] - before.metrics["clean_accuracy"]
    return {"within_caps": bool(lost <= CAPS[0] and before.metrics["attack_success_rate"] >= CAPS[1])}


def _planting(before: Subject) -> Poison:
    """How the model was poisoned, from its record."""
    return Poison.check(before.record["params"])  # type: ignore[index]


def _again(params: Adaptive, before: Subject, clip: Clip, number: int) -> tuple[Clip, list[dict[str, Any]], float]:
    """Poison a cleaned model as its base was, in other rows, and clean it with the same pairs; a row for each of both."""
    planting, cleaning = _planting(before), params.cleaning()
    pairs = load_pairs(planting.data, planting.train_scenes, planting, split="train", clip=clip)
    assert not isinstance(pairs, Stream)  # external data are refused with the parameters
    attack = replace(planting.planned(), trigger=before.trigger, seed=planting.seed + number - 1)
    stamped, _ = poison(pairs, attack)
    recipe = replace(planting.recipe(), seed=attack.seed)
    poisoned = train(clip, stamped, recipe, clean=pairs, watch=before.watched, compute=params.compute, title=f"poisoning, round {number}")
    how: dict[str, Any] = {"watch": before.watched, "compute": params.compute, "title": f"{params.method}, round {number}"}
    fresh = clean_pairs(cleaning, poisoned.clip)
    cleaned = clean_model(cleaning, poisoned.clip, fresh, known_backdoor(cleaning, replace(before, clip=poisoned.clip)), **how)
    rows = [_row(number, which, evaluate(one.clip, before.test)) for which, one in (("poisoned", poisoned), ("cleaned", cleaned))]
    return cleaned.clip, rows, poisoned.seconds + cleaned.seconds


def _row(number: int, which: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {"round": number, "model": which} | {name: metrics[name] for name in _SHOWN}
