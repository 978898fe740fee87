"""Many cleanings at once: what experiments 03 and 04 are told, what their trials share, and one trial."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import Field

from parlib.data.pairs import Pairs
from parlib.experiments.clean import clean
from parlib.experiments.clean_params import ATTACKED, Clean
from parlib.experiments.params import Attacked, Input, tuned
from parlib.experiments.subject import Subject, clean_pairs, subject
from parlib.external.stream import Stream
from parlib.measure.distance import share_above
from parlib.method.methods import METHODS

_FIXED = tuple("scale split classes eval_scenes templates evaluation retrieval resize max_skipped tests label".split())  # of all
_ATTACK = ("poisoned", "normalised", *ATTACKED, "trigger_options")
_OF_SWEEPS = ("space", "search", "samples", "asha", "alone", "cpus", "gpus")  # a sweep's own name stands for these in its id
_COMMON = {"scale", "experiment", "classes", "eval_scenes", "evaluation", "retrieval", "templates", "max_skipped", "compute", "tests"}
_COMMON |= {"trigger_options", "label"}
_MEASURED = (
    *("clean_accuracy", "clean_accuracy_seen", "clean_accuracy_unseen", "poisoned_clean_accuracy_seen", "poisoned_clean_accuracy_unseen"),
    *("attack_success_rate", "asr_with_target_class", "triggered_accuracy", "tr_at_1", "ir_at_1", "retrieval_asr"),
)


class Cleanings(Attacked):
    """What every experiment that trains many models at once knows."""

    chooses_input = Clean.chooses_input

    split: Literal["validation", "test"] = Field("validation", description=Attacked.model_fields["split"].description)
    epochs: int = Field(4, ge=1, description="epochs of each cleaning")
    pairs: int = Field(12000, ge=10, description="clean pairs")
    coverage: float = Field(1.0, gt=0, le=1, description=str(Clean.model_fields["coverage"].description))
    steps: int = tuned(str(Clean.model_fields["steps"].description), ge=1)
    cpus: int = Field(1, ge=1, description="CPUs, and threads, of a trial")
    gpus: float = Field(0.0, ge=0, description="share of a GPU for a trial")
    ray_address: str = Field("", description="a running cluster to join, such as auto; empty: a Ray of our own, for this sweep only")

    def needs(self) -> list[Any]:
        return [need for trial in self.attacks() for need in trial.needs()]

    def attacks(self) -> list[Clean]:
        """One cleaning of a run for each attacked model that it starts from."""
        found: dict[tuple, Clean] = {}
        for trial in self.trials():
            found.setdefault(trial.attacked_model, trial)
        return list(found.values())

    def inputs(self) -> dict[str, Input]:
        poisoned = [trial.poisoned_input() for trial in self.attacks()]
        patterns = [found for trial in self.attacks() for found in trial.pattern_input().values()]
        trials = self.trials()
        words = [found for trial in {trial.wordnet: trial for trial in trials}.values() for found in trial.wordnet_input().values()]
        inverted = [found for trial in _taking_out(trials) for found in trial.inverted_input().values()]
        return {found.run: found for found in poisoned + patterns + words + inverted} | self.external(*(trial.data for trial in trials))

    def stages(self) -> list[str]:
        return sorted({stage for trial in self.trials() for stage in trial.stages()})

    def cost(self) -> int:
        return sum(trial.cost() for trial in self.trials())


class Sweep(Cleanings):
    notebook = "03_tau_sweep"

    name: str = Field("tau", pattern="^[a-z]+$", description="a short name of the sweep, for its run id")
    space: list[dict[str, list[Any]]] = Field(
        [{"method": ["par"], "lr": [0.001], "tau": [0.1, 0.25, 0.5, 1.0, 1.5, 2.15, 2.6, 4.0]}],
        min_length=1,
        description="grids over parameters",
    )
    search: Literal["grid", "optuna"] = Field("grid", description="grid: every combination; optuna: of one grid, two floats are a range")
    samples: int = Field(0, ge=0, description="trials that optuna suggests")
    asha: bool = Field(False, description="stop trials early that look worse than others at the same point")
    alone: bool = Field(True, description="time the first trial once more, without Ray, to say what Ray costs")

    def _resolved(self) -> Self:
        super()._resolved()
        self.trials()  # every one, before the first one runs
        suggested = self.search == "optuna"
        if suggested and (fixed := [name for name in _ATTACK if any(len(grid.get(name, [])) > 1 for grid in self.space)]):
            raise ValueError(f"{self.notebook}: optuna searches the settings of a cleaning, not {fixed[0]}; name one value")
        if self.asha and (against := [trial.method for trial in self.trials() if METHODS[trial.method].negates]):
            raise ValueError(
                f"{self.notebook}: asha stops trials by how they look while they train; {against[0]} is what it makes afterwards"
            )
        if suggested != (self.samples > 0) or (suggested and len(self.space) > 1):
            raise ValueError(f"{self.notebook}: search = 'optuna' takes one grid and samples > 0; search = 'grid' takes samples = 0")
        return self

    def _usual(self, given: Any) -> dict[str, Any]:
        usual = super()._usual(given)
        renamed = self.name != Sweep.model_fields["name"].default
        return usual | ({name: given[name] for name in _OF_SWEEPS} if renamed else {})

    def trials(self) -> list[Clean]:
        """Of Optuna's the corners of its grid. Raises ValueError on a name or a value that a trial doesn't take."""
        made = [self.trial(chosen) for chosen in combinations("space", self.space, _FIXED, of="trials")]
        return list({one.model_dump_json(): one for one in made}.values())

    def trial(self, chosen: dict[str, Any]) -> Clean:
        """The cleaning with these values, and the sweep's for all else."""
        shared = {name: value for name, value in self.model_dump().items() if name in Clean.model_fields and name != "experiment"}
        return Clean.check(shared | chosen)

    def cost(self) -> int:
        return self.samples * self.trials()[0].cost() if self.samples else super().cost()


def combinations(name: str, grids: list[dict[str, list[Any]]], fixed: Iterable[str], *, of: str) -> Iterator[dict[str, Any]]:
    """Every combination of the values of each grid. ValueError on an axis that is fixed, or has no value; name: of the parameter that holds
    the grids, of: what they make.
    """
    for grid in grids:
        for axis, values in grid.items():
            if axis in fixed or not values:
                raise ValueError(f"{name}: {axis} {f'is the same for all {of}' if axis in fixed else 'has no value; name one or more'}")
        for choice in itertools.product(*grid.values()):
            yield dict(zip(grid, choice, strict=True))


@dataclass(frozen=True)
class Material:
    """What the trials of a sweep share; it goes into Ray's object store once.

    subjects: poisoned models by what tells one from another; pairs: clean pairs by what tells one set from another (`Clean.clean_set`);
    inverted: the triggers that trials name (`Clean.inverted_set`).
    """

    subjects: dict[tuple, Subject]
    pairs: dict[tuple, Pairs | Stream]
    inverted: dict[tuple, Any] = field(default_factory=dict)


def _taking_out(trials: Iterable[Clean]) -> list[Clean]:
    """One trial for each inverted trigger, model and method: what a trigger must fit."""
    return list({(trial.inverted, trial.attacked_model, trial.method): trial for trial in trials if trial.inverted}.values())


def gather(trials: Iterable[Clean]) -> Material:
    """Load all that trials need; FileNotFoundError, naming the command that makes it, where a poisoned model is missing."""
    subjects: dict[tuple, Subject] = {}
    for trial in trials:
        if trial.attacked_model not in subjects:
            subjects[trial.attacked_model] = subject(trial)
            subjects[trial.attacked_model].metrics  # noqa: B018 (evaluated once, here, before the trials share it)
    sets = {trial.clean_set: trial for trial in trials}
    inverted = {trial.inverted_set: trial.taken_out() for trial in _taking_out(trials)}
    pairs = {found: clean_pairs(trial, subjects[trial.attacked_model].clip) for found, trial in sets.items()}
    return Material(subjects, pairs, inverted)


def trial_row(params: Clean, material: Material, *, device: str = "cpu", tell: Any = None) -> dict[str, Any]:
    """One trial, by the function of 02: its parameters, metrics, and what S did, as a row of the sweep's table."""
    before = material.subjects[params.attacked_model]
    pairs, inverted = material.pairs[params.clean_set], material.inverted.get(params.inverted_set)
    cleaned = clean(params, before, pairs, inverted=inverted, tell=tell, device=device, whole=False)
    metrics, history = cleaned.result.metrics, cleaned.trained.history
    row = {name: metrics[name] for name in _MEASURED if name in metrics}
    row |= {f"asr_{end}": metrics[f"attack_success_rate_{end}"] for end in ("ci_low", "ci_high")}
    for tower in ("image", "text"):
        if s := history.get(f"s_{tower}"):
            last = s[-len(s) // 10 :]
            row |= {f"s_{tower}_max": max(s), f"s_{tower}_end": sum(last) / len(last)}
            row[f"share_above_tau_{tower}"] = share_above(s, params.tau)
    row |= {"seconds": cleaned.trained.seconds, "weights": cleaned.trained.sha256, "error": ""}
    return as_row(params, before, row)


def as_row(params: Clean, before: Subject, measured: dict[str, Any]) -> dict[str, Any]:
    """What was measured of a trial between its parameters, those of its trigger as it was planted, and the poisoned model's metrics."""
    settings = params.model_dump(exclude=_COMMON) | {"patch": before.trigger.patch, "strength": before.trigger.strength}
    metrics = before.metrics
    start = {"poisoned_clean_accuracy": metrics["clean_accuracy"], "poisoned_asr": metrics["attack_success_rate"]}
    return settings | measured | start | before.planting
