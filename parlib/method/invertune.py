"""InverTune's last step (arXiv 2506.12411): the neurons that an inverted trigger moves most are tuned until it no longer moves them."""

from typing import Any

import torch
from torch import nn

from parlib.method.losses import distance

_FEATURES = 0.5  # weight of the embedding's distance


def layers(visual: nn.Module) -> list[nn.Module]:
    """The blocks of an image encoder, first to last: of open_clip's ResNets and transformers, and of timm's. ValueError on any other."""
    found: Any = visual
    if hasattr(visual, "layer4"):
        return [found.layer1, found.layer2, found.layer3, found.layer4]
    if hasattr(visual, "transformer"):
        return list(found.transformer.resblocks)
    if hasattr(visual, "trunk") and hasattr(found.trunk, "blocks"):
        return list(found.trunk.blocks)
    raise ValueError("InverTune tunes one block of the image encoder; this architecture has none that is known here")


def neurons(clip: Any, pixels: torch.Tensor, blocks: list[nn.Module]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The embeddings (B, D) of images, and the activation (B, C) of each neuron of some blocks: its mean over places or tokens."""
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda module, given, made: seen.append(_pooled(made))) for block in blocks]
    try:
        return clip.image(pixels), seen
    finally:
        for hook in hooks:
            hook.remove()


def _pooled(made: torch.Tensor) -> torch.Tensor:
    return made.float().mean((2, 3) if made.ndim == 4 else 1)


def moved_most(changes: torch.Tensor) -> torch.Tensor:
    """(C,) 1 for the neurons in the upper of two clusters of their changes (C,), by 2-means from the least and the largest one; 0 else."""
    low, high = changes.min(), changes.max()
    for _ in range(50):
        upper = (changes - high).abs() < (changes - low).abs()
        if not upper.any() or upper.all():
            break
        low, high = changes[~upper].mean(), changes[upper].mean()
    return upper.float() if upper.any() else torch.ones_like(changes)


def _chosen(step: Any, blocks: list[nn.Module]) -> tuple[int, torch.Tensor]:
    """The block whose neurons the trigger changes the most, as a share of what they are, and which of them; found at the first step."""
    if "neurons" not in step.memory:
        clean, stamped = (neurons(step.reference, pixels, blocks)[1] for pixels in (step.pixels, step.view))
        changes = [(one - other).abs().mean(0) for one, other in zip(stamped, clean, strict=True)]
        shares = torch.stack([change.mean() / other.abs().mean().clamp(min=1e-12) for change, other in zip(changes, clean, strict=True)])
        step.memory |= {"block": shares.argmax(), "neurons": moved_most(changes[int(shares.argmax())])}
    return int(step.memory["block"]), step.memory["neurons"]


def invertune(step: Any) -> dict[str, torch.Tensor]:
    """What the chosen neurons do under the trigger is to be what they do without, in the poisoned model, as a share of that; and so are
    the embeddings. The block of these neurons alone trains.
    """
    known = layers(step.reference.net.visual)
    with torch.no_grad():
        block, mask = _chosen(step, known)
        taught, (wanted,) = neurons(step.reference, step.pixels, [known[block]])
    ours = layers(step.clip.net.visual)[block]
    tuned = {id(weight) for weight in ours.parameters()}
    for weight in step.clip.net.parameters():
        weight.requires_grad_(id(weight) in tuned)
    found, (active,) = neurons(step.clip, step.view, [ours])
    away = ((active - wanted).square() * mask).sum() / (wanted.square() * mask).sum().clamp(min=1e-12)
    s_image = distance(found, taught)
    return {"loss": away + _FEATURES * s_image, "away": away, "s_foreign": s_image}
