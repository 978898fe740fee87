"""External data as files: which files a data set is made of, and in which parts."""

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import parse_qsl

from parlib.cache import ROOT

_SHARD = re.compile(r"(^|[-_.])(\d+)([-_]of[-_]\d+)?([-_][0-9a-f]{8,})?$")  # the end of a stem that numbers a part's files
_SPLIT = re.compile(r"train|training|val|valid|validation|dev|test|testing|eval|unlabell?ed")


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk. form: csv, parquet, tar or folder; files: patterns of their names; deep: whether they lie in folders
    below, too. columns: the one of the images, and of captions or labels, by our name for it (image, text, label); empty: the usual ones.
    folder: where paths in the image column start, below the data set's own folder; the images may still be in zip archives there.
    """

    form: str
    files: tuple[str, ...]
    holds: str = "captions"
    deep: bool = True
    columns: tuple[tuple[str, str], ...] = ()
    folder: str = "."


_CSV = ("*.csv", "*.tsv", "*.csv.gz", "*.tsv.gz")
LAYOUTS: dict[str, Layout] = {
    "cc3m": Layout("tar", ("*.tar",)),  # pixparse/cc3m-wds
    "synthclip": Layout(  # hammh0a/SynthCLIP
        "csv", ("combined_images_and_captions.csv",), deep=False, columns=(("image", "image_path"), ("text", "caption")), folder="data"
    ),
    "imagenet": Layout("parquet", ("validation-*.parquet",), "labels"),  # ILSVRC/imagenet-1k
    "coco": Layout("parquet", ("test-*.parquet",)),  # nlphuji/mscoco_2014_5k_test_image_text_retrieval
    "csv": Layout("csv", _CSV, deep=False),
    "parquet": Layout("parquet", ("*.parquet",)),
    "webdataset": Layout("tar", ("*.tar", "*.tar.gz", "*.tgz")),
    "labelled_parquet": Layout("parquet", ("*.parquet",), "labels"),
    "labelled_webdataset": Layout("tar", ("*.tar", "*.tar.gz", "*.tgz"), "labels"),  # CLIP_benchmark's
    "folder": Layout("folder", ("*",), "labels"),
}


@dataclass(frozen=True)
class Source:
    """External data, LAYOUT:PATH or, of several parts, LAYOUT:PATH#PART. part: empty where none is named; several are joined by +.
    options: what follows a ?, such as image=photo&text=alt: the columns of a csv or of parquet files where they are not the usual ones, and
    the separator of a csv.
    """

    name: str
    layout: Layout
    path: Path
    part: str
    options: str = ""
    separator: str = ""

    @classmethod
    def of(cls, data: str) -> "Source":
        """A relative path starts at the project's root. ValueError on an unknown layout or option."""
        name, _, rest = data.partition(":")
        if name not in LAYOUTS:
            path = f"; a path is named with its layout, such as csv:{name}, or folder:{name} of labelled images" if "/" in name else ""
            raise ValueError(f"unknown data {name!r}; known are: {', '.join(LAYOUTS)}{path}")
        path, part, options = ROOT / Path(rest).expanduser(), "", ""
        if not path.exists() and "?" in rest:
            rest, _, options = rest.rpartition("?")
            path = ROOT / Path(rest).expanduser()
        if not path.exists() and "#" in rest:
            rest, _, part = rest.rpartition("#")
            path = ROOT / Path(rest).expanduser()
        found = cls(name, LAYOUTS[name], path, part)
        return found._with(options) if options else found

    def _with(self, options: str) -> "Source":
        """The same data with other columns, or another separator. ValueError on what can't be said of it."""
        column = "label" if self.layout.holds == "labels" else "text"
        allowed = {"csv": ["image", column, "separator"], "parquet": ["image", column]}.get(self.layout.form)
        if allowed is None:
            raise ValueError(f"{self.name} takes no options, so not {options!r}: a csv's and parquet's columns can be named")
        given = dict(parse_qsl(options, keep_blank_values=True))
        for name, value in given.items():
            if name not in allowed or not value:
                raise ValueError(f"{self} can't be read with {name}={value}: its options are: {', '.join(f'{one}=...' for one in allowed)}")
        separator = given.pop("separator", "")
        separator = "\t" if separator == "tab" else separator
        if len(separator) > 1:
            raise ValueError(f"{self}: a csv's separator is one character, or the word tab, not {separator!r}")
        columns = tuple((dict(self.layout.columns) | given).items())
        return replace(self, layout=replace(self.layout, columns=columns), options=options, separator=separator)

    @property
    def folder(self) -> Path:
        """Where paths of images start."""
        return self.path / self.layout.folder

    def __str__(self) -> str:
        return f"{self.name}:{self.path}" + (f"#{self.part}" if self.part else "") + (f"?{self.options}" if self.options else "")

    def files(self) -> list[Path]:
        """The files of the part that is named, or of the only one. FileNotFoundError where there is none, ValueError where there are
        several parts and none is named: they are not read as one unless one asks for it.
        """
        self.check_folder()
        there = walk(self.path) if self.layout.deep else sorted(file for file in self.path.glob("[!.]*") if file.is_file())
        found = [file for file in there if any(fnmatch(file.name.lower(), pattern) for pattern in self.layout.files)]
        if not found:
            raise FileNotFoundError(self._lacking())
        parts = self._parts(found)
        return [file for part in self.chosen(list(parts)) for file in parts[part]]

    def check_folder(self) -> None:
        """FileNotFoundError where the path is no folder."""
        if self.path.is_file():
            raise FileNotFoundError(f"{self.path} is a file: name its folder, {self.name}:{self.path.parent}")
        if not self.path.exists():
            raise FileNotFoundError(f"{self} names no folder: {self.path} is not there")

    def _lacking(self) -> str:
        """Why no file of the layout was found in the folder."""
        listed = "docs/clean-your-own.md#images-without-a-csv says how to list the images that it holds"
        images = any(file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") for file in walk(self.path))
        wanted = f"{self.path} holds no {' or '.join(self.layout.files)}: {self.name} is read from such files"
        return f"{wanted}; {listed}" if images and self.layout.holds == "captions" else wanted

    def _parts(self, found: list[Path]) -> dict[str, list[Path]]:
        """Files by part, which their names tell: those that only a number tells apart are one, where they are numbered as shards are."""
        alike: dict[tuple[str, str, str], list[Path]] = {}
        for file in found:
            stem, ending = _stem(file)
            near = file.parent.relative_to(self.path).as_posix()
            alike.setdefault((near if near not in (".", "data") else "", _SHARD.sub("", stem), ending), []).append(file)
        named: list[tuple[str, str, list[Path]]] = []
        for (near, stem, ending), files in alike.items():
            shards = [(stem, files)] if _are_shards(files) else [(_stem(file)[0], [file]) for file in files]
            named += [("/".join(word for word in (near, one) if word), ending, them) for one, them in shards]
        often = Counter(part for part, _, _ in named)  # such as train.csv beside train.tsv
        return {part if often[part] == 1 else f"{part}.{ending}": files for part, ending, files in named}

    def chosen(self, parts: list[str]) -> list[str]:
        """The parts that are named, or the only one."""
        if not self.part:
            if len(parts) > 1:
                shown = ", ".join(parts[:8])
                raise ValueError(
                    f"{self} has {len(parts)} parts: {shown}; name one, such as {self.name}:...#{parts[0]}, or several, joined by +"
                )
            return parts
        named = self.part.split("+")
        if missing := [part for part in named if part not in parts]:
            raise ValueError(f"{self} names no part of it: {missing[0]!r}; its parts are: {', '.join(parts) or 'none'}")
        return named


def _stem(file: Path) -> tuple[str, str]:
    """A file's name without its ending, and that; a compressed table's ending has two words."""
    stem, _, ending = file.name.rpartition(".")
    before, _, inner = stem.rpartition(".")
    return (before, f"{inner}.{ending}") if ending.lower() == "gz" and before else (stem, ending)


def _are_shards(files: list[Path]) -> bool:
    """Whether files that only a number tells apart are one data set's: it is all of their name, says of how many, is padded with zeros, or
    counts on; not train_2014 and train_2017, nor years that do.
    """
    ends = [found for file in files if (found := _SHARD.search(_stem(file)[0]))]
    if len(files) == 1 or all(end.start() == 0 or end[3] for end in ends):
        return True
    numbers = sorted(int(end[2]) for end in ends)
    counted = numbers == list(range(numbers[0], numbers[0] + len(files))) and not 1900 < numbers[0] < 2100
    return counted or any(end[2].startswith("0") and len(end[2]) > 1 for end in ends)


def is_split(folder: str) -> bool:
    """Whether a folder is called as a data set's splits are, such as val2017."""
    return any(_SPLIT.fullmatch(word) for word in re.split(r"[-_. ]|\d+", folder.lower()))


def splits(folders: list[str]) -> list[str]:
    """The folders as parts of a data set, where the name of one is that of a split, or several are called so; else none."""
    return folders if any(_SPLIT.fullmatch(name.lower()) for name in folders) or sum(map(is_split, folders)) > 1 else []


def walk(folder: Path) -> list[Path]:
    """All files below a folder, in order of their names; links are followed, what begins with a dot is left out."""
    found = []
    for here, folders, files in os.walk(folder, followlinks=True):
        above = os.path.realpath(here) + os.sep  # a link to a folder above would lead round and round
        inside = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(name for name in inside if not above.startswith(os.path.realpath(os.path.join(here, name)) + os.sep))
        found += [Path(here, name) for name in sorted(files) if not name.startswith(".")]
    return found
