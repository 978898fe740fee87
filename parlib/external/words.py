"""Words of external data: captions as text, class names as a text encoder knows them."""

import ast
import codecs
import io
import re
import tokenize
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from open_clip import IMAGENET_CLASSNAMES
from timm.data.imagenet_info import ImageNetInfo

_SYNSET, _LABELLED = re.compile(r"n\d{8}"), re.compile(r"\An\d{8}[-_ ](?=.)")
_NUMBERED, _ALL_NUMBERED = re.compile(r"\A\d{2,}[._]\s*(?=\D)"), re.compile(r"\A\d+\s*[-._ ]\s*(?=\D)")
_CAMEL = re.compile(r"([A-Z][a-z]+){2,}")
_BLANK = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
_TEXT = ("raw", "caption", "text", "sentence", "title", "description")  # what holds the text of a caption that is a record
ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")  # in the order in which they are tried; in the last one every file can be read


@dataclass(frozen=True)
class Unusable:
    """What stands in the place of a caption where a row can't be used: the kind under which it is counted."""

    kind: str


def decoded(given: bytes) -> str:
    """Text, in the first of ENCODINGS in which it can be read. A last character that was cut is left out."""
    for encoding in ENCODINGS:
        with suppress(UnicodeDecodeError):
            return codecs.getincrementaldecoder(encoding)().decode(given)  # which waits for the rest of a character
    raise AssertionError("latin-1 reads every byte")


def captions_of(given: Any) -> Any:
    """A row's caption as text, or the list of its several: a list, or one that is written out, as a csv holds it; empty: there is none. Of
    a record its text, such as `raw`.
    """
    if isinstance(given, bytes):
        given = decoded(given)
    if isinstance(given, str) and given[:1] + given.rstrip()[-1:] in ("[]", "()"):
        written = _written_out(given)
        given = given if written is None else written
    if isinstance(given, dict):
        given = next((given[name] for name in _TEXT if given.get(name)), None)
    if isinstance(given, list | tuple):
        found = [captions_of(one) for one in given]
        return [text for one in found for text in (one if isinstance(one, list) else [one]) if text]
    return "" if given is None or given != given or isinstance(given, Unusable) else str(given)  # noqa: PLR0124 (NaN alone differs from itself)


def _written_out(given: str) -> list[str] | None:
    """The strings of a list or tuple as Python, JSON or numpy prints it, the last without commas between them; None where it is none.
    Beside a string may be numbers, which are text, and None or null, which are left out.
    """
    try:
        tokens = [one for one in tokenize.generate_tokens(io.StringIO(given).readline) if one.type not in _BLANK]
        held = [one for one in tokens[1:-1] if one.string not in (",", "None", "null")]
        # literals alone: nothing is run
        texts = [ast.literal_eval(one.string) if one.type == tokenize.STRING else one.string for one in held]
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return None
    kinds = {one.type for one in held}
    if not kinds <= {tokenize.STRING, tokenize.NUMBER} or kinds == {tokenize.NUMBER} or not all(isinstance(one, str) for one in texts):
        return None  # such as [laughs], or [1, 2]
    if given[0] == "(" and not (texts and any(one.string == "," for one in tokens)):
        return None  # a caption in brackets
    return texts


def first_caption(given: Any) -> str:
    """The first of several captions, or the one; empty where there is none."""
    found = captions_of(given)
    return found if isinstance(found, str) else (found[0] if found else "")


def lacking(given: Any, caption: str) -> str:
    """The kind under which a row is counted whose caption, as it was given and as text, can't be used; empty where it can."""
    return given.kind if isinstance(given, Unusable) else "" if caption.strip() else "empty caption"


def class_name(name: str) -> str:
    """A class as a text encoder knows it: a synset of WordNet's by its words, any other in small letters, without underscores and without
    a number before it.
    """
    if _SYNSET.fullmatch(name):
        return _synsets().get(name, name)
    bare = _NUMBERED.sub("", _LABELLED.sub("", name, count=1), count=1)
    return " ".join(bare.replace("_", " ").split()).lower() or name


def class_names_of(found: Sequence[str]) -> list[str]:
    """The class names of a data set, as a text encoder knows them; what was changed is said, and so is what no encoder can know."""
    if sorted(found) == sorted(map(str, range(len(IMAGENET_CLASSNAMES)))):
        names = [IMAGENET_CLASSNAMES[int(name)] for name in found]
    else:
        names = [class_name(name) for name in _in_one_style(found)]
    _say(tuple(found), tuple(names))
    return names


def _in_one_style(found: Sequence[str]) -> list[str]:
    """Class names without what all of them have: a number before them, or words that capitals part, as in GoldenRetriever."""
    bare = [_ALL_NUMBERED.sub("", name, count=1) for name in found]
    if all(_ALL_NUMBERED.match(name) for name in found) and len(set(bare)) == len(set(found)):  # unlike 1 euro, 2 euro
        found = bare
    if not any(mark in name for name in found for mark in " _-"):
        found = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name) if _CAMEL.fullmatch(name) else name for name in found]
    return list(found)


@cache
def _synsets() -> dict[str, str]:
    """Names by synset: of ImageNet's 1,000 those of OpenAI's prompts, of the others WordNet's first word."""
    whole, known = ImageNetInfo("imagenet-22k"), ImageNetInfo("imagenet-1k").label_names()
    words = {synset: whole.label_name_to_description(synset).partition(",")[0].strip() for synset in whole.label_names()}
    return words | dict(zip(known, IMAGENET_CLASSNAMES, strict=True))


@lru_cache(maxsize=8)
def _say(found: tuple[str, ...], names: tuple[str, ...]) -> None:
    changed = [(old, new) for old, new in zip(found, names, strict=True) if old.replace("_", " ") != new]
    if changed:
        print(f"{len(changed)} class names are read as words, such as {changed[0][0]!r} as {changed[0][1]!r}", flush=True)
    if unknown := [name for name in names if _SYNSET.search(name) or not re.search(r"[^\W\d_]", name)]:
        print(f"warning: {len(unknown)} class names say nothing to a text encoder, such as {unknown[0]!r}", flush=True)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        print(f"warning: several classes are called {twice!r}: they can't be told apart", flush=True)
