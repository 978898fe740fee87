"""A linear probe: a classifier that users fit on the embeddings of a frozen image encoder."""

from collections.abc import Callable

import torch

_ITERATIONS = 200


def fit_probe(embeddings: torch.Tensor, labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logistic regression over standardised embeddings (N, D), of labels (N,) in 0..C-1: from embeddings to the class of each. ValueError
    where an image has no label, or all have the same.
    """
    if (labels < 0).any():
        raise ValueError("a probe is fitted on labelled images: some have no label")
    if len(labels.unique()) < 2:
        raise ValueError("a probe needs images of two classes or more")
    from sklearn.linear_model import LogisticRegression  # here, as it brings scipy, for a second of each start, which little else needs
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    found.fit(embeddings.cpu().double().numpy(), labels.cpu().numpy())
    return lambda given: torch.from_numpy(found.predict(given.cpu().double().numpy()))
