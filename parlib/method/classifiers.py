"""Cleaners that were made for classifiers, brought to CLIP: FT-SAM, which seeks flat minima, and FST, which shifts the heads."""

import torch

from parlib.method.losses import clip_loss


def sharpest(step, weights: list[torch.Tensor]) -> None:
    """FT-SAM (arXiv 2304.11823): move every weight w by rho * w^2 g / |w g|, g its gradient and |w g| over all weights: up the loss, large
    weights the most. The update is then the gradient there (adaptive sharpness-aware minimisation, arXiv 2102.11600).
    """
    moved = [(weight.data, weight.grad) for weight in weights if weight.grad is not None]
    length = torch.stack([(weight * gradient).square().sum() for weight, gradient in moved]).sum().sqrt()
    for weight, gradient in moved:
        weight.add_(weight.square() * gradient / length.clamp(min=1e-12), alpha=step.recipe.rho)


def heads(clip) -> dict[str, torch.Tensor]:
    """The weights, by name, that project a tower's features to the embedding, of the towers that train: those of open_clip's ResNets and
    transformers, and timm's. ValueError where there is none.
    """
    names = ("visual.attnpool.c_proj.weight", "visual.proj", "visual.head.proj.weight", "text_projection", "text.text_projection")
    there = dict(clip.net.named_parameters())
    found = {name: there[name] for name in names if name in there and there[name].requires_grad}
    if not found:
        raise ValueError("FST shifts the towers' projections; this architecture has none that is known here")
    return found


def reset_heads(clip, random: torch.Generator) -> None:
    """FST's beginning: the projections are drawn anew, with the spread that they had."""
    for head in heads(clip).values():
        head.data.copy_(torch.randn(head.shape, generator=random).to(head) * head.data.std())


def shifted(step) -> dict[str, torch.Tensor]:
    """FST (arXiv 2310.01875): L_CLIP + alpha * sum <w, w_poisoned> over the projections, which takes them away from the poisoned ones."""
    loss = clip_loss(step.clip.image(step.view), step.clip.text(step.tokens), step.scale)
    poisoned = dict(step.reference.net.named_parameters())
    alike = torch.stack([(head * poisoned[name].detach()).sum() for name, head in heads(step.clip).items()]).sum()
    return {"loss": loss + step.recipe.alpha * alike, "l_clip": loss, "alike": alike}


def restore_norms(clip, reference) -> None:
    """After each step of FST a projection has the norm of the poisoned one again."""
    poisoned = dict(reference.net.named_parameters())
    for name, head in heads(clip).items():
        head.data.mul_(poisoned[name].detach().norm() / head.data.norm())
