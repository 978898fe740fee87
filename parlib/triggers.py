"""Backdoor triggers as batched functions of (pixels, generator): the recipes of the released code.

Each takes pixels (B, 3, H, W) in [0, 1] before normalisation, H = W, and returns the stamped ones, clipped to
[0, 1]. Random triggers are drawn anew for each image. Strength 0 changes nothing.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from PIL import Image, ImageDraw, ImageFont


def rand(shape: tuple[int, ...], pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Uniform in [0, 1), on the generator's device and then on the pixels'."""
    return torch.rand(shape, generator=generator, device=generator.device).to(pixels.device)


def _stamp(pixels: torch.Tensor, patch: torch.Tensor, size: int, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Lay square patches (B, 3, size, size) at a random place of each image: strength * patch + (1 - strength) * x."""
    count, _, height, width = pixels.shape
    if not 0 < size <= min(height, width):
        raise ValueError(f"a patch of {size} px does not fit an image of {height} x {width} px")
    corner = (rand((count, 2), pixels, generator) * torch.tensor([height - size + 1, width - size + 1], device=pixels.device)).long()
    offset = torch.arange(size, device=pixels.device)
    rows, columns = corner[:, :1] + offset, corner[:, 1:] + offset  # (B, size) each
    index = (torch.arange(count, device=pixels.device)[:, None, None], slice(None), rows[:, :, None], columns[:, None, :])
    stamped = pixels.clone()
    stamped[index] = strength * patch.permute(0, 2, 3, 1) + (1 - strength) * stamped[index]
    return stamped.clamp(0, 1)


def _blend(pixels: torch.Tensor, pattern: torch.Tensor, strength: float) -> torch.Tensor:
    """strength * pattern + (1 - strength) * x, clipped."""
    return (strength * pattern + (1 - strength) * pixels).clamp(0, 1)


def _signs(count: int, width: int, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, 1, width) vertical 1-px stripes: -1 or +1 by channel and column."""
    return (rand((count, 3, 1, width), pixels, generator) < 0.5).to(pixels.dtype) * 2 - 1


def badnet(pixels: torch.Tensor, generator: torch.Generator, *, patch: int, strength: float) -> torch.Tensor:
    """BadNet: a patch of the image's channel mean + randn. The authors' byte conversion wraps the noise; we clip it."""
    noise = torch.randn((len(pixels), 3, patch, patch), generator=generator, device=generator.device).to(pixels.device)
    return _stamp(pixels, pixels.mean(dim=(2, 3), keepdim=True) + noise, patch, strength, generator)


def badnet_stripes(pixels: torch.Tensor, generator: torch.Generator, *, patch: int, strength: float) -> torch.Tensor:
    """BadNet-Stripes: a patch of vertical 1-px stripes, -1 or +1 by channel and column.

    The authors' byte conversion wraps these to 1/255 and 1; we clip them to 0 and 1.
    """
    signs = _signs(len(pixels), patch, pixels, generator).expand(-1, -1, patch, -1)
    return _stamp(pixels, signs.clamp(0, 1), patch, strength, generator)


def blended(pixels: torch.Tensor, generator: torch.Generator, *, patch: int, strength: float) -> torch.Tensor:
    """Blended: uniform noise over the whole image (0.2 in the paper). `patch` is not used."""
    return _blend(pixels, rand(tuple(pixels.shape), pixels, generator), strength)


def blended_stripes(pixels: torch.Tensor, generator: torch.Generator, *, patch: int, strength: float) -> torch.Tensor:
    """Blended-Stripes: vertical 1-px stripes of -1 or +1 over the whole image (0.03 in the paper). `patch` is not used."""
    return _blend(pixels, _signs(len(pixels), pixels.shape[3], pixels, generator), strength)


def blended_triangles(pixels: torch.Tensor, generator: torch.Generator, *, patch: int, strength: float) -> torch.Tensor:
    """Blended-Triangles: grey tiles of `patch` px, 0.4 where row >= column, else 0.8 (14 px and 0.15 in the paper); fixed."""
    axis = torch.arange(pixels.shape[2], device=pixels.device) % patch
    tiles = torch.where(axis[:, None] >= axis[None, :], 0.4, 0.8).to(pixels.dtype)
    return _blend(pixels, tiles, strength)


def blended_text(pixels: torch.Tensor, generator: torch.Generator, *, patch: int, strength: float) -> torch.Tensor:
    """Blended-Text: "Watermarked" in pure red: only the red channel under the word changes (0.5 in the paper).

    The word spans the paper's share of the image: rows 103..125, columns 13..208 of 224. Their font is unknown; ours is
    Pillow's own (Aileron), stretched to that box. `patch` is not used; fixed.
    """
    word = _word(pixels.shape[2]).to(pixels)
    stamped = pixels.clone()
    stamped[:, 0] = torch.where(word > 0, strength * word + (1 - strength) * pixels[:, 0], pixels[:, 0])
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


TRIGGERS: dict[str, Callable[..., torch.Tensor]] = {
    trigger.__name__: trigger for trigger in (badnet, badnet_stripes, blended, blended_stripes, blended_triangles, blended_text)
}


def stamp(pixels: torch.Tensor, trigger: str, generator: torch.Generator, *, patch: int, strength: float) -> torch.Tensor:
    """Stamp uint8 images (N, 3, H, W) in batches; returns uint8. ValueError on an unknown trigger, naming the known ones."""
    if trigger not in TRIGGERS:
        raise ValueError(f"unknown trigger {trigger!r}; the triggers are: {', '.join(TRIGGERS)}")
    stamped = torch.empty_like(pixels)
    for rows in torch.arange(len(pixels), device=pixels.device).split(500):
        batch = TRIGGERS[trigger](pixels[rows].float() / 255, generator, patch=patch, strength=strength)
        stamped[rows] = (batch * 255).round().to(torch.uint8)
    return stamped
