"""Images with captions or labels, and their classes."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES

from parlib.data.feeds import MemoryFeed, Reword
from parlib.model.clip import Clip

TEMPLATES = tuple(template("{name}") for template in OPENAI_IMAGENET_TEMPLATES)  # 80


@dataclass(frozen=True)
class Pairs:
    """Images held on one device, with captions or labels or both.

    pixels: (N, 3, H, W) uint8. captions: N strings, empty where there is none; N lists where images have several. labels: (N,)
    index of the main object in `names`, -1 where it isn't known. second: (N,) index of the second object, -1 where there is none.
    names: the class names; templates: the sentences that they are put into for zero-shot classification. skipped: of data of others,
    what couldn't be used, as parlib.external.batches.Skipped reports it.
    """

    pixels: torch.Tensor
    captions: list[Any]
    labels: torch.Tensor
    second: torch.Tensor
    names: list[str]
    templates: tuple[str, ...] = TEMPLATES
    skipped: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.captions)

    def shows(self, target: int) -> torch.Tensor:
        """(N,) bool: the class is in the scene, as the main or as the second object; without labels, in its caption."""
        shown = (self.labels == target) | (self.second == target)
        for row in (self.labels < 0).nonzero()[:, 0].tolist():
            shown[row] |= names_class(self.captions[row], self.names[target])
        return shown

    def first(self, n: int) -> "Pairs":
        """The first n pairs; ValueError when there are fewer."""
        if n > len(self):
            raise ValueError(f"{n} pairs asked, {len(self)} are there")
        return self.at(torch.arange(n))

    def at(self, rows: torch.Tensor) -> "Pairs":
        """The pairs of some rows."""
        captions = [self.captions[row] for row in rows.tolist()]
        return replace(self, pixels=self.pixels[rows], captions=captions, labels=self.labels[rows], second=self.second[rows])

    def feed(self, clip: Clip, reword: Reword | None = None, seed: int = 0, workers: int = 0) -> MemoryFeed:
        """The pairs on a model's device, tokenised once; reworded where asked for."""
        tokens = clip.tokenizer(self.captions).to(clip.device)
        reworded = clip.tokenizer(reword(self.captions, seed)).to(clip.device) if reword else None
        return MemoryFeed(self.pixels.to(clip.device), tokens, reworded)


def names_class(caption: str | list[str], name: str) -> bool:
    """Whether a caption, or one of several, names a class, one or more of it, as whole words in whatever case."""
    said = caption if isinstance(caption, str) else "\n".join(map(str, caption))
    return re.search(rf"(?<![^\W_]){re.escape(name)}(?:e?s)?(?![^\W_])", said, re.IGNORECASE) is not None


def class_index(name: str, names: list[str]) -> int:
    """Index of a class, in whatever case; ValueError naming the classes there are."""
    index = {other.lower(): i for i, other in reversed(list(enumerate(names)))}
    if name.lower() not in index:
        raise ValueError(f"unknown class {name!r}; the classes are: {', '.join(names)}")
    return index[name.lower()]
