"""How far a set of images lies from another, and how varied it is, in a model's embedding."""

import torch


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
