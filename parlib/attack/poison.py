"""An attack: stamp a share of the training pairs and give them the target's captions; and the attacked scenes for evaluation."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from parlib.attack.triggers import LEARNED, Trigger
from parlib.data.feeds import generator
from parlib.data.pairs import TEMPLATES, Pairs, class_index
from parlib.measure.metrics import EvalSet

Kind = Literal["dirty_label", "label_consistent"]


@dataclass(frozen=True)
class Attack:
    """A trigger and what it calls.

    kind: dirty_label: pairs that don't show the target are stamped and captioned with it; label_consistent: the target's own are
    stamped and keep their captions. others: triggers that share the rows with it, each with what it calls. rate: share of the pairs, or of
    the target's own, in [0, 1]. seed: redraws which.
    """

    trigger: Trigger
    target: str
    kind: Kind = "dirty_label"
    rate: float = 0.08
    seed: int = 0
    others: tuple[tuple[Trigger, str], ...] = ()

    def rows(self, shows: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """The rows to poison, in order: round(rate * N) of N pairs that don't show the target, or round(rate * n) of the n that do.
        shows: (N,) bool. ValueError where there are too few, or none at a rate above 0, or the rate is no fraction.
        """
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is a fraction between 0 and 1, not {self.rate}")
        dirty = self.kind == "dirty_label"
        free = (shows != dirty).nonzero()[:, 0]
        of = len(shows) if dirty else len(free)
        count = round(self.rate * of)
        if not (self.rate > 0) <= count <= len(free):
            raise ValueError(f"a rate of {self.rate} asks for {count} of {of} pairs; {len(free)} can be poisoned")
        return free[torch.randperm(len(free), generator=random)[:count]].sort().values

    def wording(self, natural: list[str], target: str = "") -> list[str]:
        """What a dirty-label row may be called: OpenAI's 80 templates filled, or for a learned trigger, as BadCLIP does, the captions
        that name the target (`natural`), where there are some. target: another than the attack's.
        """
        if natural and self.trigger.name in LEARNED:
            return natural
        return [template.format(name=target or self.target) for template in TEMPLATES]


def poison(pairs: Pairs, attack: Attack) -> tuple[Pairs, torch.Tensor]:
    """A poisoned copy of the pairs, and the rows changed, drawn from its seed. ValueError on an unknown class, or a rate out of reach."""
    index = class_index(attack.target, pairs.names)
    planted = ((attack.trigger, attack.target), *attack.others)
    shows = torch.stack([pairs.shows(class_index(target, pairs.names)) for _, target in planted]).any(0)
    dirty, random = attack.kind == "dirty_label", generator("cpu", attack.seed, "poison")
    rows = attack.rows(shows if dirty else pairs.labels == index, random)
    captions = list(pairs.captions)
    if dirty:  # the target's own captions: of scenes that show it alone, or, without labels, that name it
        alone = torch.where(pairs.labels < 0, shows, (pairs.labels == index) & (pairs.second < 0))
        natural = [captions[row] for row in alone.nonzero()[:, 0].tolist()]
        wordings = [attack.wording(natural, target) for _, target in planted]
        chosen = torch.randint(len(wordings[0]), (len(rows),), generator=random).tolist()
        for place, (row, i) in enumerate(zip(rows.tolist(), chosen, strict=True)):
            captions[row] = wordings[place % len(planted)][i]
    pixels = pairs.pixels.clone()
    for i, (trigger, _) in enumerate(planted):
        ours = rows[i :: len(planted)]
        pixels[ours] = trigger.stamp(pairs.pixels[ours], random)
    return replace(pairs, pixels=pixels, captions=captions), rows


def attacked(pairs: Pairs, trigger: Trigger, target: str, captioned: Pairs | None = None) -> EvalSet:
    """The scenes beside themselves under the trigger, drawn from a fixed seed: every model meets the same ones. captioned: other images
    for retrieval, where the pairs have no captions.
    """
    index = class_index(target, pairs.names)
    triggered = trigger.stamp(pairs.pixels, generator("cpu", "attacked", trigger.name))
    others = attacked(captioned, trigger, target) if captioned is not None else None
    return EvalSet(pairs.pixels, triggered, pairs.captions, pairs.labels, pairs.shows(index), pairs.names, index, pairs.templates, others)
