"""Rows of csv files, of any of the usual separators and encodings. Text is text: no number, no missing value is read into it."""

import codecs
import csv
import gzip
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from parlib.external.words import ENCODINGS, Unusable

csv.field_size_limit(1 << 24)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def header(path: Path, separator: str = "") -> tuple[list[str], str]:
    """The column names of a csv and what separates them: where that is not said, of comma, tab, semicolon and bar what gives the most."""
    with _text(path) as file:
        first = next((line for line in file if line.strip()), "")
    return max(((next(csv.reader([first], delimiter=mark)), mark) for mark in separator or ",\t;|"), key=lambda found: len(found[0]))


def csv_rows(path: Path, columns: dict[str, str], separator: str = "") -> Iterator[dict[str, Any]]:
    """The rows of a file, by our name for each column. A row of more cells than there are names, as where a caption's comma is not quoted,
    is unusable. ValueError, with the line, where a quote that is not closed takes in further rows.
    """
    names, mark = header(path, separator)
    places = {ours: [name.strip() for name in names].index(theirs) for ours, theirs in columns.items()}
    lines: list[str] = []  # of the row at hand

    def noted(file: Any) -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line

    with _text(path) as file:
        reader, begun = csv.reader(noted(file), delimiter=mark), False
        while True:
            row = _next(reader)
            if row is None or (len(lines) > 1 and _takes_in_rows(lines, mark, len(names))):
                first = reader.line_num - len(lines) + 1
                raise ValueError(f"a quote in line {first} takes in the rows below it: close it there, or double the quotes of a caption")
            if not lines:
                return
            lines.clear()
            if row and begun:
                found: dict[str, Any] = {ours: row[place] if place < len(row) else None for ours, place in places.items()}
                yield found | ({"text": Unusable("row of too many cells")} if any(row[len(names) :]) else {})
            begun = begun or bool(row)


def _next(reader: Any) -> list[str] | None:
    """The next row, empty at the end; None where it is too long to be one."""
    try:
        return next(reader, [])
    except csv.Error as error:
        if "field larger" in str(error):
            return None
        raise


def _takes_in_rows(lines: list[str], mark: str, cells: int) -> bool:
    """Whether one row of several lines is several rows: a further line is a row that names an image, or the quotes don't close as they
    should.
    """
    Image.init()
    for line in lines[1:]:
        found = line.strip().split(mark)
        whole = len(found) == cells and line.count('"') % 2 == 0  # unlike the end of a caption of several lines
        if whole and any(Path(cell.strip('"')).suffix.lower() in Image.EXTENSION for cell in found):
            return True
    try:
        next(csv.reader(lines, delimiter=mark, strict=True))
    except csv.Error:
        return True
    return False


def _text(path: Path) -> Any:
    return _open(path)(path, "rt", encoding=_encoding(path), newline="")


def _open(path: Path) -> Any:
    return gzip.open if path.suffix.lower() == ".gz" else open


@lru_cache(maxsize=8)
def _encoding(path: Path) -> str:
    """UTF-16 where the file is marked so, else the first of ENCODINGS in which all of it can be read."""
    with _open(path)(path, "rb") as file:
        if file.read(2) in _UTF16:
            return "utf-16"
    return next(encoding for encoding in ENCODINGS if _readable(path, encoding))


def _readable(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with _open(path)(path, "rb") as file:
            while block := file.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
