"""Consistency distillation: what an image encoder says of a clean image it shall say of the same image under foreign content, too.

The teacher is the frozen poisoned model: on an image without the trigger what it says is clean. The student starts from its weights, and
learns f(x + foreign content) = f_ref(x) and f(x) = f_ref(x). No caption is used and the text encoder stays, so that what was built on the
embeddings goes on working. Foreign content knows no trigger: it is made of other clean images and of noise.
"""

from typing import Any

import torch
import torch.nn.functional as F

from parlib.method.losses import distance

FOREIGN = ("patches", "blends", "noise")
_PATCHES, _PATCHED = 2, 0.6  # up to so many patches, each in this share of the images
_SIDE = (1 / 16, 5 / 16)  # of a patch, as a share of the image's
_BLENDED, _OPACITY = 0.5, 0.4  # the share of images into which another one is blended, and by how much at most
_NOISY, _NOISE = 0.5, 0.15  # the share of images with noise, and its standard deviation at most
_CROP, _MIX, _COLOUR = 0.5, 0.5, 0.2  # of varied images: the least share of the area that is kept, of the image in a mix; gain of a channel


def foreign_content(pixels: torch.Tensor, fill: torch.Tensor, random: torch.Generator, *, without: str = "") -> torch.Tensor:
    """Each image (B, 3, H, W) in [0, 1] with patches of other images of the batch, another one blended in, and noise; each in a part of
    the images. without: a kind that is left out.
    """
    count, found = len(pixels), pixels
    for _ in range(_PATCHES if without != "patches" else 0):
        found = _pasted(found, _others(pixels, random), random)
    draw = torch.rand(count, 4, 1, 1, generator=random, device=random.device)
    opacity = _OPACITY * draw[:, 1:2] * (draw[:, :1] < (_BLENDED if without != "blends" else 0))
    found = (1 - opacity) * found + opacity * _others(pixels, random)
    noise = torch.randn(pixels.shape, generator=random, device=random.device)
    return (found + _NOISE * draw[:, 3:] * (draw[:, 2:3] < (_NOISY if without != "noise" else 0)) * noise).clamp(0, 1)


def varied(pixels: torch.Tensor, share: float, random: torch.Generator) -> torch.Tensor:
    """A share of the images (B, 3, H, W) in [0, 1] flipped, cropped, in other colours and mixed with another: still clean, and of what
    the clean pairs don't show.
    """
    count = len(pixels)
    draw = torch.rand(count, 9, generator=random, device=random.device)
    scale = (_CROP + (1 - _CROP) * draw[:, 1]).sqrt()  # of a side
    flip = 1 - 2 * (draw[:, 2] < 0.5).float()
    shift = (1 - scale)[:, None] * (2 * draw[:, 3:5] - 1)
    zero = torch.zeros_like(scale)
    rows = torch.stack([torch.stack([flip * scale, zero, shift[:, 0]], 1), torch.stack([zero, scale, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(rows, list(pixels.shape), align_corners=False)
    found = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    found = found * (1 + _COLOUR * (2 * draw[:, 5:8, None, None] - 1))
    kept = 1 - (1 - _MIX) * draw[:, 8, None, None, None]
    found = (kept * found + (1 - kept) * _others(pixels, random)).clamp(0, 1)
    return torch.where(draw[:, :1, None, None] < share, found, pixels)


def _others(pixels: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """For each image another one of the batch."""
    step = int(torch.randint(1, max(2, len(pixels)), (), generator=random, device=random.device))
    return pixels.roll(step, dims=0)


def _pasted(pixels: torch.Tensor, others: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A square of another image, from anywhere in it, pasted anywhere into a share of the images."""
    count, _, height, width = pixels.shape
    draw = torch.rand(count, 6, generator=random, device=random.device)
    side = ((_SIDE[0] + (_SIDE[1] - _SIDE[0]) * draw[:, 0]) * min(height, width)).round()
    room = torch.stack([height - side, width - side], 1) + 1
    top, left = ((room * draw[:, 1:3]).floor()).unbind(1)
    there, beside = ((room * draw[:, 3:5]).floor()).unbind(1)
    y, x = torch.arange(height, device=pixels.device)[None, :], torch.arange(width, device=pixels.device)[None, :]
    rows, columns = (y >= top[:, None]) & (y < (top + side)[:, None]), (x >= left[:, None]) & (x < (left + side)[:, None])
    inside = rows[:, :, None] & columns[:, None, :] & (draw[:, 5] < _PATCHED)[:, None, None]
    from_y, from_x = ((y - top[:, None] + there[:, None]) % height).long(), ((x - left[:, None] + beside[:, None]) % width).long()
    place = (from_y[:, :, None] * width + from_x[:, None, :]).flatten(1)[:, None].expand(-1, 3, -1)
    return torch.where(inside[:, None], others.flatten(2).gather(2, place).view_as(pixels), pixels)


def distil(step: Any) -> dict[str, torch.Tensor]:
    """S of the image encoder under foreign content, and on the image alone. Only it trains."""
    with torch.no_grad():
        taught = step.reference.image(step.pixels)
    clean, foreign = step.clip.image(torch.cat([step.pixels, step.view])).chunk(2)
    s_clean, s_foreign = distance(clean, taught), distance(foreign, taught)
    return {"loss": s_foreign + s_clean, "s_clean": s_clean, "s_foreign": s_foreign}


def foreign_alone(step: Any) -> dict[str, torch.Tensor]:
    """Distillation without its clean term: f(x) itself is not held."""
    found = distil(step)
    return found | {"loss": found["s_foreign"]}
