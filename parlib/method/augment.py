"""Augmentations of images, in batches: PAR's, CleanCLIP's and RoCLIP's. Each takes pixels (B, 3, H, W) in [0, 1],
`fill` (3, 1, 1), the pixel that normalises to 0, and a generator, and returns as many pixels of the same kind.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torchvision.transforms import v2


def noise_and_cutout(pixels: torch.Tensor, fill: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """PAR's augmentation: with p 0.5 positive noise clip(x + clip(0.2 randn, 0, 1), 0, 1); with p 0.5 one square of
    0.5..1 % of the area set to `fill` (3, 1, 1), the pixel that normalises to 0. pixels: (B, 3, H, W) in [0, 1].
    """
    count, _, height, width = pixels.shape
    draw = torch.rand(count, 5, 1, 1, generator=random, device=random.device)
    noise = (0.2 * torch.randn(pixels.shape, generator=random, device=random.device)).clamp_(0, 1)
    pixels = (pixels + noise * (draw[:, :1] < 0.5)).clamp_(0, 1)
    side = ((0.005 + 0.005 * draw[:, 1]) * height * width).sqrt().round()
    top, left = (draw[:, 2] * (height - side + 1)).floor(), (draw[:, 3] * (width - side + 1)).floor()
    y = torch.arange(height, device=pixels.device)[None, :, None]
    x = torch.arange(width, device=pixels.device)[None, None, :]
    inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side) & (draw[:, 4] < 0.5)
    return torch.where(inside[:, None], fill, pixels)


class BatchedAutoAugment(v2.AutoAugment):
    """torchvision's AutoAugment of a batch (B, 3, H, W) uint8, each image by a draw of its own: what one call for each image gives, bit
    for bit, with one operation for all images that drew the same.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self._drawn: list[list[tuple[str, float]]] = []
        for image in images:
            self._drawn.append([])
            super().forward(image)  # draws, and notes down below
        found = images.clone()
        for place in range(max(map(len, self._drawn), default=0)):
            groups: dict[tuple[str, float], list[int]] = {}
            for row, drawn in enumerate(self._drawn):
                if place < len(drawn):
                    groups.setdefault(drawn[place], []).append(row)
            for (name, magnitude), rows in groups.items():
                made: Any = super()._apply_image_or_video_transform(found[rows], name, magnitude, self.interpolation, self._fill)
                found[rows] = made
        return found

    def _apply_image_or_video_transform(self, image: Any, transform_id: str, magnitude: float, interpolation: Any, fill: Any) -> Any:
        self._drawn[-1].append((transform_id, magnitude))
        return image


@lru_cache(maxsize=1)
def _auto_augment() -> BatchedAutoAugment:
    return BatchedAutoAugment(v2.AutoAugmentPolicy.IMAGENET)


@lru_cache(maxsize=4)
def _crop_and_jitter(height: int, width: int) -> v2.Compose:
    # The released code's magnitudes are for 224 px and a model that bears them. Here they leave the poisoned model 5 % of its
    # scenes, and cleaning ends below a clean accuracy of 0.4; falling with the area, they leave it more than AutoAugment does.
    share = min(1.0, height / 224) ** 2
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomResizedCrop(
                (height, width), scale=(1 - 0.92 * share, 1.0), ratio=((3 / 4) ** share, (4 / 3) ** share), antialias=True
            ),
            v2.RandomApply([v2.ColorJitter(0.5 * share, 0.5 * share, 0.5 * share, 0.1 * share)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.GaussianBlur(max(3, round(21 * share) | 1), sigma=(0.1 * share, 2.0 * share)),
        ]
    )


def _drawn(transform: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """The transform of images as uint8; it draws from torch's global state, which is left as it was."""
    images = (pixels * 255).round().to(torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.randint(2**62, (), generator=random, device=random.device).item())
        return transform(images).float() / 255


def auto_augment(pixels: torch.Tensor, fill: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """CleanCLIP's augmentation: AutoAugment with ImageNet's policy."""
    return _drawn(_auto_augment(), pixels, random)


def crop_and_jitter(pixels: torch.Tensor, fill: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """RoCLIP's augmentation: flip p 0.5, crop, colour jitter p 0.8, grey p 0.2, blur. At 224 px the released code's (a crop of
    8..100 % of the area); below, magnitudes fall with the image's area.
    """
    transform = _crop_and_jitter(*pixels.shape[-2:])  # which draws once a call
    return _drawn(lambda images: torch.stack([transform(image) for image in images]), pixels, random)
