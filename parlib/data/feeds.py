"""Where a training's batches come from; pairs held on the device. `parlib.external.stream` reads what is too much for that."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from parlib.cache import digest

Reword = Callable[[list[str], int], list[str]]


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if world() > 1 else 0


def generator(device: torch.device | str, *path: int | str) -> torch.Generator:
    """A generator that depends on its path alone, e.g. (seed, "augment", step)."""
    seed = int.from_bytes(hashlib.sha256(repr(path).encode()).digest()[:7], "big")
    return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch.

    pixels: (B, 3, H, W) uint8. tokens, reworded: (B, L), the captions and the same after EDA. rows: (B * world,) which pairs the
    whole batch holds, None where that can't be said.
    """

    pixels: torch.Tensor
    tokens: torch.Tensor
    reworded: torch.Tensor
    rows: torch.Tensor | None = None


class Feed(Protocol):
    """Batches by the step; a step's batch depends on nothing but its arguments. pairs: how many an epoch sees. rewords: whether the
    captions come reworded, too. key: digest of what they are.
    """

    pairs: int
    rewords: bool

    @property
    def key(self) -> str: ...

    def batch(self, step: int, size: int, seed: int) -> Batch: ...

    def skipped(self) -> dict[str, Any]: ...

    def kept(self) -> dict[str, Any]:
        """What a training that is interrupted hands to `resume`, when it goes on."""
        ...

    def resume(self, kept: dict[str, Any]) -> None: ...


class MemoryFeed:
    """Pairs held on one device: pixels (N, 3, H, W) uint8, tokens and reworded (N, L). Each epoch has an order of its own."""

    def __init__(self, pixels: torch.Tensor, tokens: torch.Tensor, reworded: torch.Tensor | None = None):
        self.pixels, self.tokens, self.reworded = pixels, tokens, tokens if reworded is None else reworded
        self.pairs, self.rewords = len(pixels), reworded is not None
        self._order: tuple[tuple[int, int], torch.Tensor] | None = None

    def embedded(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> "MemoryFeed":
        """The same pairs with what a text encoder that does not train makes of their captions, (N, D), in the tokens' place."""
        return MemoryFeed(self.pixels, embed(self.tokens), embed(self.reworded) if self.rewords else None)

    @property
    def key(self) -> str:
        return digest(self.rewords, self.pixels, self.tokens, self.reworded)

    def skipped(self) -> dict[str, Any]:
        return {}

    kept = skipped

    def resume(self, kept: dict[str, Any]) -> None:
        """There is nothing to go on with."""

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """The step's batch of `size` pairs; of several processes each gets its part of it."""
        epoch, place = divmod(step, self.pairs // size)
        if self._order is None or self._order[0] != (seed, epoch):
            order = torch.randperm(self.pairs, generator=generator("cpu", seed, "order", epoch)).to(self.pixels.device)
            self._order = ((seed, epoch), order)
        rows = self._order[1][place * size :][:size]
        mine = rows.chunk(world())[rank()]
        return Batch(self.pixels[mine], self.tokens[mine], self.reworded[mine], rows)
