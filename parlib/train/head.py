"""Classifiers on top of a CLIP's image encoder, as many users fit next: a head, both fine-tuned on labelled images, and a linear probe on
the embeddings of a frozen one.
"""

from collections.abc import Callable, Collection

import torch
from torch.nn import functional as F

from parlib.data.feeds import generator
from parlib.data.pairs import Pairs
from parlib.method.schedule import learning_rate
from parlib.model.clip import Clip
from parlib.model.weights import train_mode
from parlib.progress import progress

_ITERATIONS = 200  # of a probe


def fit_head(
    clip: Clip,
    pairs: Pairs,
    classes: torch.Tensor,
    *,
    lr: float,
    batch: int,
    steps: int,
    seed: int,
    look_at: Collection[int],
    look: Callable[[int, torch.Tensor], None],
) -> torch.Tensor:
    """Fine-tune the image encoder of `clip`, in place, and a linear head by cross-entropy; return the head, (C, D).

    pairs: images with labels in 0..C-1. classes: (C, D) unit-norm, what the head starts from: the class embeddings, as in zero-shot
    classification. look: called with a step and the head, after each step of look_at. BatchNorm trains, the rate falls as a
    cosine from lr. ValueError where an image has no label, or a batch can't be drawn.
    """
    if (pairs.labels < 0).any():
        raise ValueError("a head is fitted on labelled images: some have no label")
    if not 1 < batch <= len(pairs):
        raise ValueError(f"a batch of {batch} can't be drawn from {len(pairs)} images")
    head = torch.nn.Parameter(classes.clone())
    optimizer = torch.optim.AdamW([*clip.net.visual.parameters(), head], lr=lr, betas=(0.9, 0.98), eps=1e-8, weight_decay=1e-4, fused=True)
    scale, per_epoch = clip.net.logit_scale.exp().detach(), len(pairs) // batch
    for step in progress(range(steps), "a head", total=steps, unit="steps"):
        epoch, place = divmod(step, per_epoch)
        rows = torch.randperm(len(pairs), generator=generator("cpu", seed, "head", epoch))[place * batch :][:batch]
        train_mode(clip)
        image = clip.image(pairs.pixels[rows].to(clip.device).float() / 255)
        loss = F.cross_entropy(scale * image @ head.T, pairs.labels[rows].to(clip.device))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr, "cosine")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in look_at:
            look(step + 1, head.detach())
    clip.net.eval()
    return head.detach()


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
