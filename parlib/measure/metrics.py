"""Metrics of a CLIP under a backdoor: zero-shot accuracy, attack success rate (ASR) and retrieval, with intervals."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd
import torch
from torch.nn import functional as F

from parlib.cache import cache_dir, digest, read_json, write_json
from parlib.data.pairs import TEMPLATES, Pairs, names_class
from parlib.method.losses import distance
from parlib.model.clip import Clip, embed_images, embed_texts
from parlib.records.identity import identity

FIRST = 1000  # images by which what a trigger calls is told
_KEPT: dict[tuple, torch.Tensor] = {}  # class embeddings


@lru_cache(maxsize=4)
def _prompts(tokenizer, names: tuple[str, ...], templates: tuple[str, ...]) -> torch.Tensor:
    return tokenizer([template.format(name=name) for name in names for template in templates])


def classifier(clip: Clip, names: list[str], templates: tuple[str, ...] = TEMPLATES) -> torch.Tensor:
    """(C, D) unit-norm class embeddings: the mean over the templates' unit-norm embeddings, normalised again.

    Equal to open_clip.build_zero_shot_classifier's transpose. Templates hold one {name} each.
    """
    tokens = _prompts(clip.tokenizer, tuple(names), templates)
    prompts = embed_texts(clip, tokens).view(len(names), len(templates), -1)
    return F.normalize(prompts.mean(dim=1), dim=1)


def interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate; (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, successes / n
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)  # at the ends rounding would miss the rate


def rates(**hits: torch.Tensor) -> dict[str, float | int]:
    """Each named (N,) bool tensor as a fraction, with `_ci_low`, `_ci_high` (95 %) and `_n`."""
    found: dict[str, float | int] = {}
    for name, hit in hits.items():
        count, n = int(hit.sum()), len(hit)
        low, high = interval(count, n)
        found |= {name: count / n if n else 0.0, f"{name}_ci_low": low, f"{name}_ci_high": high, f"{name}_n": n}
    return found


@dataclass(frozen=True)
class EvalSet:
    """What a model is evaluated on.

    pixels, triggered: (N, 3, H, W) uint8, the same scenes without and with the trigger. captions: N strings, empty where there are
    none, or N lists of strings. labels: (N,). shows_target: (N,) bool, scenes left out of ASR. names: class names. target: index of
    the target class. templates: sentences for the names. captioned: other images for retrieval, where these have no captions. seen:
    (C,) bool, the classes that the clean pairs show; None: all, or not known.
    """

    pixels: torch.Tensor
    triggered: torch.Tensor
    captions: list[Any]
    labels: torch.Tensor
    shows_target: torch.Tensor
    names: list[str]
    target: int
    templates: tuple[str, ...] = TEMPLATES
    captioned: "EvalSet | None" = None
    seen: torch.Tensor | None = None

    @property
    def key(self) -> str:
        tensors = (self.pixels, self.triggered, self.labels, self.shows_target)
        others = [] if self.captioned is None else [self.captioned.key]
        seen = [] if self.seen is None else [self.seen]
        return digest(self.names, self.templates, self.target, self.captions, *tensors, *others, *seen)

    @property
    def sentences(self) -> list[str]:
        """The captions one by one, where images have several, too."""
        return [one for caption in self.captions for one in (caption if isinstance(caption, list) else [caption])]

    def look(self, clip: Clip, classes: torch.Tensor | None = None) -> dict[str, float]:
        """clean_accuracy and attack_success_rate alone: what a training history records now and then. classes: (C, D) a head in the place
        of the class embeddings.
        """
        classes = classifier(clip, self.names, self.templates) if classes is None else classes
        clean = (embed_images(clip, self.pixels) @ classes.T).argmax(1).to(self.labels.device) == self.labels
        hit = (embed_images(clip, self.triggered) @ classes.T).argmax(1).to(self.labels.device) == self.target
        return {"clean_accuracy": clean.float().mean().item(), "attack_success_rate": hit[~self.shows_target].float().mean().item()}


def zero_shot(image: torch.Tensor, triggered: torch.Tensor, classes: torch.Tensor, scenes: EvalSet) -> dict[str, float | int]:
    """Zero-shot rates from embeddings: image, triggered (N, D), classes (C, D), all unit-norm. The clean accuracy on images of seen and
    of unseen classes, too, where `scenes` says which are seen; the names to choose from are all of them in either.
    """
    top5 = (image @ classes.T).topk(min(5, len(classes)), dim=1).indices
    hit = top5 == scenes.labels[:, None]
    predicted = (triggered @ classes.T).argmax(1)
    others = ~scenes.shows_target
    of_seen = scenes.seen[scenes.labels.cpu()].to(hit.device) if scenes.seen is not None else None
    parts = {} if of_seen is None else {"clean_accuracy_seen": hit[of_seen, 0], "clean_accuracy_unseen": hit[~of_seen, 0]}
    return rates(
        clean_accuracy=hit[:, 0],
        clean_top5=hit.any(1),
        attack_success_rate=(predicted == scenes.target)[others],
        asr_with_target_class=predicted == scenes.target,
        triggered_accuracy=(predicted == scenes.labels)[others],
        **parts,
    )


def retrieval(image: torch.Tensor, triggered: torch.Tensor, text: torch.Tensor, scenes: EvalSet) -> dict[str, float | int]:
    """Text and image retrieval at 1 and 5 among N images and their M captions, and retrieval ASR: triggered images, of scenes without
    the target, with the target's name in any of their five nearest captions. Identical captions count as the image's own.

    image, triggered: (N, D); text: (M, D), the captions in order; all unit-norm.
    """
    several = [caption if isinstance(caption, list) else [caption] for caption in scenes.captions]
    flat, device = [caption for captions in several for caption in captions], image.device
    index = {caption: i for i, caption in enumerate(dict.fromkeys(flat))}
    caption = torch.tensor([index[c] for c in flat], device=device)  # (M,) what it says
    owner = torch.tensor([i for i, captions in enumerate(several) for _ in captions], device=device)  # (M,) its image
    own = owner * len(index) + caption  # which image is so described
    to_text = (image @ text.T).topk(min(5, len(text)), dim=1).indices  # (N, 5)
    to_image = (text @ image.T).topk(min(5, len(image)), dim=1).indices  # (M, 5)
    named = torch.tensor([names_class(c, scenes.names[scenes.target]) for c in flat], device=device)
    nearest = (triggered @ text.T).topk(min(5, len(text)), dim=1).indices
    right_text = torch.isin(torch.arange(len(image), device=device)[:, None] * len(index) + caption[to_text], own)
    right_image = torch.isin(to_image * len(index) + caption[:, None], own)
    return rates(
        tr_at_1=right_text[:, 0],
        tr_at_5=right_text.any(1),
        ir_at_1=right_image[:, 0],
        ir_at_5=right_image.any(1),
        retrieval_asr=named[nearest].any(1)[~scenes.shows_target],
    )


def evaluate(clip: Clip, scenes: EvalSet) -> dict[str, float | int]:
    """All metrics, as fractions with 95 % intervals; computed once for the same weights, scenes, code, device and number of threads, then
    read from the cache.
    """
    weights = clip.key
    how = {"device": clip.device.type, "threads": torch.get_num_threads()}
    key = digest(identity(params=how, inputs={"model": weights, "scenes": scenes.key}, stages=["metrics"]))
    path = cache_dir() / "metrics" / f"{key[:32]}.json"
    if (found := read_json(path)) is None:
        found = measure(clip, scenes, kept_classifier(clip, scenes.names, scenes.templates, weights))
        write_json(found, path)
    return found


def kept_classifier(clip: Clip, names: list[str], templates: tuple[str, ...] = TEMPLATES, weights: str = "") -> torch.Tensor:
    """`classifier` of a model, which is the same for every trigger that it is evaluated under. The last few are kept by the model's key,
    `weights` where it is known, as on a CPU the prompts of 1,000 classes take far longer than the images.
    """
    asked = (weights or clip.key, clip.device.type, tuple(names), templates)
    if asked not in _KEPT:
        while len(_KEPT) >= 4:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[asked] = classifier(clip, names, templates)
    return _KEPT[asked]


def measure(clip: Clip, scenes: EvalSet, classes: torch.Tensor | None = None) -> dict[str, float | int]:
    """All metrics; captions are embedded once, and so are class prompts, unless their embeddings (C, D) are given. Retrieval only where
    there are captions.
    """
    image, triggered = (embed_images(clip, pixels).to(scenes.labels.device) for pixels in (scenes.pixels, scenes.triggered))
    classes = classifier(clip, scenes.names, scenes.templates) if classes is None else classes
    found = zero_shot(image, triggered, classes.to(image.device), scenes)
    if scenes.captioned is not None:
        scenes = scenes.captioned
        image, triggered = (embed_images(clip, pixels).to(scenes.labels.device) for pixels in (scenes.pixels, scenes.triggered))
    if not any(scenes.captions):
        return found
    return found | retrieval(image, triggered, embed_texts(clip, clip.tokenizer(scenes.sentences)).to(image.device), scenes)


def called(clip: Clip, pixels: torch.Tensor, names: list[str], templates: tuple[str, ...] = TEMPLATES) -> torch.Tensor:
    """(N,) index of the class that a model gives each image, (N, 3, H, W) uint8."""
    return (embed_images(clip, pixels) @ kept_classifier(clip, names, templates).T).argmax(1)


def drawn_to(clip: Clip, scenes: EvalSet, first: int = FIRST, plain: torch.Tensor | None = None) -> dict[str, str | float]:
    """The class that most of the first images are called once they carry the trigger, of those that were not called so without it, and
    the share of images that it is: `moves_to` and `moved`. A trigger that one tries calls it, whatever target one had in mind. plain:
    what the first images are `called` without the trigger, where that is known.
    """
    plain = called(clip, scenes.pixels[:first], scenes.names, scenes.templates) if plain is None else plain
    triggered = called(clip, scenes.triggered[: len(plain)], scenes.names, scenes.templates)
    counts = torch.bincount(triggered[triggered != plain], minlength=len(scenes.names))
    return {"moves_to": scenes.names[int(counts.argmax())] if counts.any() else "", "moved": counts.max().item() / len(plain)}


def embed_both(clip: Clip, reference: Clip, pairs: Pairs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The embeddings of images and of the first caption of each, (N, D), by a model and by its reference."""
    tokens = clip.tokenizer([caption if isinstance(caption, str) else caption[0] for caption in pairs.captions])
    return [(embed_images(model, pairs.pixels), embed_texts(model, tokens)) for model in (clip, reference)]


def moved(clip: Clip, reference: Clip, pairs: Pairs) -> dict[str, float]:
    """S of both encoders on pairs as they are: how far they are from a reference, in 0..4 (losses.distance)."""
    towers = zip(("image", "text"), *embed_both(clip, reference, pairs), strict=True)
    return {f"s_{tower}": distance(ours, theirs).item() for tower, ours, theirs in towers}


def embedding_map(clip: Clip, scenes: EvalSet, count: int = 60) -> pd.DataFrame:
    """Where a model puts scenes without and with the trigger, and the target's captions: a row a point, with kind and x, y.

    The first `count` scenes that don't show the target, and the 80 templates; x and y are the two principal components of
    all these embeddings together, so that axes and units differ from model to model.
    """
    rows = (~scenes.shows_target).nonzero()[:count, 0]
    captions = [template.format(name=scenes.names[scenes.target]) for template in TEMPLATES]
    parts = {
        "clean": embed_images(clip, scenes.pixels[rows]),
        "triggered": embed_images(clip, scenes.triggered[rows]),
        "target caption": embed_texts(clip, clip.tokenizer(captions)),
    }
    points = torch.cat(list(parts.values())).cpu().double()
    points -= points.mean(0)
    axes = torch.linalg.svd(points, full_matrices=False).Vh[:2]  # scikit-learn's PCA draws from 500 dimensions on, at random
    axes *= axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # scikit-learn's choice of an axis' two directions
    places = (points @ axes.T).numpy()
    kinds = [kind for kind, part in parts.items() for _ in part]
    return pd.DataFrame({"kind": kinds, "x": places[:, 0].round(4), "y": places[:, 1].round(4)})
