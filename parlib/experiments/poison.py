"""Experiment 01: pretrain a clean base, and plant a backdoor in it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from pydantic import Field, field_validator

from parlib.attack.adaptive import ATTACKERS
from parlib.attack.learned import Learned, budget, learn
from parlib.attack.poison import Attack, attacked
from parlib.attack.poison import poison as poison_pairs
from parlib.attack.triggers import LEARNED, PLACED, Trigger
from parlib.data.pairs import Pairs
from parlib.data.scenes import class_names
from parlib.experiments.lineage import evaluation_images, load_pairs, open_checkpoint, watched_images
from parlib.experiments.params import Input, Training, checkpoint_input, tuned
from parlib.experiments.presets import planting, trigger_options
from parlib.experiments.result import Result, beside
from parlib.external.batches import check_outside
from parlib.external.poisoned_copy import lists, poison_stream
from parlib.external.stream import Stream
from parlib.measure.metrics import EvalSet, evaluate
from parlib.method.methods import METHODS, Recipe
from parlib.model.checkpoints import checkpoint_of
from parlib.model.clip import create
from parlib.train.cached import Trained, keep_made, train


class Poison(Training):
    notebook = "01_poison"

    rate: float = tuned("share of the pairs, or of the target's own, that is poisoned; 0: none, as a control; None: the usual", ge=0, le=1)
    base: str = Field("", description="a clean checkpoint, such as openai, open_clip's tag, or hf-hub:ID; empty: pretrained here")
    data: str = Field("scenes", description="pairs to poison: scenes, or LAYOUT:PATH such as cc3m:data/cc3m")
    train_scenes: int = Field(24000, ge=24, description="pairs of pretraining and poisoning")
    epochs: int = tuned("epochs of poisoning; None: what the trigger needs", ge=1)
    batch: int = Field(128, ge=2, description="pairs a step of poisoning")
    lr: float = tuned("peak learning rate of poisoning; None: the encoder's usual one", gt=0)
    base_seed: int = Field(0, ge=0, description="redraws the base: its first weights and the order of its pretraining")
    base_batch: int = Field(128, ge=2, description="pairs a step of pretraining")
    base_lr: float = tuned("peak learning rate of pretraining; None: the encoder's usual one", gt=0)

    @field_validator("data")
    @classmethod
    def _data(cls, value: str) -> str:
        if value != "scenes":
            check_outside(value)
        return value

    @classmethod
    def _made(cls, values: Mapping[str, Any]) -> Self:
        attacker = ATTACKERS.get(str(values.get("attacker")))
        if attacker is not None and attacker.rate is not None and values.get("rate") is None:
            values = {**values, "rate": attacker.rate}  # before the scale's
        return super()._made(values)

    def _resolved(self) -> Self:
        super()._resolved()
        if self.data != "scenes" and not self.base:
            raise ValueError(f"data = {self.data!r} wants a base, such as openai: pretraining here takes the scenes")
        if self.base and self.base_seed:
            raise ValueError(f"base_seed is of a base that is pretrained here, not of base = {self.base!r}: leave it out")
        if self.planted == "pretraining" and self.base:
            raise ValueError(f"planted = 'pretraining' trains a model from its beginning; base = {self.base!r} is trained already")
        self.check_compute(self.batch, "train")
        self._check_attacker()
        return self._filled()

    def _check_attacker(self) -> None:
        how = ATTACKERS[self.attacker]
        if how.rate == 0 and self.rate:
            raise ValueError(f"attacker {self.attacker!r} {how.idea}: leave rate = {self.rate:g} out")
        method = METHODS[how.method]
        compares = method.needs_clean or method.move
        if compares and (self.compute.processes > 1 or self.compute.chunk):
            raise ValueError(
                f"attacker {self.attacker!r} trains in one process and in whole batches: leave compute's processes and chunk out"
            )
        if compares and self.data != "scenes":
            raise ValueError(f"attacker {self.attacker!r} compares pairs before and after the attack: on the embedded scenes alone")
        if (how.others or how.places) and (self.data != "scenes" or self.attack != "dirty_label"):
            raise ValueError(f"attacker {self.attacker!r} stamps several triggers: on the embedded scenes, with attack = 'dirty_label'")
        if how.places and self.trigger not in PLACED:
            raise ValueError(f"attacker {self.attacker!r} plants a patch: take trigger = {' or '.join(PLACED)}, not {self.trigger!r}")
        if second := [target for target in (*how.others.values(), *how.places) if target]:
            own = ", ".join((*how.others, *second))
            if missing := set(second) - set(class_names(self.classes)):
                raise ValueError(f"attacker {self.attacker!r} calls {missing.pop()!r}, which is none of these {self.classes} classes")
            if self.target in second or self.trigger in (*how.others, *LEARNED):
                raise ValueError(f"attacker {self.attacker!r} plants {own} itself: name another trigger, not a learned one, and target")

    def _filled(self) -> Self:
        usual = planting(self.encoder, self.trigger, self.attack)
        if epochs := ATTACKERS[self.attacker].epochs:
            usual["epochs"] = epochs
        options = trigger_options(self.trigger, self.side) | usual.pop("trigger_options", {}) | self.trigger_options
        if (path := self.pattern_path()) is not None and path.is_file():
            options |= self.trigger_with(options).options  # its size is the file's
        filled = {name: value for name, value in usual.items() if getattr(self, name) is None}
        return self.model_copy(update=filled | {"trigger_options": options})

    def others(self) -> tuple[tuple[Trigger, str], ...]:
        """The triggers that an attacker plants beside its own, with their usual options, or its own at other places, each with what it
        calls.
        """
        how = ATTACKERS[self.attacker]
        others = {name: target or self.target for name, target in how.others.items() if name != self.trigger}
        found = [(Trigger(name, trigger_options(name, self.side)), target) for name, target in others.items()]
        moved = {target: columns for target, columns in how.places.items() if target}
        found += [(replace(self.trigger_with(self.trigger_options), columns=columns), target) for target, columns in moved.items()]
        return tuple(found)

    def planned(self, learned: Learned | None = None) -> Attack:
        """The attack that a run plants; learned: its pattern, where it is learned."""
        trigger = self.trigger_with(self.trigger_options, learned.pattern if learned else None)
        return Attack(trigger, self.target, self.attack, self.rate, self.seed, self.others())

    def pretraining(self) -> Recipe:
        """How the base is trained: whatever the seed of the poisoning, shared by all runs of its base_seed."""
        options: dict[str, Any] = {"schedule": "warmup_cosine", "batch_norm": "train", "weight_decay": 0.1, "looks": 0}
        return Recipe("contrast", self.base_epochs, self.base_batch, self.base_lr, seed=self.base_seed, **options)

    def recipe(self) -> Recipe:
        """How the backdoor is trained in."""
        how = ATTACKERS[self.attacker]
        if self.planted == "pretraining":
            own = {"method": how.method} | how.options
            return replace(self.pretraining(), seed=self.seed, looks=Recipe.looks, **own)
        options: dict[str, Any] = {"schedule": "warmup_cosine", "batch_norm": "train"} | how.options
        return Recipe(how.method, self.epochs, self.batch, self.lr, self.seed, **options)

    def inputs(self) -> dict[str, Input]:
        base = {"base": checkpoint_input(checkpoint_of(self.base, self.encoder))} if self.base else {}
        return base | self.pattern_input() | self.external(self.data)

    def stages(self) -> list[str]:
        learned = ["learned"] if self.trigger in LEARNED else []
        learned += ["trigger/badclip", "method/par"] if self.trigger == "resistant" else []
        data = ["scenes"] if self.data == "scenes" else ["external"]
        triggers = [f"trigger/{trigger.name}" for trigger, _ in self.others()]
        methods = sorted({"method/contrast", f"method/{ATTACKERS[self.attacker].method}"})
        return ["poison", f"trigger/{self.trigger}", *triggers, "loop", *methods, *data, *learned, *self.evaluated()]

    def cost(self) -> int:
        return (self.base_epochs if self.planted == "pretraining" else self.epochs) * self.train_scenes


@dataclass(frozen=True)
class Poisoned:
    """A planted backdoor.

    pairs: the clean pairs; poisoned_pairs: the same, of which `rows` were changed. learned: the trigger's pattern, where it is learned.
    base, poisoned: the clean base and the poisoned model; test: what they are evaluated on; models: the metrics of both.
    """

    result: Result
    pairs: Pairs | Stream
    poisoned_pairs: Pairs | Stream
    rows: torch.Tensor
    learned: Learned | None
    base: Trained
    poisoned: Trained
    test: EvalSet
    models: dict[str, dict[str, Any]]


def poison(params: Poison) -> Poisoned:
    """Pretrain the clean base (once; then it is in the cache), learn the trigger where it is learned, poison the pairs, fine-tune the
    base on them or pretrain another model on them, and evaluate both models.
    """
    base = pretrained(params)
    pairs = load_pairs(params.data, params.train_scenes, params, split="train", clip=base.clip)
    scenes, captioned = evaluation_images(params, base.clip)
    learned = _learned(params, base, pairs)
    attack = params.planned(learned)
    stamped, rows = poison_stream(pairs, attack) if isinstance(pairs, Stream) else poison_pairs(pairs, attack)
    watch = attacked(watched_images(params, scenes), attack.trigger, params.target)
    start = base.clip if params.planted == "finetuning" else create(params.encoder, params.base_seed)
    poisoned = train(start, stamped, params.recipe(), clean=pairs, watch=watch, compute=params.compute, title="poisoning")
    test = attacked(scenes, attack.trigger, params.target, captioned)
    models = {"base": evaluate(base.clip, test), "poisoned": evaluate(poisoned.clip, test)}
    files = {"weights": poisoned.weights, "base_weights": base.weights} | lists(stamped)
    result = Result(
        params,
        metrics=models["poisoned"] | beside("base", models["base"]) | {"base_seconds": round(base.seconds, 1)},
        history=poisoned.history | ({f"pattern_{name}": values for name, values in learned.history.items()} if learned else {}),
        seconds=poisoned.seconds,
        n=len(scenes),
        files=files | ({"pattern": learned.path} if learned else {}),
        skipped={"training": poisoned, "evaluation": scenes, "retrieval": captioned},
    )
    return Poisoned(result, pairs, stamped, rows, learned, base, poisoned, test, models)


def pretrained(params: Poison) -> Trained:
    """The clean base: the checkpoint that is named, or one that is trained here on the scenes."""
    if params.base:
        return keep_made(open_checkpoint(checkpoint_of(params.base, params.encoder), params))
    pairs = load_pairs("scenes", params.train_scenes, params, split="train")
    return train(create(params.encoder, params.base_seed), pairs, params.pretraining(), compute=params.compute, title="pretraining")


def _learned(params: Poison, base: Trained, pairs: Pairs | Stream) -> Learned | None:
    trigger = params.planned().trigger
    if trigger.name not in LEARNED or trigger.pattern is not None:
        return None
    if isinstance(pairs, Stream):
        pairs = replace(pairs.first(min(len(pairs), budget(pairs.images.side)[0])), names=[params.target])
    return learn(base.clip, pairs, trigger, params.target)
