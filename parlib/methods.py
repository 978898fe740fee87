"""The ways to train, one small entry each: pretraining and poisoning, fine-tuning, PAR.

A new method is a function of a Step that returns its loss and what the history should keep, and a line in METHODS.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from parlib.losses import clip_loss, distance, par_loss
from parlib.model import Clip


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run beside its data and its first weights.

    lr: the peak. weight_decay: on weights with >= 2 dims. batch_norm: frozen (running statistics used, not updated) or
    train. tau: PAR's threshold on S. looks: how often the history records accuracy and ASR.
    """

    method: str
    epochs: int
    batch: int
    lr: float
    seed: int
    schedule: str = "paper"
    batch_norm: str = "frozen"
    tau: float = 0.0
    weight_decay: float = 1e-4
    looks: int = 4


@dataclass
class Step:
    """What a method sees of one step.

    pixels: (B, 3, H, W) in [0, 1], augmented. tokens: (B, L). reference_text: (B, D) from the frozen poisoned model.
    """

    clip: Clip
    reference: Clip | None
    pixels: torch.Tensor
    tokens: torch.Tensor
    reference_text: torch.Tensor | None
    recipe: Recipe


@dataclass(frozen=True)
class Method:
    """A way to train: its loss, its augmentation of (pixels, fill, generator), and what it needs."""

    loss: Callable[[Step], dict[str, torch.Tensor]]
    augment: Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor] | None = None
    learns_scale: bool = False
    needs_reference: bool = False


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


def contrast(step: Step) -> dict[str, torch.Tensor]:
    """L_CLIP alone: pretraining, poisoning and plain fine-tuning."""
    loss = clip_loss(step.clip.image(step.pixels), step.clip.text(step.tokens), step.clip.net.logit_scale.exp())
    return {"loss": loss, "l_clip": loss}


def par(step: Step) -> dict[str, torch.Tensor]:
    """L_PAR = L_CLIP - L_PERT; both models see the same augmented image."""
    image, text = step.clip.image(step.pixels), step.clip.text(step.tokens)
    with torch.no_grad():
        reference_image = step.reference.image(step.pixels)
    s_image, s_text = distance(image, reference_image), distance(text, step.reference_text)
    l_clip = clip_loss(image, text, step.clip.net.logit_scale.exp())
    return {"loss": par_loss(l_clip, s_image, s_text, step.recipe.tau), "l_clip": l_clip, "s_image": s_image, "s_text": s_text}


METHODS: dict[str, Method] = {
    "contrast": Method(contrast, learns_scale=True),
    "finetune": Method(contrast),
    "par": Method(par, augment=noise_and_cutout, needs_reference=True),
}
CLEANING = tuple(name for name in METHODS if name != "contrast")
