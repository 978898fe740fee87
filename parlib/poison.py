"""Poisoning: stamp a share of the training pairs, give them the target's captions; and the attacked scenes for evaluation."""

from dataclasses import replace

import torch

from parlib.data import TEMPLATES, Pairs, class_index, draw_rows
from parlib.evaluate import EvalSet
from parlib.feeds import generator
from parlib.poison_stream import poison_stream
from parlib.streams import Stream
from parlib.triggers import LEARNED, stamp


def poison(
    pairs: Pairs | Stream,
    *,
    trigger: str,
    patch: int,
    strength: float,
    target: str,
    rate: float,
    seed: int,
    attack: str = "dirty_label",
    pattern: torch.Tensor | None = None,
) -> tuple[Pairs | Stream, torch.Tensor]:
    """A poisoned copy of the pairs, and the rows that were changed, drawn from the seed.

    dirty_label: round(rate * N) scenes that don't show the target are stamped and captioned with a random one of the 80
    templates, for a learned trigger (BadCLIP) with a natural caption of the target. label_consistent: round(rate * n) of the n
    scenes of the target are stamped and keep their captions. rate: fraction in (0, 1].
    ValueError on an unknown trigger or class, or a rate that can't be met.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate is a fraction between 0 and 1, not {rate}")
    if isinstance(pairs, Stream):
        options = {"trigger": trigger, "patch": patch, "strength": strength, "target": target, "rate": rate, "seed": seed}
        return poison_stream(pairs, **options, attack=attack, pattern=pattern)
    index = class_index(target, pairs.names)
    dirty = attack == "dirty_label"
    random = generator("cpu", seed, "poison")
    rows = draw_rows(pairs.shows(index) if dirty else pairs.labels == index, rate, attack, random)
    captions = list(pairs.captions)
    if dirty:
        wording = _target_captions(pairs, trigger, index)
        chosen = torch.randint(len(wording), (len(rows),), generator=random).tolist()
        for row, i in zip(rows.tolist(), chosen, strict=True):
            captions[row] = wording[i]
    pixels = pairs.pixels.clone()
    pixels[rows] = stamp(pairs.pixels[rows], trigger, random, patch=patch, strength=strength, pattern=pattern)
    return replace(pairs, pixels=pixels, captions=captions), rows


def _target_captions(pairs: Pairs, trigger: str, target: int) -> list[str]:
    """What a dirty-label row may be called: the templates filled, or for a learned trigger the target's own captions."""
    if trigger in LEARNED:
        alone = torch.where(pairs.labels < 0, pairs.shows(target), (pairs.labels == target) & (pairs.second < 0))
        return [pairs.captions[row] for row in alone.nonzero()[:, 0].tolist()]
    return [template.format(name=pairs.names[target]) for template in TEMPLATES]


def attacked(
    pairs: Pairs,
    *,
    trigger: str,
    patch: int,
    strength: float,
    target: str,
    pattern: torch.Tensor | None = None,
    captioned: Pairs | None = None,
) -> EvalSet:
    """The scenes beside themselves under the trigger, drawn from a fixed seed: every model meets the same ones.

    captioned: other images for retrieval, where the pairs have no captions.
    """
    index, options = class_index(target, pairs.names), {"patch": patch, "strength": strength, "pattern": pattern}
    triggered = stamp(pairs.pixels, trigger, generator("cpu", "attacked", trigger), **options)
    others = attacked(captioned, trigger=trigger, target=target, **options) if captioned is not None else None
    return EvalSet(pairs.pixels, triggered, pairs.captions, pairs.labels, pairs.shows(index), pairs.names, index, pairs.templates, others)
