"""What a cleaning starts from: the poisoned model, its trigger, the clean pairs, and the images that it is measured by."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.data.pairs import Pairs
from parlib.experiments.clean_params import Clean
from parlib.experiments.lineage import evaluation_images, learned_pattern, load_pairs, open_checkpoint, watched_images
from parlib.external.stream import Stream
from parlib.measure.metrics import EvalSet, evaluate
from parlib.model.checkpoints import SOURCES
from parlib.model.clip import Clip
from parlib.records.store import artifact_file


@dataclass(frozen=True)
class Subject:
    """A poisoned model and what a cleaning of it is measured by.

    record: of the run that planted it, None for an external checkpoint. scenes: plain images; test: the same beside themselves under
    the trigger, to evaluate on; watched: those of the looks while it trains.
    """

    clip: Clip
    record: dict[str, Any] | None
    trigger: Trigger
    scenes: Pairs
    captioned: Pairs | None
    test: EvalSet
    watched: EvalSet

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return evaluate(self.clip, self.test)

    @property
    def planting(self) -> dict[str, Any]:
        """How the backdoor was planted, and in which base, as cleanings' rows and records repeat it; empty where that is not known."""
        if self.record is None:
            return {}
        params, metrics = self.record["params"], self.record["metrics"]
        found = {"rate": params["rate"]} | {name: metrics[name] for name in ("base_clean_accuracy", "base_asr")}
        return found | {name: params[name] for name in ("planted", "attacker", "base_epochs") if name in params}

    @property
    def about(self) -> dict[str, Any]:
        """The trigger's size and how it was planted, as records repeat them."""
        return {"patch": self.trigger.patch, "strength": self.trigger.strength} | self.planting


def subject(params: Clean) -> Subject:
    """The poisoned model of a cleaning, on the device that it is cleaned on, with the trigger as it was planted unless the parameters
    say otherwise.

    Raises FileNotFoundError, naming the command that makes it, when the run is missing, ValueError when the checkpoint can't be read or
    takes other images than the encoder named.
    """
    record = None if params.poisoned.startswith(SOURCES) else params.poisoning()
    source = params.poisoned if record is None else f"local-dir:{artifact_file(record, 'weights').parent}"
    clip = open_checkpoint(source, params)
    trigger = planted_trigger(params, record)
    scenes, captioned = evaluation_images(params, clip)
    test = attacked(scenes, trigger, params.target, captioned)
    watched = attacked(watched_images(params, scenes), trigger, params.target)
    return Subject(clip, record, trigger, scenes, captioned, test, watched)


def planted_trigger(params: Clean, record: dict[str, Any] | None) -> Trigger:
    """The trigger to test: as it was planted, and where that attacker puts it, unless the parameters say otherwise."""
    if record is None:
        return params.trigger_with(params.trigger_options)
    as_planted = params.model_copy(update={"attacker": record["params"].get("attacker", "plain")})
    return as_planted.trigger_with(record["params"]["trigger_options"] | params.trigger_options, learned_pattern(record))


def clean_pairs(params: Clean, clip: Clip) -> Pairs | Stream:
    """The pairs that a cleaning of a model trains on."""
    return load_pairs(params.data, params.pairs, params, clip=clip, coverage=params.coverage, held=params.steps is not None)


def seen_classes(params: Clean, pairs: Pairs | Stream) -> torch.Tensor | None:
    """(C,) bool: the classes that the clean pairs show; None where that is all of them, or not known."""
    if isinstance(pairs, Stream) or (pairs.labels < 0).all():
        return None
    shown = torch.isin(torch.arange(len(pairs.names)), torch.cat([pairs.labels, pairs.second]))
    return None if shown.all() else shown
