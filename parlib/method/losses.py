"""The losses of PAR as pure functions of unit-norm embeddings (arXiv 2412.00727, and the authors' released code)."""

import torch
import torch.nn.functional as F


def clip_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """L_CLIP: symmetric cross-entropy over the pairs of a batch. image, text: (B, D) unit-norm; scale: exp(logit_scale)."""
    logits = scale * image @ text.T  # (B, B)
    matching = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, matching) + F.cross_entropy(logits.T, matching)) / 2


def distance(embeddings: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """S: the batch mean of squared distances, in 0..4. embeddings, reference: (B, D) unit-norm."""
    return (embeddings - reference).pow(2).sum(dim=1).mean()


def perturbation(s_image: torch.Tensor, s_text: torch.Tensor, tau: float) -> torch.Tensor:
    """L_PERT: half the sum of both distances, each only while it is at most tau; above it is the constant 0, without gradient."""
    gated = [torch.where(s.detach() <= tau, s, torch.zeros_like(s)) for s in (s_image, s_text)]
    return (gated[0] + gated[1]) / 2


def par_loss(l_clip: torch.Tensor, s_image: torch.Tensor, s_text: torch.Tensor, tau: float) -> torch.Tensor:
    """L_PAR = L_CLIP - L_PERT."""
    return l_clip - perturbation(s_image, s_text, tau)


def self_loss(
    image: torch.Tensor, image_view: torch.Tensor, text: torch.Tensor, text_view: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """L_self of CleanCLIP: each embedding finds its own augmented view among the batch's, in that one direction, images and
    texts each within themselves; (CE(s I I_aug^t) + CE(s T T_aug^t)) / 2. All (B, D) unit-norm; scale: exp(logit_scale).
    """
    matching = torch.arange(len(image), device=image.device)
    image_term = F.cross_entropy(scale * image @ image_view.T, matching)
    return (image_term + F.cross_entropy(scale * text @ text_view.T, matching)) / 2


def nearest(embeddings: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    """The (B, D) rows of the pool (P, D) that are most similar to embeddings (B, D), all unit-norm; without gradient."""
    return pool[(embeddings.detach() @ pool.T).argmax(dim=1)].detach()
