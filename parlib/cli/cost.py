"""What a run will take, for the dry run: how it trains, its time with looks and evaluations, and its memory beside the machine's."""

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from parlib.data.pairs import Pairs
from parlib.experiments.clean_params import Clean
from parlib.experiments.poison import Poison
from parlib.external.files import Source
from parlib.external.rows import label_names
from parlib.method.methods import METHODS, Backdoor, rewording
from parlib.model.clip import Clip, embed_images, embed_texts, has_batch_norm
from parlib.train.loop import check_recipe, fit

GB = 1e9

_FEW = 100  # steps below which a training changes little; the studies of few pairs took 360


@dataclass(frozen=True)
class Work:
    """pairs: seen in training. images, sentences: embedded beside it, for looks and evaluations. held: images in memory at once."""

    pairs: int
    images: int
    sentences: int
    held: int


def settings(params: Poison | Clean) -> str:
    """How a run trains, whichever file says so. ValueError where a batch is larger than the pairs."""
    recipe, pairs = params.recipe(), _pairs(params)
    check_recipe(recipe, pairs)
    steps = recipe.steps or pairs // recipe.batch * recipe.epochs
    norm = f"BatchNorm {recipe.batch_norm}" if has_batch_norm(params.encoder) else "no BatchNorm"
    own = [f"{name} {getattr(recipe if hasattr(recipe, name) else params, name):g}" for name in METHODS[recipe.method].options]
    takes_out = f" of {params.inverted or params.trigger}" if isinstance(params, Clean) and METHODS[recipe.method].stamps else ""
    said = [
        recipe.method + takes_out if isinstance(params, Clean) else "poisoning",
        *own,
        f"lr {recipe.lr:g}",
        f"schedule {recipe.schedule}",
        f"{recipe.epochs} epochs",
    ]
    more = "give steps, more epochs" if isinstance(params, Clean) else "give more epochs"
    few = f" (few: {more} or a smaller batch)" if steps < _FEW else ""
    return ", ".join([*said, f"batches of {recipe.batch:,}", f"{steps:,} steps{few}", norm, f"{pairs:,} pairs"])


def work(params: Poison | Clean, *, trial: bool = False) -> Work:
    """What a run computes at most. trial: it is one of a sweep's, whose poisoned model is evaluated once for all."""
    recipe, n = params.recipe(), params.eval_scenes
    looks, watched = (recipe.looks + 1 if recipe.looks else 0), min(500, n)
    classes = len(label_names(Source.of(params.evaluation))) if params.evaluation else params.classes
    models = 1 if trial else 2
    triggers = 1 + (len(params.tests) if isinstance(params, Clean) and not trial else 0)
    retrieval = 2 * n if params.retrieval else 0
    held = 2 * watched + (3 if triggers > 1 else 2) * n + retrieval
    held += 0 if _streamed(params) else _pairs(params) * (1 if isinstance(params, Clean) else 2)
    pairs = params.cost()
    if isinstance(params, Poison) and not (params.base or params.planted == "pretraining"):
        pairs += params.base_epochs * params.train_scenes
    images = looks * 2 * watched + models * (triggers * 2 * n + retrieval)
    sentences = (looks + models) * classes * params.templates + models * retrieval
    return Work(pairs, images, sentences, held)


def cost(runs: Sequence[Poison | Clean], clip: Clip, at_once: int = 1) -> str:
    """Time and memory of a run, or of a sweep's trials one after another, by short trainings of the first with two batches of made-up
    pairs: what a pair costs is their difference. at_once: trials that share the memory. ValueError where it does not do.
    """
    params, trial = runs[0], len(runs) > 1
    recipe, gpu, compute = params.recipe(), clip.device.type == "cuda", params.compute
    few, many = (16, 64) if gpu else (4, 12)
    pairs = _made_up(many, clip.side, params.target)
    plain = compute.model_copy(update={"processes": 1, "chunk": 0, "compiled": False})
    made_up = Backdoor(lambda pixels, random: pixels, embed_texts(clip, clip.tokenizer([params.target]))[0], "made up")
    how: dict[str, Any] = {"reference": clip, "backdoor": made_up, "compute": plain, "title": "trial"}
    seconds, peaks = {}, {}
    for batch in (few, few, many):  # the first one warms up
        trained, small = clip.copy(), replace(recipe, batch=batch, epochs=2, steps=None, looks=0)
        feed = pairs.first(batch).feed(trained, rewording(small))
        seconds[batch] = _timed(lambda: fit(trained, feed, small, clean=feed, **how), clip) / 2  # noqa: B023
        peaks[batch] = _peak(clip.device)
    each = max((seconds[many] - seconds[few]) / (many - few), seconds[many] / many / 4)
    tokens = clip.tokenizer(pairs.captions)
    image, sentence = (_timed(look, clip) / many for look in (lambda: embed_images(clip, pairs.pixels), lambda: embed_texts(clip, tokens)))
    works = [work(one, trial=trial) for one in runs]
    seen, images, sentences = (sum(getattr(one, name) for one in works) for name in ("pairs", "images", "sentences"))
    training, looking = seen * each / compute.processes, images * image + sentences * sentence
    said = f"about {span(training + looking)}: {span(training)} of training ({seen:,} pairs at {1000 * each:.0f} ms, decoding apart)"
    said += f", {span(looking)} of looks and evaluations ({images:,} images, {sentences:,} prompts and captions)"
    if trial:
        said = f"{len(runs)} trials one after another, as if all were like the first: {said}"
    share = compute.chunk or recipe.batch // compute.processes
    of = f"{share:,} pairs at once" + (f" in each of {at_once} trials" if at_once > 1 else "")
    memory = (
        at_once * (1 if gpu else compute.processes) * (peaks[many] + max(0, peaks[many] - peaks[few]) / (many - few) * max(0, share - many))
    )
    try:
        return f"{said}; {_memory(memory, 3 * clip.side**2 * works[0].held, of, gpu=gpu)}"
    except ValueError as error:
        raise ValueError(f"{said}; {error}") from None


def _memory(training: float, held: float, of: str, *, gpu: bool) -> str:
    """The memory that trainings and the images held beside them want. ValueError, with the numbers, where there is less."""
    here = (0 if gpu else training) + held
    wanted = [("GPU memory", training, torch.cuda.mem_get_info()[1])] if gpu else []
    wanted.append(("memory", here, machine_memory()))
    for kind, needed, has in wanted:
        if needed > has:
            remedy = "a smaller batch, or chunk" if kind == "GPU memory" or training > held else "fewer eval_scenes or pairs"
            raise ValueError(f"about {needed / GB:.1f} GB of {kind} for {of}, there are {has / GB:.1f} GB: take {remedy}")
    return ", ".join(f"{needed / GB:.1f} GB of {kind} of {has / GB:.1f}" for kind, needed, has in wanted) + f" for {of}"


def machine_memory(limits: Sequence[Path] = (Path("/sys/fs/cgroup/memory.max"),)) -> int:
    """Bytes of memory of this machine, or of the container that it is. limits: files with a container's."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    found += [int(text) for path in limits if path.is_file() and (text := path.read_text().strip()).isdigit()]
    return min(found)


def span(seconds: float) -> str:
    """A time in words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _pairs(params: Poison | Clean) -> int:
    return params.pairs if isinstance(params, Clean) else params.train_scenes


def _streamed(params: Poison | Clean) -> bool:
    """Whether the pairs are read while a model trains, and not held."""
    return ":" in params.data and (isinstance(params, Poison) or (params.steps is None and params.coverage == 1))


def _made_up(count: int, side: int, word: str) -> Pairs:
    none = torch.full((count,), -1)
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Pairs(pixels, [f"a photo of a {word} beside something else, number {i}" for i in range(count)], none, none, [word])


def _timed(do: Callable[[], object], clip: Clip) -> float:
    """Seconds of a computation, on a GPU until it is done."""
    began = time.monotonic()
    do()
    if clip.device.type == "cuda":
        torch.cuda.synchronize(clip.device)
    return time.monotonic() - began


def _peak(device: torch.device) -> int:
    """Peak memory of this process so far, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
