"""Synthetic pairs to clean with: each way to make them differs from the scenes as SynthCLIP differs from CC3M.

Names, classes and target are the scenes', pictures and wording are not, and no scene is among them. How far a set lies from
the scenes is its Fréchet distance, how varied it is its Vendi score, both in a model's embedding.
"""

import json
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F

from parlib.cache import cache_dir, digest, read_tensors, write_tensors
from parlib.data.feeds import generator
from parlib.data.painter import paint, painter
from parlib.data.pairs import TEMPLATES, Pairs
from parlib.data.scenes import AN, SIDE, WORLD, class_names, load_scenes, paste_glyphs, sprites
from parlib.records.identity import identity

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
    "sentences": (flat, tuple(WORLD["sentences"]), False),
    "outline": (outline, TEMPLATES, False),
}
SYNTHETIC = (*DRAWN, "painted")


def _shaded(n: int, random: torch.Generator) -> torch.Tensor:
    """(N, 3, 64, 64) grounds that go from one colour to another, in any direction."""
    ends = torch.rand(2, n, 3, 1, 1, generator=random)
    angle = 2 * torch.pi * torch.rand(n, 1, 1, 1, generator=random)
    axis = torch.linspace(-0.5, 0.5, SIDE)
    return torch.lerp(ends[0], ends[1], 0.5 + (axis * torch.cos(angle) + axis[:, None] * torch.sin(angle)) / 2**0.5)


def draw_synthetic(
    name: str, labels: torch.Tensor, names: list[str], glyphs: torch.Tensor, random: torch.Generator
) -> tuple[torch.Tensor, list[str]]:
    """(N, 3, 64, 64) uint8 drawings of the classes (N,) in the style of a set in DRAWN, and their captions: the object large, upright and
    alone on a plain light ground, or composed.
    """
    n, (style, wording, composed) = len(labels), DRAWN[name]
    draw = torch.rand(n, 3, generator=random)
    size = (0.5 if composed else 0.65) + 0.3 * draw[:, 0]
    place = (2 * draw[:, 1:] - 1) * (1 - size)[:, None]
    pixels = torch.empty(n, 3, SIDE, SIDE, dtype=torch.uint8)
    light = torch.empty(n) if composed else 1 - 0.25 * torch.rand(n, 3, 1, 1, generator=random)
    angle = 0.6 * torch.rand(n, generator=random) - 0.3 if composed else torch.zeros(n)  # radians
    for start in range(0, n, _BATCH):
        rows = slice(start, start + _BATCH)
        count = len(labels[rows])
        if composed:
            canvas, other = _shaded(count, random), torch.randint(len(glyphs), (count,), generator=random)
            small = 0.2 + 0.2 * torch.rand(count, generator=random)
            corner = torch.where(place[rows] > 0, -1.0, 1.0) * (1 - small)[:, None]  # away from the object
            drawn = style(glyphs[other], random) * (torch.rand(count, 1, 1, 1, generator=random) < 0.5)
            canvas = paste_glyphs(canvas, drawn, small, torch.zeros(count), corner)
        else:
            canvas = light[rows].expand(-1, -1, SIDE, SIDE)
        made = paste_glyphs(canvas, style(glyphs[labels[rows]], random), size[rows], angle[rows], place[rows])
        pixels[rows] = (made.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels, _write(labels, names, wording, random)


def _write(labels: torch.Tensor, names: list[str], wording: tuple[str, ...], random: torch.Generator) -> list[str]:
    chosen = torch.randint(len(wording), (len(labels),), generator=random).tolist()
    return [re.sub(AN, "an ", wording[i].format(name=names[label])) for label, i in zip(labels.tolist(), chosen, strict=True)]


def load_synthetic(name: str, n: int, classes: int, seed: int = 0) -> Pairs:
    """n synthetic pairs, made once and then read from the cache. `painted` first trains its painter, on the scenes of the
    pretraining: minutes, once.

    Raises ValueError on an unknown generator.
    """
    if name not in SYNTHETIC:
        raise ValueError(f"unknown synthetic data {name!r}; known are: {', '.join(SYNTHETIC)}")
    names = class_names(classes)
    asked = {"n": n, "names": names, "seed": seed} | ({"threads": torch.get_num_threads()} if name == "painted" else {})
    key = digest(identity(params=asked, inputs={}, stages=[f"synthetic/{name}", "scenes"]))
    path = cache_dir() / "scenes" / f"{name}_{n}_{key[:16]}.safetensors"
    if (found := read_tensors(path)) is None:
        random = generator("cpu", "synthetic", name, seed)
        labels = (torch.arange(n) % len(names))[torch.randperm(n, generator=random)]
        if name == "painted":
            pixels = paint(painter(load_scenes("train", min(24000, 120 * classes), classes)), labels, random)
            captions = _write(labels, names, TEMPLATES, random)
        else:
            pixels, captions = draw_synthetic(name, labels, names, sprites(names), random)
        found = {"pixels": pixels, "labels": labels}, {"captions": json.dumps(captions)}
        write_tensors(found[0], path, found[1])
    tensors, about = found
    labels = tensors["labels"]
    return Pairs(tensors["pixels"], json.loads(about["captions"]), labels, torch.full_like(labels, -1), names)
