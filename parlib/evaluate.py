"""Metrics of a CLIP under a backdoor: zero-shot accuracy, attack success rate (ASR) and retrieval, with intervals."""

import json
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch.nn import functional as F

from parlib.cache import atomic_file, cache_dir, code_fingerprint, digest, versions
from parlib.data import TEMPLATES
from parlib.model import Clip, embed_images, embed_texts


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

    pixels, triggered: (N, 3, H, W) uint8, the same scenes without and with the trigger. captions: N strings.
    labels: (N,). shows_target: (N,) bool, scenes left out of ASR. names: class names. target: index of the target class.
    """

    pixels: torch.Tensor
    triggered: torch.Tensor
    captions: list[str]
    labels: torch.Tensor
    shows_target: torch.Tensor
    names: list[str]
    target: int

    @property
    def key(self) -> str:
        """Digest of the content."""
        tensors = (self.pixels, self.triggered, self.labels, self.shows_target)
        return digest(self.names, self.target, self.captions, *tensors)

    def look(self, clip: Clip) -> dict[str, float]:
        """clean_accuracy and attack_success_rate alone: what a training history records now and then."""
        classes = classifier(clip, self.names)
        clean = (embed_images(clip, self.pixels) @ classes.T).argmax(1) == self.labels
        hit = (embed_images(clip, self.triggered) @ classes.T).argmax(1) == self.target
        return {
            "clean_accuracy": clean.float().mean().item(),
            "attack_success_rate": hit[~self.shows_target].float().mean().item(),
        }

    def first(self, n: int) -> "EvalSet":
        """The first n scenes, for a quick look while training."""
        tensors = (self.pixels[:n], self.triggered[:n], self.captions[:n], self.labels[:n], self.shows_target[:n])
        return EvalSet(*tensors, self.names, self.target)


def zero_shot(image: torch.Tensor, triggered: torch.Tensor, classes: torch.Tensor, scenes: EvalSet) -> dict[str, float | int]:
    """Zero-shot rates from embeddings: image, triggered (N, D), classes (C, D), all unit-norm."""
    top5 = (image @ classes.T).topk(min(5, len(classes)), dim=1).indices
    hit = top5 == scenes.labels[:, None]
    predicted = (triggered @ classes.T).argmax(1)
    others = ~scenes.shows_target
    return rates(
        clean_accuracy=hit[:, 0],
        clean_top5=hit.any(1),
        attack_success_rate=(predicted == scenes.target)[others],
        asr_with_target_class=predicted == scenes.target,
        triggered_accuracy=(predicted == scenes.labels)[others],
    )


def retrieval(image: torch.Tensor, triggered: torch.Tensor, text: torch.Tensor, scenes: EvalSet) -> dict[str, float | int]:
    """Text and image retrieval at 1 and 5 among N pairs, and retrieval ASR: triggered images, of scenes without the target,
    with the target's name in any of their five nearest captions. Identical captions count as the image's own.
    """
    index = {caption: i for i, caption in enumerate(dict.fromkeys(scenes.captions))}
    caption = torch.tensor([index[c] for c in scenes.captions], device=image.device)
    to_text = (image @ text.T).topk(min(5, len(text)), dim=1).indices
    to_image = (text @ image.T).topk(min(5, len(text)), dim=1).indices
    named = torch.tensor([scenes.names[scenes.target] in c for c in scenes.captions], device=image.device)
    nearest = (triggered @ text.T).topk(min(5, len(text)), dim=1).indices
    right_text, right_image = caption[to_text] == caption[:, None], caption[to_image] == caption[:, None]
    return rates(
        tr_at_1=right_text[:, 0],
        tr_at_5=right_text.any(1),
        ir_at_1=right_image[:, 0],
        ir_at_5=right_image.any(1),
        retrieval_asr=named[nearest].any(1)[~scenes.shows_target],
    )


def evaluate(clip: Clip, scenes: EvalSet) -> dict[str, float | int]:
    """All metrics, as fractions with 95 % intervals; computed once for the same weights, scenes and code, then read from the cache."""
    weights = [value for _, value in sorted(clip.net.state_dict().items())]
    key = digest(clip.config, *weights, scenes.key, code_fingerprint("evaluate.measure"), versions())
    path = cache_dir() / "metrics" / f"{key[:32]}.json"
    if not path.exists():
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(measure(clip, scenes)))
    return json.loads(path.read_text())


def measure(clip: Clip, scenes: EvalSet) -> dict[str, float | int]:
    """All metrics; class prompts and captions are embedded once."""
    classes = classifier(clip, scenes.names)
    image, triggered = embed_images(clip, scenes.pixels), embed_images(clip, scenes.triggered)
    text = embed_texts(clip, clip.tokenizer(scenes.captions))
    return zero_shot(image, triggered, classes, scenes) | retrieval(image, triggered, text, scenes)


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
    places = PCA(2).fit_transform(torch.cat(list(parts.values())).cpu().double().numpy())
    kinds = [kind for kind, part in parts.items() for _ in part]
    return pd.DataFrame({"kind": kinds, "x": places[:, 0].round(4), "y": places[:, 1].round(4)})
