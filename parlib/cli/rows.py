"""How many usable pairs external data hold, for the dry run: images are opened among the first rows alone, the rest is told by captions."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from parlib.data.scenes import covered
from parlib.experiments.clean_params import Clean
from parlib.experiments.inspection import Inspect
from parlib.experiments.lineage import preparation
from parlib.experiments.poison import Poison
from parlib.external.batches import Skipped, read
from parlib.external.files import Source
from parlib.external.rows import label_names, stream
from parlib.external.stream import named
from parlib.external.words import first_caption

ROWS = 100  # of each data set whose images are opened
_SECONDS = 20.0  # of counting


@dataclass
class Counted:
    """usable: pairs with an image and a caption that fits. rows: those seen. ended: whether these are all. skipped: of the first rows."""

    skipped: Skipped
    usable: int = 0
    rows: int = 0
    ended: bool = True
    captions: list[str] = field(default_factory=list)


def look_at_pairs(params: Poison | Clean) -> str:
    """What a run's external pairs are like. ValueError, with the numbers, where too few are usable, or too many not."""
    data, batch = params.data, 1 if isinstance(params, Inspect) else params.recipe().batch  # an inspection trains nothing
    name = "images" if isinstance(params, Inspect) else "pairs" if isinstance(params, Clean) else "train_scenes"
    asked = getattr(params, name)
    try:
        found = count_pairs(params, asked)
        if not found.skipped.seen:
            raise ValueError(f"{data} holds no rows")
        found.skipped.check()
    except ValueError as error:
        lost = f"; images are looked for in {Source.of(data).folder}" if "missing file" in str(error) else ""
        raise ValueError(f"{error}{lost}") from None
    least = "" if found.ended else "at least "
    naming = " that name covered classes alone" if getattr(params, "coverage", 1.0) < 1 else ""
    opened = f" ({found.skipped}, of those opened)" if found.skipped.rows else ""
    said = f"{least}{found.usable:,} usable pairs{naming} in {least}{found.rows:,} rows{opened}"
    there = found.usable + (found.skipped.kinds.total() if isinstance(params, Poison) else 0)  # a poisoned copy is of so many rows
    if found.ended and found.usable < batch:
        raise ValueError(f"{said}, fewer than the {batch:,} of one batch")
    if found.ended and there < asked:
        raise ValueError(f"{said}, {name} asks for {asked:,}: name {there:,} at most, or more data")
    if there < asked:
        said += f"; whether there are the {asked:,} asked is not known after {_SECONDS:.0f} s of counting"
    words = [len(caption.split()) for caption in found.captions]
    return f"{said}; captions of {min(words)} to {max(words)} words, such as {found.captions[0]!r}"


def count_pairs(params: Poison | Clean, enough: int) -> Counted:
    """Usable pairs of a run's external data, up to `enough` or for _SECONDS: the first ROWS rows by their images and captions, all others
    by their captions.
    """
    limit = min(0.999, params.max_skipped)  # with all allowed, damaged data would be read to their end
    found, fits = Counted(Skipped(limit)), _fits(params)
    skipped, captions = found.skipped, found.captions
    for _, given in read(params.data, images=preparation(None, params), batch=1, skipped=skipped):
        captions += [first_caption(one) for one in given]
        if skipped.seen >= ROWS and len(captions) == skipped.seen - skipped.kinds.total():  # the rows read so far, all of them
            break
    found.rows, found.usable = skipped.seen, sum(map(fits, captions))
    began = time.monotonic()
    for row in stream(Source.of(params.data), images=False).skip(skipped.seen):
        if found.usable >= enough or time.monotonic() - began > _SECONDS:
            found.ended = False
            break
        caption = first_caption(row["text"])
        found.rows += 1
        found.usable += bool(caption.strip()) and fits(caption)
    return found


def _fits(params: Poison | Clean) -> Callable[[str], bool]:
    """Whether a caption is of a pair that a run takes: below a coverage of 1 it names covered classes, and no other."""
    if getattr(params, "coverage", 1.0) == 1:
        return lambda caption: True
    names = tuple(label_names(Source.of(params.evaluation)))
    kept = set(covered(list(names), getattr(params, "coverage", 1.0), params.target))
    return lambda caption: bool(found := named(caption, names)) and found <= kept
