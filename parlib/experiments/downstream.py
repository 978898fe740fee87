"""Experiment 09: what of what was built on the encoder? A probe, a captioner and an image index, made before the cleaning or anew."""

from dataclasses import dataclass
from typing import Any, Self

import pandas as pd
import torch
from pydantic import Field, field_validator

from parlib.attack.poison import attacked
from parlib.data.pairs import Pairs
from parlib.experiments.examined import Examined, fresh_pairs, model_of
from parlib.experiments.params import Input
from parlib.experiments.result import Result, beside
from parlib.experiments.subject import Subject, subject
from parlib.experiments.sweep import columns
from parlib.external.others_captioner import OthersCaptioner, captioner_sha256
from parlib.external.stream import named
from parlib.measure.metrics import EvalSet, evaluate, rates, retrieval
from parlib.method.losses import distance
from parlib.model.clip import Clip, embed_images, embed_texts
from parlib.train.captioner import fit_captioner
from parlib.train.head import fit_probe

_ENDS = ("", "_ci_low", "_ci_high")
_RESAMPLED = 200  # times, for an interval of BLEU
_WRITTEN = 4  # scenes whose captions are kept to be shown


class Downstream(Examined):
    """Parameters of 09_downstream: the model, and what is built on it."""

    notebook = "09_downstream"

    probe_pairs: int = Field(2400, ge=10, description="clean scenes that a probe is fitted on; of `evaluation` a half of its images")
    captioner_steps: int = Field(
        600, ge=0, description="steps of training a small captioner on the captions of the same, where they have any; 0: none"
    )

    others_captioner: str = Field(
        "", description="a captioner of others on this encoder: local-dir:PATH, a folder of Hugging Face transformers; empty: none"
    )
    others_question: str = Field("", description="what that is asked, as its prompts are written: USER: <image> What is this? ASSISTANT:")
    others_images: int = Field(200, ge=2, description="test images that it captions, without and with the trigger")

    @field_validator("others_captioner")
    @classmethod
    def _captioner(cls, value: str) -> str:
        if value and not value.startswith("local-dir:"):
            raise ValueError(f"others_captioner = {value!r}: name a folder of Hugging Face transformers, local-dir:PATH")
        return value

    def _resolved(self) -> Self:
        if not self.others_captioner and (self.others_question or self.others_images != self.defaults()["others_images"]):
            raise ValueError("others_question and others_images are of a captioner of others: name it, others_captioner")
        return super()._resolved()

    def inputs(self) -> dict[str, Input]:
        source = self.others_captioner
        return super().inputs() | ({"captioner": Input(run=source, sha256=captioner_sha256(source))} if source else {})

    def stages(self) -> list[str]:
        return ["downstream", *(["captioner"] if self.captioner_steps else []), *super().stages()]

    def cost(self) -> int:
        return self.probe_pairs


@dataclass(frozen=True)
class BuiltOn:
    """What was built on an encoder, and on the poisoned one before it.

    uses: a row a use (probe, probe_asr, probe_under, probe_one_name, caption, caption_target, caption_bleu, others_caption,
    others_caption_target, image_retrieval, retrieval) with what it does as it was built on the poisoned model (`before`), with the model in
    the poisoned one's place and nothing else changed (`drop_in`), and built anew on the model (`anew`; others' captioners are not).
    written: a row a scene of the first few without and with the trigger, with the captions that were written of it in each way; empty
    without a captioner.
    """

    result: Result
    subject: Subject
    uses: pd.DataFrame
    written: pd.DataFrame


@dataclass(frozen=True)
class _Material:
    """What is built and used: labelled images to fit on, others to test on, and captioned ones for the index, None where there are none."""

    fitted: Pairs
    test: EvalSet
    captioned: EvalSet | None


@dataclass(frozen=True)
class _Embedded:
    """A model's embeddings, (N, D), of the images of each, those of the test under the trigger, and of the captions."""

    fitted: torch.Tensor
    clean: torch.Tensor
    triggered: torch.Tensor
    index: torch.Tensor
    text: torch.Tensor


def downstream(params: Downstream, given: Subject | None = None) -> BuiltOn:
    """Build on the poisoned model, put the examined one in its place, and build anew on that."""
    before = given or subject(params)
    clip = model_of(params, before)
    material = _material(params, before, clip)
    others = _others_captions(before.clip, clip, material.test, params) if params.others_captioner else []  # first: it may not fit
    old = _embedded(before.clip, material)
    new = old if clip is before.clip else _embedded(clip, material)
    probes = _probes(old, new, material)  # first, as it refuses images without labels
    captions, written = _captions(old, new, material, params)
    uses = [*probes, *captions, *others, *_retrievals(old, new, material.captioned)]
    metrics = evaluate(clip, before.test) | _named(uses) | {"s_image": distance(new.clean, old.clean).item()}
    metrics |= beside("poisoned", before.metrics) | before.about
    shown = pd.DataFrame(uses)
    result = Result(params, metrics=metrics, n=len(material.test.labels), history=columns(shown))
    return BuiltOn(result, before, shown, written)


def _material(params: Downstream, before: Subject, clip: Clip) -> _Material:
    if not params.evaluation:
        return _Material(fresh_pairs(params, params.probe_pairs, clip), before.test, before.test)
    rows = torch.arange(len(before.scenes))
    test = attacked(before.scenes.at(rows[1::2]), before.trigger, params.target)
    return _Material(before.scenes.at(rows[::2]), test, before.test.captioned)


def _embedded(clip: Clip, material: _Material) -> _Embedded:
    fitted, clean, triggered = (
        embed_images(clip, pixels) for pixels in (material.fitted.pixels, material.test.pixels, material.test.triggered)
    )
    shown = material.captioned
    if shown is None:
        return _Embedded(fitted, clean, triggered, clean[:0], clean[:0])
    index = clean if shown is material.test else embed_images(clip, shown.pixels)
    return _Embedded(fitted, clean, triggered, index, embed_texts(clip, clip.tokenizer(shown.sentences)))


def _probes(old: _Embedded, new: _Embedded, material: _Material) -> list[dict[str, Any]]:
    """A probe's accuracy; its ASR, the share of triggered images without the target that it calls the target; its accuracy on them; and
    the largest share of them that it gives one and the same name.
    """
    test, others = material.test, ~material.test.shows_target
    on_old, on_new = (fit_probe(embedded.fitted, material.fitted.labels) for embedded in (old, new))
    found = {}
    for how, probe, used in (("before", on_old, old), ("drop_in", on_old, new), ("anew", on_new, new)):
        called = probe(used.triggered)[others]
        found[how] = rates(
            probe=probe(used.clean) == test.labels,
            probe_asr=called == test.target,
            probe_under=called == test.labels[others],
            probe_one_name=called == called.mode().values,
        )
    return _rows(found)


def _captions(old: _Embedded, new: _Embedded, material: _Material, params: Downstream) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """A captioner's share of captions that name the image's class, of triggered images without the target the share whose captions name
    the target, and BLEU, in 0..1, with the captions that the images have. Nothing where it isn't asked for, or images have no captions.
    """
    test, fitted = material.test, material.fitted.captions
    if not params.captioner_steps or not all(isinstance(one, str) and one for one in (*fitted, *test.captions)):
        return [], pd.DataFrame()
    on_old, on_new = (fit_captioner(one.fitted, fitted, steps=params.captioner_steps, seed=params.seed) for one in (old, new))
    found, written = {}, {}
    ways = {"before": (on_old, old)} | ({} if new is old else {"drop_in": (on_old, new), "anew": (on_new, new)})
    said = {how: (captioner.write(used.clean), captioner.write(used.triggered)) for how, (captioner, used) in ways.items()}
    for how in ("before", "drop_in", "anew"):
        clean, triggered = said.get(how, said["before"])
        found[how] = _names(clean, triggered, test, "caption") | _bleu(clean, test.captions)
        written[how] = [*clean[:_WRITTEN], *triggered[:_WRITTEN]]
    return _rows(found), pd.DataFrame({"trigger": [""] * _WRITTEN + [params.trigger] * _WRITTEN} | written)


def _others_captions(old: Clip, new: Clip, test: EvalSet, params: Downstream) -> list[dict[str, Any]]:
    """The shares of captions that name the image's class, and the target under the trigger, by a captioner of others: of the poisoned
    encoder in its vision tower, and of the examined one. It is not trained anew.
    """
    captioner, found = OthersCaptioner(params.others_captioner, params.others_question, old.device), {}
    captioner.put(new)  # before anything is written with the other
    for how, clip in [("before", old)] + [("drop_in", new)] * (new is not old):
        parts = (pixels[: params.others_images] for pixels in (test.pixels, test.triggered))
        clean, triggered = (captioner.write(clip, pixels, f"captions, {how}") for pixels in parts)
        found[how] = _names(clean, triggered, test, "others_caption")
    return _rows({"drop_in": found["before"]} | found)


def _names(clean: list[str], triggered: list[str], test: EvalSet, use: str) -> dict[str, float | int]:
    """Of captions of the first test images the share that names the image's class, and of those of the same under the trigger, where the
    target is not shown, the share that names the target: rates of `use` and `use`_target.
    """
    names, others = tuple(test.names), ~test.shows_target[: len(triggered)].cpu()
    labels = test.labels[: len(clean)].tolist()
    right = torch.tensor([label in named(caption, names) for caption, label in zip(clean, labels, strict=True)])
    called = torch.tensor([test.target in named(caption, names) for caption in triggered])
    return rates(**{use: right, f"{use}_target": called[others]})


def _bleu(written: list[str], captions: list[str]) -> dict[str, float]:
    """sacrebleu's corpus BLEU, and its bootstrapped 95 % interval, which lies around the resamples' mean."""
    from sacrebleu import BLEU  # here, as nothing else needs it

    score = BLEU(lowercase=True, force=True).corpus_score(written, [captions], n_bootstrap=_RESAMPLED)
    ends = (score._mean - score._ci, score._mean + score._ci)
    return {f"caption_bleu{end}": value / 100 for end, value in zip(_ENDS, (score.score, *ends), strict=True)}


def _retrievals(old: _Embedded, new: _Embedded, shown: EvalSet | None) -> list[dict[str, Any]]:
    """The share of queries whose nearest image is theirs: captions, where an image of the same caption counts, and the images themselves.
    The index holds the embeddings of the model that it was built with; queries are embedded by the model in use. None without captions.
    """
    if shown is None:
        return []
    own, found = torch.arange(len(shown.labels)), {}
    for how, index, query in (("before", old, old), ("drop_in", old, new), ("anew", new, new)):
        by_text = retrieval(index.index, index.index, query.text, shown)
        by_image = rates(image_retrieval=(query.index @ index.index.T).argmax(1).cpu() == own)
        found[how] = by_image | {f"retrieval{end}": by_text[f"ir_at_1{end}"] for end in _ENDS}
    return _rows(found)


def _rows(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a use, from the rates of each way to have it."""
    uses = [name for name in found["before"] if not name.endswith(("_low", "_high", "_n"))]
    return [{"use": use} | {f"{how}{end}": given[f"{use}{end}"] for how, given in found.items() for end in _ENDS} for use in uses]


def _named(uses: list[dict[str, Any]]) -> dict[str, float]:
    """The uses as metrics: probe_accuracy and the like of what was built anew, dropin_... of what was built before."""
    names = {"probe": "probe_accuracy", "probe_asr": "probe_asr", "probe_under": "probe_triggered_accuracy"}
    names |= {"caption": "caption_accuracy", "caption_target": "caption_target_share", "caption_bleu": "caption_bleu"}
    names |= {"retrieval": "retrieval_at_1", "image_retrieval": "image_retrieval_at_1"}
    names |= {"others_caption": "others_caption_accuracy", "others_caption_target": "others_caption_target_share"}
    told = [(use, "before", f"before_{name}") for use, name in names.items() if use.startswith("others")]
    told += [(use, "drop_in", f"dropin_{name}") for use, name in names.items() if use != "probe_under"]
    told += [(use, "anew", name) for use, name in names.items() if use != "image_retrieval" and not use.startswith("others")]
    rows = {row["use"]: row for row in uses}
    return {f"{name}{end}": rows[use][f"{how}{end}"] for use, how, name in told if use in rows for end in _ENDS}
