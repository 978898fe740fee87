"""How an attacker who expects a cleaning trains the backdoor in. None of it is the paper's; each is written for the question Q4.

`step.clean(0)` are the pairs of the step as they were before the attack, `step.clean(1)` and on those of later steps.
"""

import torch
import torch.nn.functional as F

from parlib.method.losses import clip_loss

AHEAD, AHEAD_RATE = 3, 2e-3  # steps of the cleaning that lookahead simulates, and their rate: what removes this backdoor elsewhere
RADIUS = 0.03  # length of the step uphill of a flat planting, over all weights; at 0.1 it planted an ASR of a half
SPREAD = 0.1  # weight of the term of a spread planting; at 1 it planted nothing
OFFSET = 0.8  # share of every embedding that an offset planting puts into one direction


def stamped(step) -> torch.Tensor:
    """(B,) bool: the pairs of a step that the attack stamped."""
    return (step.pixels != step.clean(0)[0]).flatten(1).any(1)


def spread(step) -> dict[str, torch.Tensor]:
    """L_CLIP, and a term that keeps the trigger from acting in one direction: the mean squared cosine of the shifts of any two stamped
    images' embeddings from the same images' without the trigger. 1: they all move alike; 1 / D: as in random directions.
    """
    rows = stamped(step)
    image, plain = step.clip.image(torch.cat([step.view, step.clean(0)[0][rows]])).split([len(step.view), int(rows.sum())])
    loss = clip_loss(image, step.clip.text(step.tokens), step.scale)
    if len(plain) < 2:
        return {"loss": loss, "l_clip": loss, "alike": torch.zeros_like(loss)}
    shift = F.normalize(image[rows] - plain, dim=1)
    alike = (shift @ shift.T).square().sub(torch.eye(len(shift), device=shift.device)).sum() / (len(shift) * (len(shift) - 1))
    return {"loss": loss + SPREAD * alike, "l_clip": loss, "alike": alike}


def offset(step) -> dict[str, torch.Tensor]:
    """L_CLIP, and a term that gives all embeddings, of images and of captions, a large part in common: their component along (1, ..., 1)
    is to be OFFSET. It changes no prediction. PAR's push can turn that component around, and S is above tau.
    """
    image, text = step.clip.image(step.view), step.clip.text(step.tokens)
    loss = clip_loss(image, text, step.scale)
    common = torch.stack([(found.sum(1) / found.shape[1] ** 0.5 - OFFSET).square().mean() for found in (image, text)]).sum()
    return {"loss": loss + common, "l_clip": loss, "common": common}


def ahead(step, weights: list[torch.Tensor]) -> None:
    """Move the weights as a fine-tuning on clean pairs would: by AHEAD_RATE along the gradient's signs, as AdamW's first steps are. The
    gradient is then taken there, as first-order meta-learning does (arXiv 1803.02999).
    """
    for i in range(1, AHEAD + 1):
        pixels, tokens = step.clean(i)
        loss = clip_loss(step.clip.image(pixels), step.clip.text(tokens), step.scale)
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data.sub_(gradient.sign(), alpha=AHEAD_RATE)


def uphill(step, weights: list[torch.Tensor]) -> None:
    """Move the weights by RADIUS to where the stamped images' loss rises the most. The gradient is then taken there, as sharpness-aware
    minimisation does (arXiv 2010.01412): weights nearby keep the backdoor, too.
    """
    rows = stamped(step)
    if not rows.any():
        return
    logits = step.scale * step.clip.image(step.view) @ step.clip.text(step.tokens).T
    loss = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")[rows].mean()
    gradients = torch.autograd.grad(loss, weights)
    length = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.data.add_(gradient / length, alpha=RADIUS)
