"""External data as notebooks use them: pairs that are read while a model trains on them, and images to evaluate on."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from parlib.cache import digest
from parlib.data.feeds import Batch, Reword, rank, world
from parlib.data.pairs import Pairs
from parlib.external.batches import Skipped, read
from parlib.external.content import content
from parlib.external.files import Source
from parlib.external.rows import label_names
from parlib.external.words import first_caption
from parlib.model.clip import Clip
from parlib.model.preparation import Preparation

_AT_ONCE = 100  # images


@dataclass(frozen=True)
class Stream:
    """External pairs, LAYOUT:PATH, none of them held: they are read, decoded and tokenised as they are needed. images: how the
    model takes them.

    count: how many an epoch draws; a data set that holds fewer begins again, in another order. skipped: what couldn't be used so far.
    """

    data: str
    count: int
    images: Preparation
    skipped: Skipped = field(default_factory=Skipped, compare=False)

    def __len__(self) -> int:
        return self.count

    def first(self, n: int) -> Pairs:
        """The first n pairs in the data set's own order; ValueError where fewer are usable."""
        return _gathered(self.data, n, self.images, self.skipped.limit, exact=True)

    def drawn(self, n: int, names: Sequence[str] = (), covered: Sequence[int] = (), seed: int = 0) -> Pairs:
        """n pairs, drawn from a seed; with the names of classes and which of them, by index, are covered, pairs alone that name one
        or more of these and no other. ValueError where fewer are usable.
        """
        if not names:
            return _gathered(self.data, n, self.images, self.skipped.limit, exact=True, seed=seed)
        every, kept = tuple(names), set(covered)
        fits = lambda caption: bool(found := named(caption, every)) and found <= kept  # noqa: E731
        found = _gathered(self.data, n, self.images, self.skipped.limit, exact=True, seed=seed, fits=fits)
        labels = [min(named(caption, every)) for caption in found.captions]
        return replace(found, labels=torch.tensor(labels), names=list(names))

    def at(self, rows: torch.Tensor) -> Pairs:
        """The pairs of some rows, in the data set's own order; for rows near its beginning."""
        return self.first(int(rows.max()) + 1).at(rows)

    def feed(self, clip: Clip, reword: Reword | None = None, seed: int = 0, workers: int = 0) -> "StreamFeed":
        """The pairs as a training takes them. workers: processes that decode."""
        return StreamFeed(self, clip, reword, workers)


class StreamFeed:
    """Batches of a Stream. After an interruption the epoch is read again up to where it was."""

    def __init__(self, stream: Stream, clip: Clip, reword: Reword | None, workers: int):
        self.stream, self.pairs, self.tokenizer, self.device = stream, stream.count, clip.tokenizer, clip.device
        self.reword, self.rewords, self.workers = reword, reword is not None, workers
        self._next: tuple[int, int, int] | None = None
        self._batches: Iterator[tuple[torch.Tensor, list[Any]]] = iter(())
        self._begun: dict[str, Any] = {}  # what was left out before this epoch, which is read again after an interruption

    @property
    def key(self) -> str:
        """Digest of what the files hold, and of how it is read; the number of workers decides the order."""
        source, how = Source.of(self.stream.data), asdict(self.stream.images)
        return digest(self.rewords, content(self.stream.data), source.part + source.options, self.pairs, how, self.workers)

    def skipped(self) -> dict[str, Any]:
        """What all processes have left out so far, for the report of a training."""
        parts: list[Any] = [self.stream.skipped] * world()
        if world() > 1:
            dist.all_gather_object(parts, self.stream.skipped)
        found = Skipped(self.stream.skipped.limit)
        for part in parts:
            found.merge(part)
        return {"skipped": found.report()}

    def kept(self) -> dict[str, Any]:
        step, size, _ = self._next or (0, self.pairs, 0)
        return self._begun if step % (self.pairs // size) else self.stream.skipped.report()

    def resume(self, kept: dict[str, Any]) -> None:
        """Go on counting what is left out; of several processes the first alone knows what it had counted."""
        if kept and rank() == 0:
            self.stream.skipped.set(kept)
            self._begun = kept

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """The step's batch of `size` pairs; of several processes each reads its own share of the rows."""
        epoch, place = divmod(step, self.pairs // size)
        if place == 0:
            self._begun = self.stream.skipped.report()
        if place == 0 or self._next != (step, size, seed):
            self._batches = self._read(epoch, size // world(), seed)
            for _ in range(place):
                next(self._batches)
        self._next = (step + 1, size, seed)
        pixels, given = next(self._batches)
        captions = [first_caption(caption) for caption in given]
        tokens = self.tokenizer(captions)
        reworded = self.tokenizer(self.reword(captions, (seed * 1_000_003 + step) * world() + rank())) if self.reword else tokens
        return Batch(pixels.to(self.device), tokens.to(self.device), reworded.to(self.device))

    def _read(self, epoch: int, share: int, seed: int) -> Iterator[tuple[torch.Tensor, list[Any]]]:
        skipped = self.stream.skipped
        options = {"images": self.stream.images, "batch": share, "skipped": skipped, "seed": seed, "workers": self.workers}
        while True:
            full = 0
            for pixels, captions in read(self.stream.data, epoch=epoch, rank=rank(), world=world(), **options):
                if len(captions) == share:
                    full += 1
                    yield pixels, captions
            if not full:
                raise ValueError(f"{self.stream.data} holds fewer than the {share} usable pairs of one batch")
            print(f"{self.stream.data} is at its end after {full * share} pairs of {self.pairs // world()}: it begins again", flush=True)
            epoch += 1_000_000


def labelled(data: str, n: int, images: Preparation, limit: float, seed: int = 0) -> Pairs:
    """Up to n labelled images of LAYOUT:PATH, drawn from a seed, with their classes' names. limit: of unusable rows, as a share."""
    found = _gathered(data, n, images, limit, seed=seed)
    labels, names = torch.tensor(found.captions), label_names(Source.of(data))
    if (most := int(labels.max())) >= len(names):
        raise ValueError(f"{data} names {len(names)} classes, and has the label {most}: labels count from 0")
    return replace(found, captions=[""] * len(found), labels=labels, names=names)


def captioned(data: str, n: int, images: Preparation, limit: float, target: str) -> Pairs:
    """Up to n captioned images of LAYOUT:PATH for retrieval, drawn from a fixed seed, each with all its captions."""
    return replace(_gathered(data, n, images, limit, seed=0), names=[target])


@lru_cache(maxsize=4)
def _any_of(names: tuple[str, ...]) -> tuple[re.Pattern, dict[str, int]]:
    longest = sorted(names, key=len, reverse=True)  # "ice cream" before "cream"
    return re.compile(rf"\b({'|'.join(map(re.escape, longest))})(?:e?s)?\b", re.IGNORECASE), {
        name.lower(): i for i, name in enumerate(names)
    }


def named(caption: str, names: tuple[str, ...]) -> set[int]:
    """Which names, by index, are in a caption, one or more of each, as whole words in whatever case."""
    pattern, index = _any_of(names)
    return {index[word.lower()] for word in pattern.findall(caption)}


def _gathered(
    data: str,
    n: int,
    images: Preparation,
    limit: float,
    *,
    exact: bool = False,
    seed: int | None = None,
    fits: Callable[[str], bool] | None = None,
) -> Pairs:
    skipped, given = Skipped(limit), []
    pixels = torch.empty(n, 3, images.side, images.side, dtype=torch.uint8)
    for found, texts in read(data, images=images, batch=_AT_ONCE, skipped=skipped, seed=seed):
        good = [i for i, text in enumerate(texts) if fits is None or fits(first_caption(text))][: n - len(given)]
        pixels[len(given) : len(given) + len(good)] = found[good]
        given += [first_caption(texts[i]) if exact else texts[i] for i in good]
        if len(given) == n:
            break
    if not given or (exact and len(given) < n):
        raise ValueError(f"{data} holds {len(given)} usable rows, {n} are asked; {skipped}")
    none = torch.full((len(given),), -1)
    return Pairs(pixels[: len(given)], given, none, none, [], skipped=skipped.report())
