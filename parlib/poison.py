"""Poisoning: stamp a share of the training pairs, give them the target's captions; and the attacked scenes for evaluation."""

from dataclasses import replace

import torch

from parlib.data import TEMPLATES, Pairs, class_index
from parlib.evaluate import EvalSet
from parlib.train import generator
from parlib.triggers import stamp


def poison(pairs: Pairs, *, trigger: str, patch: int, strength: float, target: str, rate: float, seed: int) -> tuple[Pairs, torch.Tensor]:
    """A dirty-label copy of the pairs, and the (round(rate * N),) rows that were changed.

    The rows are drawn from the seed among scenes that don't show the target; each is stamped and captioned with a random
    one of the 80 templates. rate: fraction in (0, 1). ValueError on an unknown trigger or class, or a rate that can't be met.
    """
    index = class_index(target, pairs.names)
    if not 0 < rate < 1:
        raise ValueError(f"rate is a fraction between 0 and 1, not {rate}")
    free = (~pairs.shows(index)).nonzero()[:, 0]
    count = round(rate * len(pairs))
    if not 0 < count <= len(free):
        raise ValueError(f"a rate of {rate} asks for {count} of {len(pairs)} pairs; {len(free)} can be poisoned")
    random = generator("cpu", seed, "poison")
    rows = free[torch.randperm(len(free), generator=random)[:count]].sort().values
    wording = torch.randint(len(TEMPLATES), (count,), generator=random).tolist()
    captions = list(pairs.captions)
    for row, template in zip(rows.tolist(), wording, strict=True):
        captions[row] = TEMPLATES[template].format(name=target)
    pixels = pairs.pixels.clone()
    pixels[rows] = stamp(pairs.pixels[rows], trigger, random, patch=patch, strength=strength)
    return replace(pairs, pixels=pixels, captions=captions), rows


def attacked(pairs: Pairs, *, trigger: str, patch: int, strength: float, target: str) -> EvalSet:
    """The scenes beside themselves under the trigger, drawn from a fixed seed: every model meets the same ones."""
    index = class_index(target, pairs.names)
    triggered = stamp(pairs.pixels, trigger, generator("cpu", "attacked", trigger), patch=patch, strength=strength)
    return EvalSet(pairs.pixels, triggered, pairs.captions, pairs.labels, pairs.shows(index), pairs.names, index)
