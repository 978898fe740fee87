"""External data sets, through Hugging Face datasets: streamed, sharded over ranks and workers, in bounded memory. What can't be used
is skipped, counted by kind and listed; a run fails once that is more than a set share.
"""

import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image
from torch.utils.data import DataLoader

from parlib.cache import ROOT, atomic_file, cache_dir, digest

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk: datasets' builder, its files, and which columns are the image and its caption or label. folder: where
    paths in the image column start, below the data set's own folder; the images may still be in zip archives there.
    """

    builder: str
    files: str
    image: str
    text: str = ""
    label: str = ""
    folder: str = "."


LAYOUTS: dict[str, Layout] = {
    "cc3m": Layout("webdataset", "**/*.tar", "jpg", text="txt"),  # pixparse/cc3m-wds
    "synthclip": Layout("csv", "combined_images_and_captions.csv", "image_path", text="caption", folder="data"),  # hammh0a/SynthCLIP
    "imagenet": Layout("parquet", "**/validation-*.parquet", "image", label="label"),  # ILSVRC/imagenet-1k
    "coco": Layout("parquet", "**/test-*.parquet", "image", text="caption"),  # nlphuji/mscoco_2014_5k_test_image_text_retrieval
    "csv": Layout("csv", "*.csv", "image", text="caption"),
    "parquet": Layout("parquet", "**/*.parquet", "image", text="caption"),
    "labelled_parquet": Layout("parquet", "**/*.parquet", "image", label="label"),
    "folder": Layout("imagefolder", "**/*", "image", label="label"),
}
_CHUNK = 16  # images that a worker hands over at once
_BUFFER = 2000  # rows shuffled at a time; they hold encoded images, about 100 kB each
# The same of rows that hold paths, about 600 bytes each, by datasets' builder; a folder's come class by class.
_PATHS = {"csv": 200_000, "imagefolder": 10_000_000}
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
            raise ValueError(f"{self}: more than the {self.limit:.1%} allowed; the first is {self.rows[0]['row']}")

    def __str__(self) -> str:
        said = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return f"{self.kinds.total()} of {self.seen} rows skipped" + (f" ({said})" if said else "")

    def merge(self, other: "Skipped") -> None:
        """Take in what another chunk or process left out."""
        self.seen += other.seen
        self.kinds.update(other.kinds)
        self.rows += [row for row in other.rows if row not in self.rows][: max(0, _LISTED - len(self.rows))]

    def report(self) -> dict[str, Any]:
        """As a record holds it."""
        return {"seen": self.seen, "kinds": dict(self.kinds), "rows": self.rows}

    def write(self, path: Path) -> None:
        """List them, a JSON object a line."""
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"unknown data {name!r}; known are: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def table(name: str, path: Path) -> "datasets.IterableDataset":
    """A data set's rows as a stream with the columns image (encoded bytes or a path), and text or label. name: of a layout. ValueError on
    an unknown layout or a missing column, FileNotFoundError where the layout's files are not there.
    """
    import datasets  # which takes a second, and few runs need it

    layout = _layout(name)
    found = sorted(str(file) for file in path.glob(layout.files) if file.is_file())
    if not found:
        raise FileNotFoundError(f"{path} holds no {layout.files}: {name} is read from such files")
    options: dict[str, Any] = {"data_files": {"train": found}, "cache_dir": str(cache_dir() / "datasets")}
    stream = datasets.load_dataset(layout.builder, split="train", streaming=True, **options)
    names = {layout.image: "image", layout.text: "text", layout.label: "label"}
    wanted = {column: new for column, new in names.items() if column}
    there = list(stream.features or next(iter(stream)))
    if missing := [column for column in wanted if column not in there]:
        raise ValueError(f"{path} ({name}) has no column {missing[0]!r}; its columns are: {', '.join(there)}")
    if isinstance((stream.features or {}).get(layout.image), datasets.Image):
        stream = stream.cast_column(layout.image, datasets.Image(decode=False))
    return stream.select_columns(list(wanted)).rename_columns({old: new for old, new in wanted.items() if old != new})


def label_names(name: str, path: Path) -> list[str]:
    """The class names of a labelled data set, in the order of its labels. ValueError where it holds numbers alone."""
    if name == "imagenet":
        return list(IMAGENET_CLASSNAMES)
    names = getattr((table(name, path).features or {}).get("label"), "names", None)
    if not names:
        raise ValueError(f"{path} ({name}) names no classes: its label column must be of datasets' ClassLabel")
    return [label.replace("_", " ") for label in names]


@lru_cache(maxsize=2)
def _archives(folder: Path) -> dict[str, Path]:
    """Every file in the zip archives of a folder, by its name within them."""
    return {name: path for path in sorted(folder.glob("*.zip")) for name in _opened(path, os.getpid()).namelist()}


@lru_cache(maxsize=8)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    """An archive, opened once in each process."""
    return zipfile.ZipFile(archive)


def encoded_bytes(image: Any, folder: Path) -> tuple[bytes, str]:
    """An image's encoded bytes and its name, from bytes, a path, or a path into an archive; FileNotFoundError where it is none."""
    if isinstance(image, dict):
        if image.get("bytes") is not None:
            return image["bytes"], str(image.get("path"))
        image = image.get("path")
    if image is None:
        raise FileNotFoundError("no image")
    image = str(image)
    if (path := folder / image).is_file():
        return path.read_bytes(), image
    near = folder / f"{image.partition('/')[0]}.zip"  # the archive of its first folder's name, else whichever holds it
    archive = near if near.is_file() and image in _opened(near, os.getpid()).NameToInfo else _archives(folder).get(image)
    if archive is None:
        raise FileNotFoundError(image)
    return _opened(archive, os.getpid()).read(image), f"{archive.name}/{image}"


def decode(encoded: bytes, side: int) -> torch.Tensor:
    """(3, side, side) uint8 in RGB, squashed to a square, as the paper's code does. Raises OSError or ValueError on a damaged image."""
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (side, side))  # a JPEG is decoded at the smallest size that is large enough
        small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def first_caption(given: Any) -> Any:
    """The first of several captions; anything else as it is."""
    return given[0] if isinstance(given, list) and given else given


def _one(image: Any, given: Any, folder: Path, side: int, labelled: bool) -> tuple[torch.Tensor | None, Any]:
    """A decoded image and what belongs to it, or None and why it can't be used."""
    text, kind = first_caption(given), "empty caption"
    if labelled or (isinstance(text, str) and text.strip()):
        try:
            return decode(encoded_bytes(image, folder)[0], side), given
        except FileNotFoundError:
            kind = "missing file"
        except Exception:  # Pillow, zipfile and zlib each have their own; all mean that this row can't be used
            kind = "unreadable image"
    return None, {"kind": kind, "row": str(image.get("path") if isinstance(image, dict) else image)[:200]}


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that decode: Pillow lets go of Python's lock."""
    return ThreadPoolExecutor(threads)


def _prepared(rows: dict[str, list[Any]], folder: Path, side: int, threads: int) -> dict[str, list[Any]]:
    """A chunk of rows: decoded images, what belongs to them, and what was skipped, as one row of lists."""
    labelled = "label" in rows
    one = partial(_one, folder=folder, side=side, labelled=labelled)
    given = rows["label" if labelled else "text"]
    found = list((_pool(threads, os.getpid()).map if threads > 1 else map)(one, rows["image"], given))
    kept = [(pixels, given) for pixels, given in found if pixels is not None]
    pixels = torch.stack([image for image, _ in kept]) if kept else torch.empty(0, 3, side, side, dtype=torch.uint8)
    skipped = [why for image, why in found if image is None]
    return {"pixels": [pixels], "given": [[given for _, given in kept]], "skipped": [skipped], "seen": [len(found)]}


def read(
    name: str,
    path: Path,
    *,
    side: int,
    batch: int,
    skipped: Skipped,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[tuple[torch.Tensor, list[Any]]]:
    """Batches of a data set: pixels (B, 3, side, side) uint8, and their captions or labels; the last one may be smaller.

    seed: shuffle by it and the epoch; None: in order. rank of world: this process's share of the rows. workers: processes that
    decode, and threads of theirs where there are fewer files than that. The same arguments give the same batches. Raises what `table`
    raises, and ValueError when too many rows are skipped.
    """
    from datasets.distributed import split_dataset_by_node

    rows = table(name, path)
    if seed is not None:
        rows = rows.shuffle(seed=seed, buffer_size=_PATHS.get(LAYOUTS[name].builder, _BUFFER))
    if world > 1:  # rows are shared out before they are decoded; datasets would do it afterwards where shards don't divide
        rows = split_dataset_by_node(rows, rank, world) if rows.num_shards % world == 0 else rows._step(world, rank)
    processes = min(workers, rows.num_shards)
    options = {"folder": path / LAYOUTS[name].folder, "side": side, "threads": workers // max(1, processes)}
    chunks = rows.map(_prepared, batched=True, batch_size=_CHUNK, remove_columns=["image", "text", "label"], fn_kwargs=options)
    if seed is not None:
        chunks.set_epoch(epoch)  # here, as each step above makes a stream whose epoch is 0 again
    parts, given = [], []
    loader: Any = DataLoader(chunks, batch_size=None, num_workers=processes)  # type: ignore[arg-type] (datasets' stream is one of torch's, too)
    for chunk in loader:
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


def check_outside(data: str, *, labelled: bool = False) -> None:
    """Raise ValueError on external data, LAYOUT:PATH, that hold no captions, or no labels where `labelled`; nothing is opened."""
    name, _ = split_name(data)
    layout = _layout(name)
    if labelled and not layout.label:
        raise ValueError(f"{name} holds captions, not labels: accuracy can't be measured on it")
    if not labelled and not layout.text:
        raise ValueError(f"{name} holds labels, not captions: a model can't be cleaned with it")


def split_name(data: str) -> tuple[str, Path]:
    """Layout and folder of LAYOUT:PATH; a relative path starts at the project's root."""
    name, _, path = data.partition(":")
    return name, ROOT / Path(path).expanduser()


def listed(data: str) -> str:
    """sha256 of the names and sizes of all files of external data, LAYOUT:PATH. FileNotFoundError where there is no such folder."""
    _, folder = split_name(data)
    if not folder.is_dir():
        raise FileNotFoundError(f"{data} names no folder: {folder} is not there")
    return digest([[str(file.relative_to(folder)), file.stat().st_size] for file in sorted(folder.rglob("*")) if file.is_file()])
