"""Experiment 07: does the backdoor come back? What further training, without the trigger or with a little of it, does after a cleaning."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import pandas as pd
from pydantic import Field, ValidationInfo, field_validator

from parlib.attack.poison import Attack, attacked, poison
from parlib.data.pairs import Pairs, class_index
from parlib.experiments.examined import Examined, fresh_pairs, model_of
from parlib.experiments.result import Result, beside
from parlib.experiments.subject import Subject, subject
from parlib.experiments.sweep import columns
from parlib.measure.metrics import EvalSet, classifier, evaluate, interval
from parlib.method.methods import Recipe
from parlib.model.clip import Clip
from parlib.model.weights import batch_norms, between, refreshed
from parlib.train.cached import train
from parlib.train.head import fit_head

BENIGN = ("refresh", "benign", "head")  # treatments without a triggered image
_WATCHED = 500  # images of the looks
_LINE = 10  # parts of the line of weights from the cleaned to the poisoned model


class Rebound(Examined):
    """Parameters of 07_rebound: the model, and the treatments."""

    notebook = "07_rebound"
    trains = True

    benign_pairs: int = Field(2400, ge=10, description="clean pairs of the treatments; but for a head, those with the target are left out")
    rates: list[float] = Field([2.0e-4, 2.0e-3], min_length=1, description="peak rates of benign fine-tuning; the first one retunes, too")
    look_at: list[int] = Field([5, 10, 20, 50, 100, 300], min_length=1, description="steps of a look; benign fine-tuning ends at the last")
    retuned: list[int] = Field([5, 25, 125], description="numbers of triggered pairs among the clean ones, in retuning")
    retune_steps: int = Field(100, ge=1, description="steps of retuning")
    benign_batch: int = Field(128, ge=2, description="pairs a step of the treatments")

    @field_validator("rates", "look_at", "retuned")
    @classmethod
    def _positive(cls, value: list[Any], info: ValidationInfo) -> list[Any]:
        if any(one <= 0 for one in value) or sorted(set(value)) != value:
            raise ValueError(f"{info.field_name} = {value}: they must be above 0, each once, in rising order")
        return value

    def _resolved(self) -> Self:
        found = super()._resolved()
        found.check_compute(self.benign_batch, "train")
        return found

    def recipe(self) -> Recipe:
        """The longest of the treatments."""
        return self.benign(self.rates[-1], "train", self.look_at[-1])

    def benign(self, lr: float, batch_norm: str, steps: int) -> Recipe:
        """Contrastive fine-tuning, with the looks up to its last step."""
        looks = tuple(sorted({step for step in self.look_at if step < steps} | {steps}))
        options: dict[str, Any] = {"schedule": "cosine", "batch_norm": batch_norm, "steps": steps, "look_at": looks}
        return Recipe("finetune", 1, self.benign_batch, lr, self.seed, **options)

    def stages(self) -> list[str]:
        return ["rebound", "poison", "loop", "method/finetune", *super().stages()]

    def cost(self) -> int:
        steps = self.look_at[-1] * (2 * len(self.rates) + 1) + self.retune_steps * len(self.retuned)
        return steps * self.benign_batch


@dataclass(frozen=True)
class Rebounded:
    """What the treatments did to a model.

    course: a row a look: treatment (before, refresh, benign, head, retune, line), lr, batch_norm, poisons, step, share (of the line),
    clean_accuracy and attack_success_rate.
    """

    result: Result
    course: pd.DataFrame


def without(pairs: Pairs, target: str) -> Pairs:
    """The pairs that neither show nor name the target; of pairs that have no labels it is the only class."""
    found = pairs if (pairs.labels >= 0).all() else replace(pairs, names=[target])
    return found.at((~found.shows(class_index(target, found.names))).nonzero()[:, 0])


def rebound(params: Rebound, given: Subject | None = None) -> Rebounded:
    """Treat a cleaned model, or a control, in every way, each from its weights as they are, and look at it as it goes."""
    before = given or subject(params)
    clip = model_of(params, before)
    every = fresh_pairs(params, params.benign_pairs, clip)
    pairs = without(every, params.target)
    if (most := max(params.retuned, default=0)) > len(pairs):
        raise ValueError(f"retuned: {most} pairs can't be triggered, there are {len(pairs)} that don't name {params.target!r}")
    watched = attacked(before.scenes.first(min(_WATCHED, len(before.scenes))), before.trigger, params.target)
    metrics = evaluate(clip, before.test)
    rows = [{"treatment": "before", "step": 0} | watched.look(clip)]
    if batch_norms(clip):
        fresh = refreshed(clip, pairs.pixels)
        found = evaluate(fresh, before.test)
        metrics |= {f"refreshed_{name}": found[name] for name in ("clean_accuracy", "attack_success_rate")}
        rows.append({"treatment": "refresh", "step": 0} | watched.look(fresh))
    seconds = 0.0
    for row, trained in _tuned(params, before, clip, pairs, watched):
        seconds += trained.seconds
        names = [name for name in trained.history if name.startswith("look_")]
        for values in zip(*(trained.history[name] for name in names), strict=True):
            rows.append(row | {name.removeprefix("look_"): value for name, value in zip(names, values, strict=True)})
    rows += _with_head(params, clip, every, watched) + _line(params, before, clip, watched)
    course = pd.DataFrame(rows)
    metrics |= worst(course, int((~watched.shows_target).sum())) | beside("poisoned", before.metrics)
    metrics |= before.about
    result = Result(params, metrics=metrics, n=len(before.test.labels), seconds=seconds, history=columns(course))
    return Rebounded(result, course)


def worst_look(course: pd.DataFrame) -> pd.Series:
    """The look with the highest ASR within 300 steps of the treatments without a trigger, the model before them among them."""
    found = course[course["treatment"].isin(["before", *BENIGN]) & (course["step"] <= 300)]
    return found.loc[found["attack_success_rate"].idxmax()]


def worst(course: pd.DataFrame, n: int) -> dict[str, float]:
    """worst_asr_300, the ASR of the worst look, with Wilson's interval; n: images that an ASR is a share of. worst_step and
    worst_treatment say where it was.
    """
    row = worst_look(course)
    low, high = interval(round(row["attack_success_rate"] * n), n)
    return {"worst_asr_300": row["attack_success_rate"], "worst_asr_300_ci_low": low, "worst_asr_300_ci_high": high} | {
        "worst_treatment": row["treatment"],
        "worst_step": int(row["step"]),
    }


def _tuned(params: Rebound, before: Subject, clip: Clip, pairs: Pairs, watched: EvalSet) -> Iterator[tuple[dict[str, Any], Any]]:
    """Benign fine-tuning at each rate with BatchNorm frozen and training, and retuning with each number of triggered pairs: what tells a
    training from the others, and what came out.
    """
    norms = ("frozen", "train") if batch_norms(clip) else ("train",)
    for lr in params.rates:
        for norm in norms:
            recipe = params.benign(lr, norm, params.look_at[-1])
            title = f"benign, rate {lr:g}, BatchNorm {norm}"
            row = {"treatment": "benign", "lr": lr, "batch_norm": norm}
            yield row, train(clip, pairs, recipe, watch=watched, compute=params.compute, title=title)
    for count in params.retuned:
        attack = Attack(before.trigger, params.target, "dirty_label", count / len(pairs), params.seed)
        stamped, _ = poison(pairs, attack)
        recipe = params.benign(params.rates[0], "train", params.retune_steps)
        row = {"treatment": "retune", "lr": params.rates[0], "batch_norm": "train", "poisons": count}
        yield row, train(clip, stamped, recipe, watch=watched, compute=params.compute, title=f"retuning with {count} triggered pairs")


def _with_head(params: Rebound, clip: Clip, pairs: Pairs, watched: EvalSet) -> list[dict[str, Any]]:
    """A supervised head with the encoder unfrozen, from the zero-shot classifier on: images of all classes, as a user of a classifier has
    them; none where the pairs have no labels.
    """
    if (pairs.labels < 0).any() or pairs.names != watched.names:
        return []
    rows, tuned = [], clip.copy()

    def look(step: int, head: Any) -> None:
        rows.append({"treatment": "head", "lr": params.rates[-1], "batch_norm": "train", "step": step} | watched.look(tuned, head))

    start = classifier(clip, watched.names, watched.templates)
    options: dict[str, Any] = {"lr": params.rates[-1], "batch": params.benign_batch, "steps": params.look_at[-1], "seed": params.seed}
    fit_head(tuned, pairs, start, **options, look_at=params.look_at, look=look)
    return rows


def _line(params: Rebound, before: Subject, clip: Clip, watched: EvalSet) -> list[dict[str, Any]]:
    """Along the straight line of weights from the model to the poisoned one."""
    if params.method == "none":
        return []
    shares = [i / _LINE for i in range(_LINE + 1)]
    return [{"treatment": "line", "step": 0, "share": share} | watched.look(between(clip, before.clip, share)) for share in shares]
