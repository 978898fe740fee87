"""How far a set of images lies from another, and how varied it is, in a model's embedding; how far two models' embeddings lie apart."""

import torch

from parlib.data.pairs import Pairs
from parlib.measure.metrics import embed_both
from parlib.method.losses import distance
from parlib.model.clip import Clip


def frechet(one: torch.Tensor, other: torch.Tensor) -> float:
    """Fréchet distance of two sets of embeddings (N, D), (M, D), each taken as a normal distribution: squared, as FID is."""
    one, other = one.double(), other.double()
    values, vectors = torch.linalg.eigh(one.T.cov())
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other.T.cov() @ root).clamp_min(0).sqrt().sum()
    means = (one.mean(0) - other.mean(0)).square().sum()
    return (means + one.T.cov().trace() + other.T.cov().trace() - 2 * cross).clamp_min(0).item()


def vendi(embeddings: torch.Tensor) -> float:
    """Vendi score (arXiv 2210.02410) of unit-norm embeddings (N, D): the effective number of different ones, 1..min(N, D)."""
    values = torch.linalg.eigvalsh(embeddings.double().T @ embeddings.double() / len(embeddings)).clamp_min(1e-12)
    return (-(values * values.log()).sum()).exp().item()


def share_above(s: list[float], tau: float) -> float:
    """The share of a training's steps at which S was above tau."""
    return sum(value > tau for value in s) / len(s)


def rotation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix R (D, D) that brings one @ R nearest to other, both (N, D), in squared distance (orthogonal Procrustes)."""
    left, _, right = torch.linalg.svd(one.double().T @ other.double())
    return (left @ right).to(one)


def turned(clip: Clip, reference: Clip, pairs: Pairs) -> dict[str, float]:
    """S of images and captions of held-out pairs, and what is left of it after the best joint rotation of both encoders, which changes no
    prediction: s_image, s_text, s_image_aligned, s_text_aligned. The rotation is fitted on one half of the pairs, S is that of the other.
    rotated: the share of S, over both encoders, that it explains; 0 where S is 0.
    """
    found, half, metrics = embed_both(clip, reference, pairs), len(pairs) // 2, {}
    turn = rotation(*(torch.cat([embedded[:half] for embedded in towers]) for towers in found))
    for tower, ours, theirs in zip(("image", "text"), *found, strict=True):
        metrics[f"s_{tower}"] = distance(ours[half:], theirs[half:]).item()
        metrics[f"s_{tower}_aligned"] = distance(ours[half:] @ turn, theirs[half:]).item()
    whole, rest = (metrics[f"s_image{end}"] + metrics[f"s_text{end}"] for end in ("", "_aligned"))
    return metrics | {"rotated": 1 - rest / whole if whole > 1e-6 else 0.0}
