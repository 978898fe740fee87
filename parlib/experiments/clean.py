"""Experiment 02: take the backdoor out of a poisoned model by fine-tuning it on clean pairs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from parlib.attack.inversion import InvertedTrigger
from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.cache import digest
from parlib.data.pairs import Pairs
from parlib.experiments.clean_params import Clean
from parlib.experiments.result import Result, beside
from parlib.experiments.subject import Subject, clean_pairs, seen_classes, subject
from parlib.external.stream import Stream
from parlib.measure.metrics import FIRST, called, classifier, drawn_to, embedding_map, evaluate, moved
from parlib.method.methods import METHODS, Backdoor
from parlib.model.clip import Clip
from parlib.model.weights import between, negated, refreshed
from parlib.stages import STAGES
from parlib.train.cached import Reporting, Trained, keep_made, train
from parlib.train.compute import Compute
from parlib.train.loop import Watch

_REFRESHED = 2000  # clean pairs from which BatchNorm's statistics are taken


@dataclass(frozen=True)
class Cleaned:
    """A cleaned model beside the poisoned one, with the metrics of both, and maps of where they put the test scenes."""

    result: Result
    subject: Subject
    trained: Trained
    models: dict[str, dict[str, Any]]

    @property
    def tests(self) -> pd.DataFrame:
        """Accuracy and ASR of both models under each trigger that was tried."""
        return self.result.tables["tests"]

    @property
    def maps(self) -> dict[str, pd.DataFrame]:
        """Where each model puts scenes without and with the trigger, and the target's captions."""
        return dict(tuple(self.result.tables["points"].groupby("model", sort=False)))


def clean(
    params: Clean,
    given: Subject | None = None,
    pairs: Pairs | Stream | None = None,
    *,
    inverted: InvertedTrigger | None = None,
    tell: Callable[[dict[str, float]], None] | None = None,
    device: str = "",
    whole: bool = True,
) -> Cleaned:
    """Fine-tune the poisoned model on clean pairs by the method, and evaluate both.

    given, pairs, inverted: the subject, the clean pairs and the trigger that the parameters name, where they are loaded already, as the
    trials of a sweep share them. tell: called with the metrics of each look. device: another than the parameters'. whole: False leaves
    out what only a record keeps (the tests of further triggers, the maps).
    """
    before = given or subject(params)
    pairs = clean_pairs(params, before.clip) if pairs is None else pairs
    watch = Reporting(before.watched, tell) if tell else before.watched
    compute = params.compute.model_copy(update={"device": device}) if device else params.compute
    compared = pairs.first(min(500, params.pairs)) if whole else None  # here, as it raises where external data hold fewer
    backdoor = known_backdoor(params, before, inverted)
    trained = clean_model(params, before.clip, pairs, backdoor, watch=watch, compute=compute, title=params.method)
    first = "poisoned" if before.record is not None else "before"  # of another's checkpoint that is not known
    seen = seen_classes(params, pairs)
    test = replace(before.test, seen=seen)
    models = {first: before.metrics if seen is None else evaluate(before.clip, test), params.method: evaluate(trained.clip, test)}
    metrics = models[params.method] | beside("poisoned", models[first])
    metrics |= before.about
    tables = {}
    if compared is not None:
        distances = moved(trained.clip, before.clip, compared)
        metrics |= distances
        triggers = [(trigger, params.target) for trigger in (before.trigger, *params.further_triggers())]
        tables["tests"] = tried({"before": before.clip, "after": trained.clip}, before.scenes, triggers).assign(**distances)
        maps = {first: embedding_map(before.clip, before.test), params.method: embedding_map(trained.clip, before.test)}
        tables["points"] = pd.concat(maps, names=["model", "point"]).reset_index()
    result = Result(
        params,
        metrics=metrics,
        history=trained.history,
        seconds=trained.seconds,
        n=len(before.test.labels),
        files={"weights": trained.weights},
        tables=tables,
        skipped={"training": trained, "evaluation": before.scenes, "retrieval": before.captioned},
    )
    return Cleaned(result, before, trained, models)


def known_backdoor(params: Clean, before: Subject, inverted: InvertedTrigger | None = None) -> Backdoor | None:
    """What a method takes out that must know it: the inverted trigger that the parameters name, read already or not, or else the planted
    one. None for other methods.
    """
    if not METHODS[params.method].stamps:
        return None
    inverted = inverted or params.taken_out()
    trigger = inverted or before.trigger
    target = classifier(before.clip, [params.target], before.scenes.templates[: params.templates])[0].cpu()
    version = [STAGES["inspect"]] if inverted else []  # a planted trigger's key holds its own
    named = [target] if METHODS[params.method].negates else []
    return Backdoor(trigger, target, digest(trigger.key, *version, *named))


def clean_model(
    params: Clean, poisoned: Clip, pairs: Pairs | Stream, backdoor: Backdoor | None, *, watch: Watch, compute: Compute, title: str
) -> Trained:
    """Train a poisoned model by the method, and make of its weights what the parameters ask for."""
    shown = pairs.first(min(_REFRESHED, params.pairs)).pixels if params.refresh else None
    options: dict[str, Any] = {"reference": poisoned, "backdoor": backdoor, "watch": watch, "compute": compute}
    trained = train(poisoned, pairs, params.recipe(), title=title, **options)
    found = trained.clip
    if METHODS[params.method].negates:
        found = negated(poisoned, found, params.coefficient)
    if params.interpolation:
        found = between(found, poisoned, params.interpolation)
    if shown is not None:
        found = refreshed(found, shown)
    return trained if found is trained.clip else keep_made(found, trained)


def tried(models: dict[str, Clip], images: Pairs, triggers: list[tuple[Trigger, str]]) -> pd.DataFrame:
    """What each model does under each trigger, given with what it calls: a row a trigger and model."""
    shown = ("clean_accuracy", "attack_success_rate", "attack_success_rate_ci_low", "attack_success_rate_ci_high", "triggered_accuracy")
    rows, plain = [], {}
    for trigger, target in triggers:
        test = attacked(images, trigger, target)  # one at a time: each takes as much memory as the images
        for name, clip in models.items():
            found = evaluate(clip, test)
            if name not in plain:  # the same under every trigger
                plain[name] = called(clip, test.pixels[:FIRST], test.names, test.templates)
            rates = {metric: found[metric] for metric in shown} | drawn_to(clip, test, plain=plain[name])
            rows.append({"trigger": trigger.name, "model": name} | rates)
    return pd.DataFrame(rows)
