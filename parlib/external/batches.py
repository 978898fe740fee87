"""External data sets, through Hugging Face datasets: streamed, sharded over ranks and workers, in bounded memory. What can't be used
is skipped, counted by kind and listed; a run fails once that is more than a set share.
"""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from parlib.external.files import Source
from parlib.external.images import image_name, opened
from parlib.external.rows import stream
from parlib.external.words import captions_of, first_caption, lacking
from parlib.model.preparation import Preparation

_CHUNK = 16  # images that a worker hands over at once
_BUFFER = 2000  # rows shuffled at a time; they hold encoded images, about 100 kB each
# The same of rows that hold paths, about 600 bytes each, by their form; a folder's come class by class.
_PATHS = {"csv": 200_000, "folder": 10_000_000}
_LISTED = 1000  # unusable rows by name
_NOISE = 1000  # rows before which a share says little


@dataclass
class Skipped:
    """What a run left out, by kind, a thousand of them by name. limit: the share of rows, counted each time that they are read, that it
    may leave out.
    """

    limit: float = 0.01
    seen: int = 0
    kinds: Counter = field(default_factory=Counter)
    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, seen: int, rows: list[dict[str, str]]) -> None:
        """Count a chunk of `seen` rows, of which these can't be used, each a kind and a row. Raises ValueError once more has been left out
        than the limit allows of 1,000 rows, or of those seen.
        """
        self.merge(Skipped(seen=seen, kinds=Counter(row["kind"] for row in rows), rows=rows))
        self.check(max(self.seen, _NOISE))

    def check(self, of: int = 0) -> None:
        """Raise ValueError where more has been left out than the limit allows of so many rows, or of those seen."""
        if self.kinds.total() > self.limit * (of or self.seen):
            raise ValueError(f"{self}, more than max_skipped, {self.limit:.1%}; the first is {self.rows[0]['row']}")

    def __str__(self) -> str:
        said = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return f"{self.kinds.total()} of {self.seen} rows skipped" + (f" ({said})" if said else "")

    def merge(self, other: "Skipped") -> None:
        """Take in what another chunk or process left out."""
        self.seen += other.seen
        self.kinds.update(other.kinds)
        self.rows += [row for row in other.rows if row not in self.rows][: max(0, _LISTED - len(self.rows))]

    def report(self) -> dict[str, Any]:
        return {"seen": self.seen, "kinds": dict(self.kinds), "rows": [*self.rows]}

    def set(self, report: dict[str, Any]) -> None:
        """Count on from a `report`."""
        self.seen, self.kinds, self.rows = report["seen"], Counter(report["kinds"]), [*report["rows"]]


def _one(image: Any, given: Any, folder: Path, images: Preparation, labelled: bool) -> tuple[torch.Tensor | None, Any]:
    """A decoded image and what belongs to it, or None and why it can't be used."""
    kind = ""
    if labelled and not (isinstance(given, int) and given >= 0):
        kind = "missing label"
    elif not labelled:
        row, given = given, captions_of(given)
        kind = lacking(row, first_caption(given))
    found = kind or opened(image, folder, images)
    return (None, {"kind": found, "row": image_name(image)}) if isinstance(found, str) else (found[2], given)


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that decode: Pillow lets go of Python's lock."""
    return ThreadPoolExecutor(threads)


def _prepared(rows: dict[str, list[Any]], folder: Path, images: Preparation, threads: int) -> dict[str, list[Any]]:
    """A chunk of rows: decoded images, what belongs to them, and what was skipped, as one row of lists."""
    labelled = "label" in rows
    one = partial(_one, folder=folder, images=images, labelled=labelled)
    given = rows["label" if labelled else "text"]
    found = list((_pool(threads, os.getpid()).map if threads > 1 else map)(one, rows["image"], given))
    kept = [(pixels, given) for pixels, given in found if pixels is not None]
    pixels = torch.stack([image for image, _ in kept]) if kept else torch.empty(0, 3, images.side, images.side, dtype=torch.uint8)
    skipped = [why for image, why in found if image is None]
    return {"pixels": [pixels], "given": [[given for _, given in kept]], "skipped": [skipped], "seen": [len(found)]}


def read(
    data: str,
    *,
    images: Preparation,
    batch: int,
    skipped: Skipped,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[tuple[torch.Tensor, list[Any]]]:
    """Batches of a data set: pixels (B, 3, side, side) uint8, prepared as `images` says, and their captions or labels; the last one may be
    smaller.

    seed: shuffle by it and the epoch; None: in order. rank of world: this process's share of the rows. workers: processes that
    decode, and threads of theirs where there are fewer files than that. The same arguments give the same batches. Raises what
    `rows.stream` raises, and ValueError when too many rows are skipped.
    """
    from datasets.distributed import split_dataset_by_node

    source = Source.of(data)
    rows = stream(source)
    if seed is not None:
        rows = rows.shuffle(seed=seed, buffer_size=_PATHS.get(source.layout.form, _BUFFER))
    if world > 1:  # rows are shared out before they are decoded; datasets would do it afterwards where shards don't divide
        rows = split_dataset_by_node(rows, rank, world) if rows.num_shards % world == 0 else rows._step(world, rank)
    processes = min(workers, rows.num_shards)
    options = {"folder": source.folder, "images": images, "threads": workers // max(1, processes)}
    chunks = rows.map(_prepared, batched=True, batch_size=_CHUNK, remove_columns=["image", "text", "label"], fn_kwargs=options)
    if seed is not None:
        chunks.set_epoch(epoch)  # here, as each step above makes a stream whose epoch is 0 again
    parts, given = [], []
    loader: Any = DataLoader(chunks, batch_size=None, num_workers=processes)  # type: ignore[arg-type] (datasets' stream is one of torch's, too)
    for chunk in _in_one_line(loader):
        skipped.add(chunk["seen"], chunk["skipped"])
        parts.append(chunk["pixels"])
        given += chunk["given"]
        while len(given) >= batch:
            pixels = torch.cat(parts)
            yield pixels[:batch], given[:batch]
            parts, given = [pixels[batch:]], given[batch:]
    skipped.check()
    if given:
        yield torch.cat(parts), given


def _in_one_line(loader: Any) -> Iterator[Any]:
    """A loader's chunks. An error of a worker process, which torch words as its whole traceback, is raised in the words that it ends in."""
    try:
        yield from loader
    except (ValueError, FileNotFoundError) as error:
        if "Original Traceback" not in str(error):
            raise
        last = str(error).strip().splitlines()[-1]
        raise type(error)(last.removeprefix(f"{type(error).__name__}: ")) from None


def check_outside(data: str, *, labelled: bool = False) -> None:
    """Raise ValueError on external data, LAYOUT:PATH, that hold no captions, or no labels where `labelled`; nothing is opened."""
    source = Source.of(data)
    if labelled != (source.layout.holds == "labels"):
        if labelled:
            raise ValueError(f"{source.name} holds captions, not labels: accuracy can't be measured on it")
        raise ValueError(f"{source.name} holds labels, not captions: a model can't be cleaned with it")
