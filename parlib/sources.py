"""Data sets of others, read as a stream through Hugging Face datasets.

What can't be used is skipped and counted by kind; a run fails once that is more than a set share.
"""

import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from parlib.cache import cache_dir, digest
from parlib.data import SIDE, Pairs

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk: datasets' builder, its files, and which columns are the image and its caption or label.

    folder: where paths in the image column start, below the data set's own folder; the images may still be in zip archives there.
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


@dataclass
class Skipped:
    """What a run left out: by kind, the first of each kind by name; `limit` is the share of rows that it may leave out."""

    limit: float = 0.01
    seen: int = 0
    kinds: Counter = field(default_factory=Counter)
    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, seen: int, skipped: list[tuple[str, str]]) -> None:
        """Count a chunk of rows. Raises ValueError once more than the limit has been left out, but not before 100 rows were seen."""
        self.seen += seen
        self.kinds.update(kind for kind, _ in skipped)
        self.rows += [{"kind": kind, "row": row} for kind, row in skipped]
        if self.seen >= 100 and self.kinds.total() > self.limit * self.seen:
            raise ValueError(f"{self}: more than the {self.limit:.1%} allowed; the first is {self.rows[0]['row']}")

    def __str__(self) -> str:
        said = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return f"{self.kinds.total()} of {self.seen} rows skipped" + (f" ({said})" if said else "")


def table(name: str, path: Path) -> "datasets.IterableDataset":
    """A data set's rows as a stream with the columns image (encoded bytes or a path), and text or label.

    name: of a layout. Raises ValueError on an unknown layout or a missing column, and FileNotFoundError where the layout's files
    are not there.
    """
    import datasets  # which takes a second, and few runs need it

    if name not in LAYOUTS:
        raise ValueError(f"unknown data {name!r}; known are: {', '.join(LAYOUTS)}")
    layout = LAYOUTS[name]
    found = sorted(str(file) for file in path.glob(layout.files) if file.is_file())
    if not found:
        raise FileNotFoundError(f"{path} holds no {layout.files}: {name} is read from such files")
    options: dict[str, Any] = {"data_files": {"train": found}, "cache_dir": str(cache_dir() / "datasets")}
    stream = datasets.load_dataset(layout.builder, split="train", streaming=True, **options)
    names = {"image": layout.image, "text": layout.text, "label": layout.label}
    wanted = {column: new for new, column in names.items() if column}
    there = list(stream.features or next(iter(stream)))
    if missing := [column for column in wanted if column not in there]:
        raise ValueError(f"{path} ({name}) has no column {missing[0]!r}; its columns are: {', '.join(there)}")
    if isinstance((stream.features or {}).get(names["image"]), datasets.Image):
        stream = stream.cast_column(names["image"], datasets.Image(decode=False))
    return stream.select_columns(list(wanted)).rename_columns({old: new for old, new in wanted.items() if old != new})


@lru_cache(maxsize=2)
def _archives(folder: Path) -> dict[str, Path]:
    """Every file in the zip archives of a folder, by its name within them."""
    return {name: path for path in sorted(folder.glob("*.zip")) for name in zipfile.ZipFile(path).namelist()}


@lru_cache(maxsize=64)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    """An archive, opened once in each process."""
    return zipfile.ZipFile(archive)


def _bytes(image: Any, folder: Path) -> tuple[bytes, str]:
    """An image's encoded bytes and its name, from bytes, a path, or a path into an archive; FileNotFoundError where it is none."""
    if isinstance(image, dict):
        if image.get("bytes") is not None:
            return image["bytes"], str(image.get("path"))
        image = image.get("path")
    if image is None:
        raise FileNotFoundError("no image")
    path = Path(image) if Path(image).is_absolute() else folder / image
    if path.is_file():
        return path.read_bytes(), str(image)
    archive = _archives(folder).get(str(image))
    if archive is None:
        raise FileNotFoundError(str(image))
    return _opened(archive, os.getpid()).read(str(image)), f"{archive.name}/{image}"


def decode(encoded: bytes, side: int) -> torch.Tensor:
    """(3, side, side) uint8 in RGB, squashed to a square, as the paper's code does. Raises OSError or ValueError on a damaged image."""
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (side, side))  # a JPEG is decoded at the smallest size that is large enough
        small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def _prepared(rows: dict[str, list[Any]], folder: Path, side: int) -> dict[str, list[Any]]:
    """A chunk of rows: decoded images, what belongs to them, and what was skipped, as one row of lists."""
    kept: list[tuple[torch.Tensor, Any]] = []
    skipped: list[tuple[str, str]] = []
    labelled = "label" in rows
    for image, given in zip(rows["image"], rows["label" if labelled else "text"], strict=True):
        name = str(image.get("path") if isinstance(image, dict) else image)
        text = given[0] if isinstance(given, list) and given else given
        if not labelled and not (isinstance(text, str) and text.strip()):
            skipped.append(("empty caption", name))
            continue
        try:
            encoded, name = _bytes(image, folder)
            kept.append((decode(encoded, side), given))
        except FileNotFoundError:
            skipped.append(("missing file", name))
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
            skipped.append(("unreadable image", name))
    pixels = torch.stack([image for image, _ in kept]) if kept else torch.empty(0, 3, side, side, dtype=torch.uint8)
    return {"pixels": [pixels], "given": [[given for _, given in kept]], "skipped": [skipped], "seen": [len(rows["image"])]}


def read(name: str, path: Path, *, side: int, skipped: Skipped, seed: int | None = None) -> Iterator[tuple[torch.Tensor, list[Any]]]:
    """A data set by the chunk: pixels (B, 3, side, side) uint8, and their captions or labels.

    seed: shuffle, 2,000 rows at a time; None: in order. Raises what `table` raises, and ValueError when too many rows are skipped.
    """
    rows = table(name, path)
    if seed is not None:
        rows = rows.shuffle(seed=seed, buffer_size=_BUFFER)
    options = {"folder": path / LAYOUTS[name].folder, "side": side}
    for chunk in rows.map(_prepared, batched=True, batch_size=_CHUNK, remove_columns=["image", "text", "label"], fn_kwargs=options):
        skipped.add(chunk["seen"], chunk["skipped"])
        if chunk["given"]:
            yield chunk["pixels"], chunk["given"]


def check_outside(data: str) -> None:
    """Raise ValueError on data of others, LAYOUT:PATH, that no model can be cleaned with; it is not opened."""
    name, _, path = data.partition(":")
    if name not in LAYOUTS:
        raise ValueError(f"unknown data {name!r}; known are: {', '.join(LAYOUTS)}")
    if not LAYOUTS[name].text:
        raise ValueError(f"{name} holds labels, not captions: a model can't be cleaned with it")
    if not Path(path).expanduser().is_dir():
        raise ValueError(f"{data} names no folder")


def listed(data: str) -> str:
    """sha256 of the names and sizes of all files of a data set, LAYOUT:PATH: what a record says of data that is not its own."""
    folder = Path(data.partition(":")[2]).expanduser()
    return digest([[str(file.relative_to(folder)), file.stat().st_size] for file in sorted(folder.rglob("*")) if file.is_file()])


def load_outside(data: str, n: int, seed: int = 0) -> Pairs:
    """n pairs of a data set of others, named as LAYOUT:PATH, such as synthclip:data/SynthCLIP: shuffled by the seed, at the scenes' size.

    They have no classes. Raises what `read` raises, and ValueError where fewer are usable or the layout holds labels.
    """
    name, _, path = data.partition(":")
    skipped, pixels, captions = Skipped(), [], []
    for images, texts in read(name, Path(path).expanduser(), side=SIDE, skipped=skipped, seed=seed):
        pixels.append(images)
        captions += [text[0] if isinstance(text, list) else text for text in texts]
        if len(captions) >= n:
            break
    if len(captions) < n:
        raise ValueError(f"{data} holds {len(captions)} usable pairs, {n} are asked; {skipped}")
    print(f"{data}: {skipped}", flush=True)
    none = torch.full((n,), -1)
    return Pairs(torch.cat(pixels)[:n], captions[:n], none, none, [])
