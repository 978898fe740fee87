"""A linear probe: a classifier that users fit on the embeddings of a frozen image encoder."""

from dataclasses import dataclass
from typing import Any

import torch

_ITERATIONS = 200


@dataclass(frozen=True)
class Probe:
    """A fitted probe: scikit-learn's logistic regression over standardised embeddings."""

    fitted: Any

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(N,) the class that it gives to each embedding, (N, D)."""
        return torch.from_numpy(self.fitted.predict(embeddings.cpu().double().numpy()))


def fit_probe(embeddings: torch.Tensor, labels: torch.Tensor) -> Probe:
    """Fit a probe. embeddings: (N, D); labels: (N,) in 0..C-1. ValueError where an image has no label, or all have the same."""
    if (labels < 0).any():
        raise ValueError("a probe is fitted on labelled images: some have no label")
    if len(labels.unique()) < 2:
        raise ValueError("a probe needs images of two classes or more")
    from sklearn.linear_model import LogisticRegression  # here, as it brings scipy, for a second of each start, which little else needs
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    return Probe(found.fit(embeddings.cpu().double().numpy(), labels.cpu().numpy()))
