"""What can be done to a model's weights without a gradient: BatchNorm's statistics anew, the line between two models, and a change of
weights taken away.
"""

import torch

from parlib.model.clip import Clip

_BATCH = 128  # images whose statistics are averaged: as many as a training step usually has


def batch_norms(clip: Clip) -> list[torch.nn.modules.batchnorm._BatchNorm]:
    """A model's BatchNorm layers; none in a vision transformer."""
    return [module for module in clip.net.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def train_mode(clip: Clip) -> None:
    """Training mode, but for what would draw from torch's global generator, so that the same training ends in the same bits: dropout and
    stochastic depth stay off, in a text encoder that stays as it is, too.
    """
    clip.net.train()
    for module in clip.net.modules():
        if "drop" in type(module).__name__.lower():
            module.eval()
    if clip.text_is_frozen:
        clip.net.text.eval()


def refreshed(clip: Clip, pixels: torch.Tensor) -> Clip:
    """A copy whose BatchNorm layers have the statistics of these images, the mean over batches of 128 in their order; its weights stay.

    pixels: (N, 3, H, W) uint8, clean ones. ValueError where the model has no BatchNorm, or N is below 2.
    """
    found = clip.copy()
    norms = batch_norms(found)
    if not norms:
        raise ValueError("the model has no BatchNorm, so no statistics to refresh")
    if len(pixels) < 2:
        raise ValueError(f"BatchNorm's statistics need two images or more, not {len(pixels)}")
    batches = [rows for rows in pixels.split(_BATCH) if len(rows) > 1]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.no_grad():
        for rows in batches:
            found.image(rows.to(found.device).float() / 255)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()
    return found


def between(one: Clip, other: Clip, share: float) -> Clip:
    """The model at a share of the straight line of weights from one to another: 0 is the one, 1 the other. BatchNorm's statistics lie on
    the line, too; what counts its batches stays the first's. ValueError where their weights differ in name or shape.
    """
    ours, theirs = one.net.state_dict(), other.net.state_dict()
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        raise ValueError("no line joins two models of different architectures")
    found = one.copy()
    mixed = {name: torch.lerp(value, theirs[name].to(value), share) if value.is_floating_point() else value for name, value in ours.items()}
    found.net.load_state_dict(mixed, strict=True)
    return found


def negated(poisoned: Clip, changed: Clip, coefficient: float) -> Clip:
    """The poisoned model minus `coefficient` times the change of weights that led to the other (task arithmetic, arXiv 2212.04089). Its
    BatchNorm statistics stay, as they are no weights.
    """
    found, theirs = poisoned.copy(changed.device), dict(changed.net.named_parameters())
    with torch.no_grad():
        for name, weight in found.net.named_parameters():
            weight.sub_(coefficient * (theirs[name].to(weight) - weight))
    return found
