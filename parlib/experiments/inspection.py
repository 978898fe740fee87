"""Experiment 10: is a model poisoned? A trigger is inverted for every class; a planted target stands out among them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

import pandas as pd
import torch
from pydantic import Field, field_validator

from parlib.attack.forms import FORMS
from parlib.attack.inversion import Inverted, InvertedTrigger, invert, kept_inverted
from parlib.cache import digest
from parlib.data.pairs import Pairs
from parlib.experiments.examined import Examined, MethodOrControl, fresh_pairs, model_of
from parlib.experiments.lineage import labelled_images, open_checkpoint
from parlib.experiments.params import Input
from parlib.experiments.result import Result
from parlib.experiments.subject import Subject, clean_pairs, subject
from parlib.experiments.sweep import columns
from parlib.experiments.trials import combinations
from parlib.experiments.wording import one_of
from parlib.measure.detection import detection
from parlib.measure.metrics import classifier, evaluate
from parlib.model.checkpoints import SOURCES
from parlib.model.clip import Clip, embed_images
from parlib.records.store import read

_SIZES = (0.125, 0.25, 0.5, 1.0)  # shares of a form's largest trigger
_SHARED = ("scale", "images", "words", "forms", "templates")  # by all inspections of a calibration, as they decide a lead
_FIXED = (*_SHARED, "experiment", "label", "name", "against", "threshold")


class Inspect(Examined):
    """Parameters of 10_inspect: the model, what is looked for, and the inspections that it is compared with."""

    notebook = "10_inspect"

    method: MethodOrControl = Field(
        "none", description="none: the poisoned model as it is; the method that cleaned it; or base, its clean base"
    )
    images: int = Field(240, ge=40, description="clean images: a trigger is found on one half of them and measured on the other")
    from_pairs: bool = Field(False, description="whether the images are those of the clean pairs (pairs, coverage), and no others")
    words: list[str] = Field([], description="names among which a target is looked for; empty: the classes of the images")
    forms: list[Annotated[str, one_of("form", FORMS.keys)]] = Field(
        list(FORMS), min_length=1, description=f"families of triggers: {', '.join(FORMS)}"
    )
    threshold: float = Field(0.5, ge=0, le=1, description="lead of a class over the median finalist above which a model is called poisoned")
    name: str | None = Field(None, pattern="^[a-z]+$", description="a short name of a calibration, for its run id")
    against: list[dict[str, list[Any]]] = Field([], description="grids over parameters of this notebook: inspections to calibrate on")

    @field_validator("words")
    @classmethod
    def _words(cls, value: list[str]) -> list[str]:
        if value and len({word.lower() for word in value}) < max(2, len(value)):
            raise ValueError(f"words must be two or more, all of them different, not {', '.join(value)}")
        return value

    @property
    def on_scenes(self) -> bool:
        return ":" not in self.data and not self.evaluation

    @property
    def takes_pairs(self) -> bool:
        """Whether the images are those of the pairs, not of `evaluation`."""
        return bool(self.words) or not self.evaluation

    def _resolved(self) -> Self:
        found = super()._resolved()
        if bool(self.against) != bool(self.name):
            raise ValueError("a calibration has a name and inspections in against: give both")
        if not (self.on_scenes or self.words or self.evaluation):
            raise ValueError("there are no class names: list some in words, or name labelled images in evaluation")
        if self.from_pairs and (self.data != "scenes" or self.evaluation or self.pairs < self.images):
            raise ValueError(f"from_pairs: {self.images} images are taken from {self.pairs} clean pairs of scenes: fewer, or of other data")
        if self.from_pairs and self.name:
            raise ValueError("from_pairs: a calibration's inspections have images of their own")
        if not (self.on_scenes or self.evaluation or self.poisoned.startswith(SOURCES)):
            raise ValueError("a run of 01_poison is measured again: name the labelled images in evaluation")
        found.calibration()  # every one, before the work
        return found

    def _usual(self, given: Any) -> dict[str, Any]:
        return super()._usual(given) | ({"against": given["against"]} if self.name else {})

    def calibration(self) -> list["Inspect"]:
        """The inspections that this one is calibrated on. ValueError on a name or a value that an inspection doesn't take."""
        shared = {name: getattr(self, name) for name in _SHARED}
        made = [Inspect.check(shared | chosen) for chosen in combinations("against", self.against, _FIXED, of="inspections")]
        return list({one.id: one for one in made}.values())

    def inspected(self) -> list[dict[str, Any]]:
        """Their records; FileNotFoundError, naming the command that makes it, where one is missing."""
        return [read(self.scale, one.id) for one in self.calibration()]

    def needs(self) -> list[Any]:
        return [need for one in self.calibration() for need in (*one.needs(), one)] + super().needs()

    def inputs(self) -> dict[str, Input]:
        return super().inputs() | {one["run"]: Input(run=one["run"], sha256=digest(one["metrics"])) for one in self.inspected()}

    def asked(self) -> dict[str, Any]:
        decided = ["forms", *(["pairs", "coverage"] if self.from_pairs else [])]  # forms always, as more became usual
        return super().asked() | {name: getattr(self, name) for name in decided}

    def stages(self) -> list[str]:
        return ["inspect", "verdict", *(["coverage"] if self.from_pairs and self.coverage < 1 else []), *super().stages()]

    def cost(self) -> int:
        return 0


@dataclass(frozen=True)
class Inspected:
    """What a model's inspection found. images: the clean ones; names: what was looked for; forms: the finalists of each form.

    strongest: the form in which one class leads the furthest. sizes: a row a size of it, with the ASR that the strongest class's best
    trigger of this size reaches.
    models: a row an inspection of the calibration; empty without one.
    """

    result: Result
    clip: Clip
    images: Pairs
    names: list[str]
    forms: dict[str, Inverted]
    strongest: Inverted
    sizes: pd.DataFrame
    models: pd.DataFrame


def inspection(params: Inspect) -> Inspected:
    """Invert a trigger of each form for every class, and say which class stands out, by how much, and how small a trigger calls it.

    Raises ValueError, before any of it, where there are fewer images than asked for, where all of them are of one class, or where too few
    models are named to calibrate on; FileNotFoundError, naming the command that makes it, where the model or an inspection is missing.
    """
    models = calibration_rows(params.inspected())
    calibrated = detection(models, params.threshold) if len(models) else {}
    before = None if params.poisoned.startswith(SOURCES) else subject(params)
    clip = _model(params, before)
    images = _images(params, clip)
    names = params.words or images.names
    classes = classifier(clip, names, images.templates[: params.templates])
    _check_images(clip, images, classes)
    forms = {form: invert(clip, images.pixels, classes, form, seed=params.seed) for form in params.forms}
    best = max(forms.values(), key=lambda found: found.lead)
    sizes = _sizes(clip, images, classes, best, params.seed)
    leading = _leading(forms, names, params.threshold)
    metrics = _verdict(params, names, best, sizes, leading) | calibrated
    metrics |= _truth(params, before, clip, [metrics["candidate"], *metrics["candidates"]])
    rows = [
        {"form": form, "class": names[index], "asr": asr}
        for form, found in forms.items()
        for index, asr in zip(found.classes, found.asr, strict=True)
    ]
    seconds = sum(found.seconds for found in forms.values()) + sizes["seconds"].sum()
    result = Result(params, metrics=metrics, n=len(images), seconds=seconds, history=columns(pd.DataFrame(rows)))
    result.tables |= {"models": models} if len(models) else {}
    if triggers := list(leading.values()):
        result.files |= {"pattern": kept_inverted(replace(triggers[0], further=tuple(triggers[1:])))}
    result.skipped |= {"images": images}
    return Inspected(result, clip, images, names, forms, best, sizes.drop(columns="seconds"), models)


_ASKED = ("method", "trigger", "encoder", "seed", "poisoned", "target")
_FOUND = "kind lead form candidates candidate inverted_asr attack_success_rate clean_accuracy attacker base_epochs base".split()


def calibration_rows(records: list[dict[str, Any]]) -> pd.DataFrame:
    """A row an inspected model: what it is, what was found, and whether that is right (`named`: the target, of a planted one)."""
    rows = [
        {"run": record["run"]}
        | {name: record["params"][name] for name in _ASKED}
        | {name: record["metrics"].get(name, record["params"].get(name)) for name in _FOUND}  # of earlier plantings params alone tell
        | {"over_next": _over_next(record)}
        for record in records
    ]
    found = pd.DataFrame(rows, columns=["run", *_ASKED, *_FOUND, "over_next"])
    calls = zip(found["target"], found["candidate"], found["candidates"], strict=True)
    every = [(target, strongest, leading if isinstance(leading, list) else []) for target, strongest, leading in calls]  # of earlier ones
    return found.assign(named=[target in (strongest, *leading) for target, strongest, leading in every])


def _over_next(record: dict[str, Any]) -> float:
    """How far the strongest class is ahead of the next one, in the form where it is the furthest: what a lead was at first."""
    by = pd.DataFrame(record["history"]).groupby("form")["asr"]
    return float((by.nth(0).to_numpy() - by.nth(1).to_numpy()).max())


def _leading(forms: dict[str, Inverted], names: list[str], threshold: float) -> dict[str, InvertedTrigger]:
    """The classes that lead by more than a threshold, the furthest first, each with its trigger of the form in which it does."""
    every = [(one.leads[place], names[index], one, place) for one in forms.values() for place, index in enumerate(one.classes)]
    leading: dict[str, InvertedTrigger] = {}
    for lead, name, one, place in sorted(every, key=lambda found: -found[0]):
        if lead > threshold:
            leading.setdefault(name, one.trigger(place, name))
    return leading


def _model(params: Inspect, before: Subject | None) -> Clip:
    if before is None and params.method == "none":
        return open_checkpoint(params.poisoned, params)
    return model_of(params, before)  # type: ignore[arg-type] (of a cleaned model it is not asked)


def _images(params: Inspect, clip: Clip) -> Pairs:
    if params.from_pairs:
        pairs: Any = clean_pairs(params, clip)
        return pairs.first(params.images)
    if params.takes_pairs:
        return fresh_pairs(params, params.images, clip)
    return labelled_images(params, params.images, clip, seed=1)  # others than are evaluated on, where there are enough


def _check_images(clip: Clip, images: Pairs, classes: torch.Tensor) -> None:
    """ValueError where all images are of one class, by their labels or, without, by what the model calls them."""
    unlabelled = bool((images.labels < 0).any())
    of = (embed_images(clip, images.pixels) @ classes.to(clip.device).T).argmax(1) if unlabelled else images.labels
    if len(of.unique()) < 2:
        raise ValueError(f"all {len(images)} images are of one class: a trigger that calls it can't be told from the class; name others")


def _sizes(clip: Clip, images: Pairs, classes: torch.Tensor, best: Inverted, seed: int) -> pd.DataFrame:
    """The ASR of the strongest class's trigger by its size; the largest is the one that was found."""
    rows = []
    for size in _SIZES:
        alone = best if size == 1 else invert(clip, images.pixels, classes, best.form, size=size, only=best.classes[:1], seed=seed)
        said = FORMS[best.form].said(images.pixels.shape[3], size)
        rows.append({"size": size, "said": said, "asr": alone.asr[0], "seconds": alone.seconds if size < 1 else 0.0})
    return pd.DataFrame(rows)


def _verdict(params: Inspect, names: list[str], best: Inverted, sizes: pd.DataFrame, leading: Iterable[str]) -> dict[str, Any]:
    enough = sizes[sizes["asr"] >= 0.5]
    return {
        "lead": best.lead,
        "detected": best.lead > params.threshold,
        "form": best.form,
        "candidate": names[best.classes[0]],
        "candidates": list(leading),
        "inverted_asr": best.asr[0],
        "size": float(enough["size"].iloc[0]) if len(enough) else None,
    }


def _truth(params: Inspect, before: Subject | None, clip: Clip, candidates: list[str]) -> dict[str, Any]:
    """What is known of the model: kind (planted, clean, cleaned, unknown), its metrics under its trigger, whether its target was named."""
    if before is None:
        return {"kind": "unknown"}
    assert before.record is not None  # it is no checkpoint of another's
    found = evaluate(clip, before.test) | before.about | {"base": before.record["artifacts"]["base_weights"]["sha256"][:12]}
    clean = params.method == "base" or before.planting.get("rate") == 0
    if clean or params.method != "none":
        return {"kind": "clean" if clean else "cleaned"} | found
    return {"kind": "planted", "named": params.target in candidates} | found
