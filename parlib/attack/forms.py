"""The families of triggers that are looked for in a model: a patch, a mask, a blend, a warp, a tint. Each is drawn, laid on images,
and moved against a gradient, many at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from parlib.attack.triggers import stamp


@dataclass(frozen=True)
class Form:
    """A family of triggers, K of them at once, of a size in (0, 1], a share of the largest.

    start: (K, side of the images, size, generator) to first patterns (K, ...). lay: pixels (B, 3, H, W) and as many patterns to stamped
    pixels. step: patterns, the direction to go against, and how long a step is, in (0, 1], to patterns within the bounds of their size.
    said: a size in words, for images of a side. channels: of a pattern. any_size: a pattern can be laid on images of any size.
    """

    start: Callable[[int, int, float, torch.Generator], torch.Tensor]
    lay: Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
    step: Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]
    said: Callable[[int, float], str]
    channels: int = 3
    any_size: bool = False


def _patch_side(side: int, size: float) -> int:
    return max(1, round(size * side / 8))


def _start_patch(count: int, side: int, size: float, random: torch.Generator) -> torch.Tensor:
    own = _patch_side(side, size)
    return torch.rand(count, 3, own, own, generator=random)


def _step_patch(pattern: torch.Tensor, direction: torch.Tensor, length: float, size: float) -> torch.Tensor:
    return (pattern - 0.1 * length * direction.sign()).clamp(0, 1)


def _start_around(
    count: int, side: int, size: float, random: torch.Generator, *, most: float, channels: int = 3, whole: bool = True
) -> torch.Tensor:
    """Values around 0, for each pixel or one for all of them."""
    own = side if whole else 1
    return (torch.rand(count, channels, own, own, generator=random) - 0.5) * size * most


def _step_around(
    pattern: torch.Tensor, direction: torch.Tensor, length: float, size: float, *, most: float, pace: float = 0.25
) -> torch.Tensor:
    most = size * most
    return (pattern - pace * most * length * direction.sign()).clamp(-most, most)


_MOST_BLENDED = 16 / 255


def _lay_blend(pixels: torch.Tensor, pattern: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return (pixels + pattern).clamp(0, 1)


_MOST_MASKED = 1 / 64  # of the image's pixels


def _start_mask(count: int, side: int, size: float, random: torch.Generator) -> torch.Tensor:
    mask = torch.full((count, 1, side, side), size * _MOST_MASKED)
    return torch.cat([mask, torch.rand(count, 3, side, side, generator=random)], 1)


def _lay_mask(pixels: torch.Tensor, pattern: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return pixels + pattern[:, :1] * (pattern[:, 1:] - pixels)


def _step_mask(pattern: torch.Tensor, direction: torch.Tensor, length: float, size: float) -> torch.Tensor:
    move = direction[:, :1] / direction[:, :1].abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    mask = (pattern[:, :1] - length * move).clamp(0, 1)
    colours = (pattern[:, 1:] - 0.2 * length * direction[:, 1:].sign()).clamp(0, 1)
    return torch.cat([_within(mask, size * _MOST_MASKED * mask[0].numel()), colours], 1)


def _within(mask: torch.Tensor, most: float) -> torch.Tensor:
    """Masks (K, 1, H, W) made smaller where they sum to more than `most`, all values by the same amount: the nearest ones that don't."""
    low = torch.zeros(len(mask), 1, 1, 1, device=mask.device)
    high, over = torch.ones_like(low), mask.sum((1, 2, 3), keepdim=True) > most
    for _ in range(20):
        middle = (low + high) / 2
        more = (mask - middle).clamp(min=0).sum((1, 2, 3), keepdim=True) > most
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return torch.where(over, (mask - high).clamp(min=0), mask)


_FURTHEST = 2.0  # px


def _lay_warp(pixels: torch.Tensor, pattern: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    height, width = pixels.shape[2:]
    down, right = (torch.linspace(-1, 1, length, device=pixels.device) for length in (height, width))
    here = torch.stack([right.expand(height, width), down[:, None].expand(height, width)], -1)
    px = 2 / torch.tensor([width - 1, height - 1], device=pixels.device)
    from_where = (here + px * pattern.permute(0, 2, 3, 1)).clamp(-1, 1)
    return F.grid_sample(pixels, from_where, align_corners=True)


_MOST_TINTED = 0.5  # of a channel's value


def _lay_tint(pixels: torch.Tensor, pattern: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return (pixels * (1 + pattern)).clamp(0, 1)


FORMS: dict[str, Form] = {
    # a square of up to an eighth of the side, at a random place of each image
    "patch": Form(_start_patch, stamp, _step_patch, lambda side, size: f"{_patch_side(side, size)} px", any_size=True),
    # a mask and what is seen through it, at the same place of each image: up to a 64th of its pixels in all
    "mask": Form(_start_mask, _lay_mask, _step_mask, lambda side, size: f"{size * _MOST_MASKED:.1%} of the pixels", channels=4),
    # something added to the whole image, up to 16 of 255
    "blend": Form(
        partial(_start_around, most=_MOST_BLENDED),
        _lay_blend,
        partial(_step_around, most=_MOST_BLENDED),
        lambda side, size: f"{size * 16:g} of 255",
    ),
    # each pixel taken from elsewhere, up to 2 px away along each axis
    "warp": Form(
        partial(_start_around, most=_FURTHEST, channels=2),
        _lay_warp,
        partial(_step_around, most=_FURTHEST),
        lambda side, size: f"{size * _FURTHEST:g} px",
        channels=2,
    ),
    # each channel times a gain of its own, of up to a half more or less
    "tint": Form(
        partial(_start_around, most=_MOST_TINTED, whole=False),
        _lay_tint,
        partial(_step_around, most=_MOST_TINTED, pace=0.15),
        lambda side, size: f"{size * _MOST_TINTED:.0%}",
        any_size=True,
    ),
}
