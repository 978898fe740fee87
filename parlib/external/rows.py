"""Rows of external data, as a stream: an image, as encoded bytes or a path, and its caption or label. Each form has its reader."""

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from tarfile import EOFHeaderError, HeaderError, ReadError  # pyright: ignore[reportAttributeAccessIssue] (it lacks the first)
from typing import TYPE_CHECKING, Any

from PIL import Image

from parlib.external.csv_rows import csv_rows, header
from parlib.external.files import Source, is_split, splits, walk
from parlib.external.words import class_names_of, decoded
from parlib.model.files import not_fetched

if TYPE_CHECKING:
    import datasets

# What the columns are usually called, in the order in which they are looked for; in whatever case.
USUAL = {
    "image": ("image", "image_path", "filepath", "file_path", "filename", "file_name", "path", "file", "img", "jpg", "png", "webp"),
    "text": ("caption", "text", "title", "captions", "sentence", "sentences", "description"),
    "label": ("label", "labels", "cls", "class"),
}
_LINKS = ("url", "image_url", "link")
_AT_ONCE = 100  # rows of a parquet file
_CLASSES = ("classnames.txt", "classes.txt")  # beside labelled tars or a folder above, as CLIP_benchmark has it, a class a line


def stream(source: Source, *, images: bool = True) -> "datasets.IterableDataset":
    """A data set's rows with the columns image, where images are wanted, and text or label. FileNotFoundError where its files are not
    there, ValueError, naming the file, where they can't be read or lack a column.
    """
    from datasets import DatasetInfo, IterableDataset
    from datasets.iterable_dataset import ExamplesIterable  # as from_generator makes it, which would write beside the cache

    if source.layout.form == "folder":
        return _folder_stream(source)
    files, reader, columns = _reading(source)
    if not images:  # parquet is read by columns; a tar holds all beside each other
        columns.pop("image", None)
    options = {"files": [str(file) for file in files], "reader": reader, "columns": columns}  # a list is shared out among workers
    return IterableDataset(ExamplesIterable(_numbered, options), info=DatasetInfo())


def _reading(source: Source) -> tuple[list[Path], Callable[..., Iterator[dict[str, Any]]], dict[str, str]]:
    """The files of a data set, what reads the rows of one, and the columns."""
    files = source.files()
    name_columns, reader = _FORMS[source.layout.form]
    if source.separator:
        reader = partial(csv_rows, separator=source.separator)
    return files, reader, name_columns(source, files)


def _numbered(files: list[str], reader: Callable[..., Iterator[dict[str, Any]]], columns: dict[str, str]) -> Iterator[tuple[str, dict]]:
    for file in files:
        with _named(Path(file), "to its end"):
            for i, row in enumerate(reader(Path(file), columns)):
                yield f"{file}/{i}", row


def named_outside(source: Source) -> list[str]:
    """What the rows of a table call images outside the data set's folder, there or not: absolute paths, and paths through "..". Of parquet,
    where a column of strings holds them. The errors of `stream`.
    """
    files, reader, columns = _reading(source)
    if source.layout.form == "parquet" and getattr(_features(files[0])[columns["image"]], "dtype", "") not in ("string", "large_string"):
        return []  # it holds the images themselves
    rows = (row for _, row in _numbered(list(map(str, files)), reader, {"image": columns["image"]}))
    named = dict.fromkeys(name for row in rows if (name := str(row["image"])).startswith("/") or ".." in name.split("/"))
    inside = os.path.normpath(source.path) + os.sep
    return [name for name in named if not os.path.normpath(source.folder / name).startswith(inside)]


@contextmanager
def _named(path: Path, how: str) -> Iterator[None]:
    """Turn whatever csv, gzip, zlib, tarfile, pyarrow or datasets raise on a damaged file into a ValueError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if known := not_fetched(path):
            raise ValueError(f"{path} {known}") from None
        raise ValueError(f"{path} can't be read {how}: {type(error).__name__}: {' '.join(str(error).split())[:160]}") from None


def names_file(source: Source) -> Path | None:
    """The file that names the classes of labelled tars; None where there is none, and of other data."""
    if (source.layout.form, source.layout.holds) != ("tar", "labels"):
        return None
    near = (folder / name for folder in (source.path, source.path.parent) for name in _CLASSES)
    return next((path for path in near if path.is_file()), None)


def label_names(source: Source) -> list[str]:
    """The class names of labelled data, in the order of the labels, as a text encoder knows them. ValueError where there are none."""
    if source.layout.form == "folder":
        return class_names_of(_classes(source)[1])
    if source.name == "imagenet":
        return class_names_of([str(i) for i in range(1000)])
    if source.layout.form == "tar":
        beside = names_file(source)
        if beside is None:
            raise ValueError(f"{source} names no classes: put {_CLASSES[0]} beside the tars, or a folder above, a class a line")
        with _named(beside, "as text"):
            lines = beside.read_text(encoding="utf-8").splitlines()
        return class_names_of([line.strip() for line in lines if line.strip()])
    files = source.files()
    column = _parquet_columns(source, files)["label"]
    names = getattr(_features(files[0])[column], "names", None)
    if not names:
        raise ValueError(f"{source} names no classes: its column {column!r} must be of datasets' ClassLabel")
    return class_names_of(names)


def _columns(source: Source, there: list[str]) -> dict[str, str]:
    """The columns, by our name for each: those of the layout, else those that are usually called so."""
    wanted = dict(source.layout.columns)
    for ours in ("image", "label" if source.layout.holds == "labels" else "text"):
        by_case = {name.lower(): name for name in reversed(there)}
        usual = [wanted[ours]] if ours in wanted else [name if name in there else by_case.get(name, "") for name in USUAL[ours]]
        found = next((name for name in usual if name in there), None)
        if found is None:
            if ours == "image" and (link := next((name for name in there if name.lower() in _LINKS), None)):
                raise ValueError(f"{source} holds links, in its column {link!r}, not images: download these first, as img2dataset does")
            looked = wanted.get(ours) or ", ".join(USUAL[ours])
            raise ValueError(f"{source} has no column for the {ours}: looked for {looked}; its columns are: {', '.join(there)}")
        wanted[ours] = found
    return wanted


# csv


def _csv_columns(source: Source, files: list[Path]) -> dict[str, str]:
    with _named(files[0], "as csv"):
        names, _ = header(files[0], source.separator)
    if known := not_fetched(files[0]):
        raise ValueError(f"{files[0]} {known}")
    return _columns(source, [name.strip() for name in names])


# parquet


def _features(path: Path) -> Any:
    import datasets
    from pyarrow.parquet import read_schema

    with _named(path, "as parquet"):
        return datasets.Features.from_arrow_schema(read_schema(path))


def _parquet_columns(source: Source, files: list[Path]) -> dict[str, str]:
    return _columns(source, list(_features(files[0])))


def _parquet_rows(path: Path, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_AT_ONCE, columns=list(columns.values())):
            for row in batch.to_pylist():
                yield {ours: row[theirs] for ours, theirs in columns.items()}


# tar, as webdataset has it: files of one name and several endings are a row


class _Member(tarfile.TarInfo):
    """Of a tar whose headers must be whole: tarfile takes one that is cut off, missing or damaged for the tar's end."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:  # its mark
            raise
        except HeaderError as error:
            raise ReadError(f"it is cut off or damaged at a header: {error}") from None


def _tar_rows(path: Path, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    key, parts = None, {}
    with tarfile.open(path, "r|*", tarinfo=_Member) as tar:
        for member in tar:
            before, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            if not member.isfile() or not stem or not ending:
                continue
            if (before + slash + stem) != key:
                if parts:
                    yield _tar_row(str(key), parts, columns["kind"])
                key, parts = before + slash + stem, {}
            file = tar.extractfile(member)
            parts[ending.lower()] = file.read() if file else b""
    if parts:
        yield _tar_row(str(key), parts, columns["kind"])


def _tar_row(key: str, parts: dict[str, bytes], kind: str) -> dict[str, Any]:
    image = next((ending for ending in parts if _is_image(f"x.{ending.rpartition('.')[2]}")), None)
    row: dict[str, Any] = {"image": {"bytes": parts.get(str(image)), "path": f"{key}.{image or 'jpg'}"}}
    if kind == "label":
        given = parts.get("cls", b"").strip()
        return row | {"label": int(given) if given.isdigit() and len(given) < 10 else -1}
    text = next((decoded(parts[ending]) for ending in ("txt", "text", "caption") if ending in parts), None)
    if text is None and "json" in parts:
        held: Any = None
        with suppress(ValueError, RecursionError):  # a row without a caption, and so one that is skipped
            held = json.loads(parts["json"])
        by_name = {name.lower(): held[name] for name in reversed(held)} if isinstance(held, dict) else {}
        text = next((by_name[name] for name in USUAL["text"] if name in by_name), None)
    return row | {"text": text}


# By form: what finds the columns of (source, files), and what reads the rows of (file, columns).
_FORMS: dict[str, tuple[Callable[..., dict[str, str]], Callable[..., Iterator[dict[str, Any]]]]] = {
    "csv": (_csv_columns, csv_rows),
    "parquet": (_parquet_columns, _parquet_rows),
    "tar": (lambda source, files: {"kind": "label" if source.layout.holds == "labels" else "text"}, _tar_rows),  # endings say what they are
}


# folders, one a class


def _is_image(name: str) -> bool:
    """Whether a file's name is that of an image: by its ending, or it has none."""
    Image.init()
    ending = Path(name).suffix.lower()
    return not ending or ending in Image.EXTENSION


def _classes(source: Source) -> tuple[list[tuple[str, int]], list[str]]:
    """The images of a folder, as paths in it, each with its class; and the classes: the folders at its top."""
    folder, beside = source.path, 0
    source.check_folder()
    while True:
        tops, loose = _inside(folder)
        beside += len(loose)
        if len(tops) != 1 or not _holds_folders(tops[0]):
            break
        folder = tops[0]  # such as the one folder that an archive was unpacked into
    flat = [one for one in tops if not _holds_folders(one)]  # such as test/1.png beside train/cat/1.png
    if all(is_split(one.name) for one in flat) and (parts := splits([one.name for one in tops if one not in flat])):
        beside += sum(len(walk(one)) for one in flat)
        tops = [one for part in source.chosen(parts) for one in _inside(folder / part)[0]]
    elif source.part:
        source.chosen([folder.name] if folder != source.path else [])
    names = sorted({one.name for one in tops})
    files = [(file, names.index(top.name)) for top in tops for file in walk(top)]
    found = [(file.relative_to(source.path).as_posix(), label) for file, label in files if _is_image(file.name)]
    kept = sorted({label for _, label in found})
    if not found:
        raise FileNotFoundError(f"{source} holds no images in folders, one folder a class")
    _say_beside(str(source), beside + len(files) - len(found))
    return [(name, kept.index(label)) for name, label in found], [names[label] for label in kept]


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files of a folder; what begins with a dot is neither."""
    found = sorted(one for one in folder.iterdir() if not one.name.startswith("."))
    return [one for one in found if one.is_dir()], [one for one in found if not one.is_dir()]


def _holds_folders(folder: Path) -> bool:
    """Whether there are folders in a folder, and no images beside them."""
    folders, files = _inside(folder)
    return bool(folders) and not any(_is_image(file.name) for file in files)


@lru_cache(maxsize=8)
def _say_beside(source: str, count: int) -> None:
    if count:
        print(f"{source}: {count} files that lie beside the classes' folders, or are no images, are left out", flush=True)


def _folder_stream(source: Source) -> "datasets.IterableDataset":
    import datasets

    found, _ = _classes(source)
    rows = {"image": [name for name, _ in found], "label": [label for _, label in found]}
    return datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=min(64, len(found)))
