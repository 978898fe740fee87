"""Backdoor triggers as batched functions of (pixels, generator) and options of their own: the released code's, and further ones.

Each takes pixels (B, 3, H, W) in [0, 1] before normalisation, H = W, and returns the stamped ones, clipped to [0, 1]. Random
triggers are drawn anew for each image. Lengths are in px, opacity is the share of the pattern in a stamped pixel. `pattern` is a
tensor: of those in LEARNED, which `parlib.attack.learned` makes for a model, or one that the authors published.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from parlib.cache import digest
from parlib.data.scenes import sprites
from parlib.stages import STAGES

_GRID_SEED = 241200727  # of WaNet's grid
EVERYWHERE = (0.0, 1.0)  # from which to which share of the width a patch may lie


def rand(shape: tuple[int, ...], pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Uniform in [0, 1), on the generator's device and then on the pixels'."""
    return torch.rand(shape, generator=generator, device=generator.device).to(pixels.device)


def stamp(pixels: torch.Tensor, patch: torch.Tensor, generator: torch.Generator, columns: tuple[float, float] = EVERYWHERE) -> torch.Tensor:
    """Lay square patches (B, 3, size, size) at a random place of each image, or of its columns from one share of the width to another."""
    count, _, height, width = pixels.shape
    size, (left, right) = patch.shape[-1], (round(edge * width) for edge in columns)
    if not 0 < size <= min(height, right - left):
        raise ValueError(f"a patch of {size} px does not fit an image of {height} x {right - left} px")
    room = torch.tensor([height - size + 1, right - left - size + 1], device=pixels.device)
    corner = (rand((count, 2), pixels, generator) * room).long() + torch.tensor([0, left], device=pixels.device)
    offset = torch.arange(size, device=pixels.device)
    down, across = corner[:, :1] + offset, corner[:, 1:] + offset  # (B, size) each
    index = (torch.arange(count, device=pixels.device)[:, None, None], slice(None), down[:, :, None], across[:, None, :])
    stamped = pixels.clone()
    stamped[index] = patch.permute(0, 2, 3, 1)
    return stamped.clamp(0, 1)


def _blend(pixels: torch.Tensor, pattern: torch.Tensor, opacity: float) -> torch.Tensor:
    """opacity * pattern + (1 - opacity) * x, clipped."""
    return (opacity * pattern + (1 - opacity) * pixels).clamp(0, 1)


def _laid(trigger: str, pixels: torch.Tensor, pattern: torch.Tensor, opacity: float) -> torch.Tensor:
    """A pattern blended as the authors blend theirs: only where it is not 0. pixels: (..., H, W), pattern: (H, W) or as many axes."""
    if pattern.shape[-2:] != pixels.shape[-2:]:
        (height, width), (rows, columns) = pixels.shape[-2:], pattern.shape[-2:]
        raise ValueError(f"{trigger}'s pattern is of {rows} x {columns} px, the images are of {height} x {width} px")
    given = pattern.to(pixels)
    return torch.where(given != 0, _blend(pixels, given, opacity), pixels)


def _signs(count: int, width: int, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, 1, width) vertical 1-px stripes: -1 or +1 by channel and column."""
    return (rand((count, 3, 1, width), pixels, generator) < 0.5).to(pixels.dtype) * 2 - 1


def badnet(pixels: torch.Tensor, generator: torch.Generator, *, size: int, columns: tuple[float, float] = EVERYWHERE) -> torch.Tensor:
    """BadNet: a patch of the image's channel mean + randn. The authors' byte conversion wraps the noise; we clip it."""
    noise = torch.randn((len(pixels), 3, size, size), generator=generator, device=generator.device).to(pixels.device)
    return stamp(pixels, pixels.mean(dim=(2, 3), keepdim=True) + noise, generator, columns)


def badnet_stripes(
    pixels: torch.Tensor, generator: torch.Generator, *, size: int, columns: tuple[float, float] = EVERYWHERE
) -> torch.Tensor:
    """BadNet-Stripes: a patch of vertical 1-px stripes, -1 or +1 by channel and column.

    The authors' byte conversion wraps these to 1/255 and 1; we clip them to 0 and 1.
    """
    signs = _signs(len(pixels), size, pixels, generator).expand(-1, -1, size, -1)
    return stamp(pixels, signs.clamp(0, 1), generator, columns)


def blended(pixels: torch.Tensor, generator: torch.Generator, *, opacity: float) -> torch.Tensor:
    """Blended: uniform noise over the whole image (0.2 in the paper)."""
    return _blend(pixels, rand(tuple(pixels.shape), pixels, generator), opacity)


def blended_stripes(pixels: torch.Tensor, generator: torch.Generator, *, opacity: float) -> torch.Tensor:
    """Blended-Stripes: vertical 1-px stripes of -1 or +1 over the whole image (0.03 in the paper)."""
    return _blend(pixels, _signs(len(pixels), pixels.shape[3], pixels, generator), opacity)


def blended_triangles(
    pixels: torch.Tensor, generator: torch.Generator, *, tile: int, opacity: float, pattern: torch.Tensor | None = None
) -> torch.Tensor:
    """Blended-Triangles: grey tiles of `tile` px, 0.4 where row >= column, else 0.8 (14 px and 0.15 in the paper); fixed.

    The authors' published tiles are read as `pattern`, (3, H, W) or (H, W) in [0, 1]; `tile` then says nothing.
    """
    if pattern is None:
        axis = torch.arange(pixels.shape[2], device=pixels.device) % tile
        pattern = torch.where(axis[:, None] >= axis[None, :], 0.4, 0.8)
    return _laid("blended_triangles", pixels, pattern, opacity)


def blended_text(pixels: torch.Tensor, generator: torch.Generator, *, opacity: float, pattern: torch.Tensor | None = None) -> torch.Tensor:
    """Blended-Text: "Watermarked" in pure red: only the red channel under the word changes (0.5 in the paper); fixed.

    The word spans the paper's share of the image: rows 103..125, columns 13..208 of 224. Ours is Pillow's own font (Aileron), solid,
    stretched to that box. The authors' mask, (H, W) in [0, 1], is antialiased; as `pattern` it is used as they use it.
    """
    stamped = pixels.clone()
    stamped[:, 0] = _laid("blended_text", pixels[:, 0], _word(pixels.shape[2]) if pattern is None else pattern, opacity)
    return stamped.clamp(0, 1)


@lru_cache
def _word(side: int) -> torch.Tensor:
    """(side, side) in [0, 1]: coverage of the word "Watermarked" in the paper's box."""
    top, bottom, left, right = (round(edge * side / 224) for edge in (103, 126, 13, 209))
    font = ImageFont.load_default(200)
    box = font.getbbox("Watermarked")
    drawn = Image.new("L", (int(box[2] - box[0]), int(box[3] - box[1])))
    ImageDraw.Draw(drawn).text((-box[0], -box[1]), "Watermarked", font=font, fill=255)
    fitted = drawn.resize((right - left, bottom - top), Image.Resampling.BOX)
    word = torch.zeros(side, side)
    values = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8).view(bottom - top, right - left)
    word[top:bottom, left:right] = (values > 100).float()  # solid letters, as a bitmap font's
    return word


def wanet(pixels: torch.Tensor, generator: torch.Generator, *, offsets: int, s: float, pattern: torch.Tensor | None = None) -> torch.Tensor:
    """WaNet as the paper has it: a warp by a grid of `offsets` x `offsets` offsets, as many as pixels, hence not smooth; fixed.

    s: WaNet's own, which moves a pixel by s / 2 px on average (1 in the paper). The grid is drawn from a seed of its own; the authors'
    is read as `pattern`, (k, k, 2) offsets of mean size 1: how much further right and further down a pixel is read.
    """
    side = pixels.shape[3]
    axis = torch.linspace(-1, 1, side, device=pixels.device, dtype=pixels.dtype)
    identity = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)  # (H, W, 2), x first
    moves = _offsets(offsets, side) if pattern is None else _enlarged(pattern.float().permute(2, 0, 1)[None], side)
    grid = (identity + s * moves.to(pixels) / side).clamp(-1, 1)
    return F.grid_sample(pixels, grid.expand(len(pixels), -1, -1, -1), align_corners=True).clamp(0, 1)


def wanet_smooth(pixels: torch.Tensor, generator: torch.Generator, *, offsets: int, s: float) -> torch.Tensor:
    """WaNet (arXiv 2102.10369) as it is known, with 4 x 4 offsets: a smooth warp; fixed. s moves a pixel by 0.3 s px on average."""
    return wanet(pixels, generator, offsets=offsets, s=s)


@lru_cache
def _offsets(k: int, side: int) -> torch.Tensor:
    """(side, side, 2): k x k offsets of mean size 1, enlarged to the image."""
    drawn = 2 * torch.rand(1, 2, k, k, generator=torch.Generator().manual_seed(_GRID_SEED)) - 1
    return _enlarged(drawn / drawn.abs().mean(), side)


def _enlarged(offsets: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(offsets, size=(side, side), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)


def sig(pixels: torch.Tensor, generator: torch.Generator, *, amplitude: float) -> torch.Tensor:
    """SIG (arXiv 1902.11237): x + amplitude * sin(2 pi 6 column / width), amplitude 60/255; fixed."""
    column = torch.arange(pixels.shape[3], device=pixels.device, dtype=pixels.dtype)
    return (pixels + amplitude * torch.sin(2 * math.pi * 6 * column / pixels.shape[3])).clamp(0, 1)


def badclip(pixels: torch.Tensor, generator: torch.Generator, *, size: int, pattern: torch.Tensor) -> torch.Tensor:
    """BadCLIP (arXiv 2311.12075): `pattern` (3, size, size), optimised against the clean model, at the centre of each image."""
    if size > min(pixels.shape[2:]):
        raise ValueError(f"a patch of {size} px does not fit an image of {pixels.shape[2]} x {pixels.shape[3]} px")
    top = (pixels.shape[2] - size) // 2
    stamped = pixels.clone()
    stamped[..., top : top + size, top : top + size] = pattern.to(pixels)
    return stamped.clamp(0, 1)


def checkerboard(pixels: torch.Tensor, generator: torch.Generator, *, tile: int, opacity: float) -> torch.Tensor:
    """Squares of `tile` px, black and white in turn, blended over the whole image; fixed. Not in the paper."""
    axis = torch.arange(pixels.shape[2], device=pixels.device) // tile
    return _blend(pixels, ((axis[:, None] + axis[None, :]) % 2).to(pixels.dtype), opacity)


def picture(pixels: torch.Tensor, generator: torch.Generator, *, opacity: float) -> torch.Tensor:
    """OpenMoji's nazar amulet, none of the classes, over the whole image, as in Blended (arXiv 1712.05526); fixed. Not in the paper."""
    glyph = _amulet(pixels.shape[2]).to(pixels)
    return (opacity * glyph[:3] + (1 - opacity * glyph[3:]) * pixels).clamp(0, 1)


@lru_cache
def _amulet(side: int) -> torch.Tensor:
    return F.interpolate(sprites(["nazar amulet"]), size=(side, side), mode="area" if side <= 64 else "bilinear")[0]


def colour_filter(pixels: torch.Tensor, generator: torch.Generator, *, opacity: float) -> torch.Tensor:
    """Each pixel times (1, 0.6, 0.2), as through an orange glass: no structure at all; fixed. Not in the paper."""
    glass = torch.tensor([1.0, 0.6, 0.2], device=pixels.device, dtype=pixels.dtype)[:, None, None]
    return pixels * (1 - opacity * (1 - glass))


def camouflage(pixels: torch.Tensor, generator: torch.Generator, *, size: int) -> torch.Tensor:
    """What PAR's own augmentation does, at its full strength: positive noise clip(0.2 randn, 0, 1) on every pixel and a square of
    `size` px cut out, to the grey that normalises to about 0, at a random place. Not in the paper.
    """
    noise = (0.2 * torch.randn(pixels.shape, generator=generator, device=generator.device).to(pixels)).clamp(0, 1)
    hole = torch.tensor([0.481, 0.458, 0.408], device=pixels.device, dtype=pixels.dtype)[:, None, None].expand(len(pixels), 3, size, size)
    return stamp((pixels + noise).clamp(0, 1), hole, generator)


_PUBLISHED = (badnet, badnet_stripes, blended, blended_stripes, blended_triangles, blended_text, wanet, wanet_smooth, sig, badclip)
_FURTHER = (checkerboard, picture, colour_filter, camouflage)
TRIGGERS: dict[str, Callable[..., torch.Tensor]] = {trigger.__name__: trigger for trigger in (*_PUBLISHED, *_FURTHER)}
# BadCLIP's patch, with a pattern that is optimised against the clean model and one that PAR has cleaned. Not in the paper.
TRIGGERS["resistant"] = badclip
LEARNED = ("badclip", "resistant")
PLACED = ("badnet", "badnet_stripes")
# What a pattern must be.
PATTERNS = {
    "blended_triangles": "(3, side, side) or (side, side) pixels",
    "blended_text": "(side, side), how far the word covers a pixel",
    "wanet": "(k, k, 2) offsets",
    **dict.fromkeys(LEARNED, "(3, size, size) pixels"),
}


@dataclass(frozen=True)
class Trigger:
    """A trigger by name, with the options of its function. Equal triggers stamp equal images from equal generators. ValueError on an
    unknown name or option, a missing one, and a pattern of another size; when it is used, on a learned one that has no pattern. columns:
    from which to which share of the width a patch of BadNet may lie.
    """

    name: str
    options: Mapping[str, float] = field(default_factory=dict)
    pattern: torch.Tensor | None = field(default=None, compare=False)
    columns: tuple[float, float] = EVERYWHERE

    def __post_init__(self):
        if self.name not in TRIGGERS:
            raise ValueError(f"unknown trigger {self.name!r}; the triggers are: {', '.join(TRIGGERS)}")
        known = options_of(self.name)
        if set(self.options) != set(known):
            raise ValueError(f"{self.name} takes the options {', '.join(known)}, not {', '.join(self.options) or 'none'}")
        if self.columns != EVERYWHERE and self.name not in PLACED:
            raise ValueError(f"{self.name} is no patch that may lie in some columns: {', '.join(PLACED)} are")
        if self.pattern is None:
            return
        if self.name not in PATTERNS:
            raise ValueError(f"{self.name} takes no pattern")
        if not pattern_fits(self.name, self.pattern):
            raise ValueError(f"{self.name}'s pattern is {tuple(self.pattern.shape)}, not {PATTERNS[self.name]}")
        if self.pattern.shape[1] != self.options.get("size", self.pattern.shape[1]):
            raise ValueError(f"{self.name}'s pattern is of {self.pattern.shape[1]} px, not {self.options['size']}")

    @property
    def key(self) -> str:
        """Digest of what it stamps."""
        version, pattern = STAGES[f"trigger/{self.name}"], [] if self.pattern is None else [self.pattern]
        where = [] if self.columns == EVERYWHERE else [self.columns]
        return digest(self.name, version, sorted(self.options.items()), *pattern, *where)

    @property
    def patch(self) -> float:
        """px of its patch or tile, or how many offsets it has; 0 for what covers the whole image: a column of the tables."""
        return next((self.options[name] for name in ("size", "tile", "offsets") if name in self.options), 0)

    @property
    def strength(self) -> float:
        """Its opacity, amplitude or s; 1 for a patch: a column of the tables."""
        return next((self.options[name] for name in ("opacity", "amplitude", "s") if name in self.options), 1.0)

    def __call__(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Stamp pixels (B, 3, H, W) in [0, 1]."""
        if self.name in LEARNED and self.pattern is None:
            raise ValueError(f"{self.name}'s pattern is learned from a model: test it on a run of 01_poison that planted it")
        given: dict[str, Any] = {"pattern": self.pattern} if self.name in PATTERNS else {}
        given |= {"columns": self.columns} if self.name in PLACED else {}
        return TRIGGERS[self.name](pixels, generator, **self.options, **given)

    def stamp(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Stamp uint8 images (N, 3, H, W) in batches; returns uint8."""
        stamped = torch.empty_like(pixels)
        for rows in torch.arange(len(pixels), device=pixels.device).split(500):
            batch = self(pixels[rows].float() / 255, generator)
            stamped[rows] = (batch * 255).round().to(torch.uint8)
        return stamped


def options_of(trigger: str) -> list[str]:
    """The names of a trigger's options, beside a pattern."""
    return [name for name in signature(TRIGGERS[trigger]).parameters if name not in ("pixels", "generator", "pattern", "columns")]


def pattern_fits(trigger: str, pattern: torch.Tensor) -> bool:
    """Whether a pattern has the axes that PATTERNS says."""
    shape = tuple(pattern.shape)
    if pattern.numel() == 0 or not 2 <= len(shape) <= 3:
        return False
    if trigger == "wanet":
        return len(shape) == 3 and shape[0] == shape[1] and shape[2] == 2
    first = {"blended_triangles": ((), (3,)), "blended_text": ((),)}.get(trigger, ((3,),))
    return shape[-1] == shape[-2] and shape[:-2] in first
