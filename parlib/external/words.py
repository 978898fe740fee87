"""Words of external data: captions as text, class names as a text encoder knows them."""

import ast
import io
import re
import tokenize
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from open_clip import IMAGENET_CLASSNAMES
from timm.data.imagenet_info import ImageNetInfo

_SYNSET, _NUMBERED = re.compile(r"n\d{8}"), re.compile(r"\A\d{2,}[._]\s*(?=\D)")
_BLANK = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def captions_of(given: Any) -> Any:
    """A row's caption as text, or the list of its several: a list, or one that is written out, as a csv holds it; empty: there is none."""
    if isinstance(given, bytes):
        given = given.decode(errors="replace")
    if isinstance(given, str) and given[:1] == "[" and given.rstrip()[-1:] == "]":
        given = _written_out(given) or given
    if isinstance(given, list | tuple):
        return [text for one in given if (text := captions_of(one))]
    return "" if given is None or given != given else str(given)  # noqa: PLR0124 (NaN alone differs from itself)


def _written_out(given: str) -> list[str]:
    """The strings of a list as Python or numpy prints it, the one with commas between them, the other without; empty where it is none."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(given).readline))
        found = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]  # literals alone: nothing is run
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return []
    between = {token.string for token in tokens if token.type not in (tokenize.STRING, *_BLANK)}
    return found if between <= {"[", "]", ","} and all(isinstance(one, str) for one in found) else []


def first_caption(given: Any) -> str:
    """The first of several captions, or the one; empty where there is none."""
    found = captions_of(given)
    return found if isinstance(found, str) else (found[0] if found else "")


def class_name(name: str) -> str:
    """A class as a text encoder knows it: a synset of WordNet's by its words, any other in small letters, without underscores and without
    a number before it.
    """
    if _SYNSET.fullmatch(name):
        return _synsets().get(name, name)
    return " ".join(_NUMBERED.sub("", name, count=1).replace("_", " ").split()).lower() or name


def class_names_of(found: Sequence[str]) -> list[str]:
    """The class names of a data set, as a text encoder knows them; what was changed is said, and so is what no encoder can know."""
    if sorted(found) == sorted(map(str, range(len(IMAGENET_CLASSNAMES)))):
        names = [IMAGENET_CLASSNAMES[int(name)] for name in found]
    else:
        names = [class_name(name) for name in found]
    _say(tuple(found), tuple(names))
    return names


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
    if unknown := [name for name in names if _SYNSET.fullmatch(name) or not re.search(r"[^\W\d_]", name)]:
        print(f"warning: {len(unknown)} class names say nothing to a text encoder, such as {unknown[0]!r}", flush=True)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        print(f"warning: several classes are called {twice!r}: they can't be told apart", flush=True)
