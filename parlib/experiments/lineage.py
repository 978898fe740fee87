"""What a run builds on: checkpoints, poisoned models and their triggers, and the images that it trains and is evaluated on."""

from dataclasses import replace
from typing import Any

import torch

from parlib.cache import read_tensors
from parlib.data.pairs import TEMPLATES, Pairs, class_index
from parlib.data.scenes import covered, load_scenes
from parlib.data.synthetic import load_synthetic
from parlib.experiments.params import Attacked, Training
from parlib.external.batches import Skipped
from parlib.external.files import Source
from parlib.external.rows import label_names
from parlib.external.stream import Stream, captioned, labelled
from parlib.model.checkpoints import read_checkpoint
from parlib.model.clip import Clip
from parlib.model.preparation import Preparation
from parlib.records.store import artifact_file


def open_checkpoint(source: str, params: Training) -> Clip:
    """A checkpoint on the device that it is trained on. ValueError where it takes other images than the encoder named."""
    clip = read_checkpoint(source, encoder=params.encoder, normalised=params.normalised)
    clip.net.to(params.compute.device)
    return clip


def preparation(clip: Clip | None, params: Attacked) -> Preparation:
    """How external images become what a model takes; without one, what its encoder usually takes."""
    own = Preparation(params.side) if clip is None else clip.preparation
    return replace(own, resize="squash") if params.resize == "squash" else own


def load_pairs(
    data: str,
    n: int,
    params: Attacked,
    split: str = "clean",
    *,
    clip: Clip | None = None,
    coverage: float = 1.0,
    held: bool = False,
    seed: int = 0,
) -> Pairs | Stream:
    """n pairs to train on: `scenes` (of a split), the synthetic set of that name, or LAYOUT:PATH for external data, which are read as
    they are needed.

    clip: the model that external images are prepared for; else one of its encoder. coverage: the share of the classes that
    the pairs show or name. held: n pairs of external data, drawn from the seed, are all that there is, and stay in memory; so they
    do where coverage is below 1. seed: of scenes and of what is drawn. ValueError where fewer are usable.
    """
    if ":" not in data:
        if data == "scenes":
            return load_scenes(split, n, params.classes, seed=seed, coverage=coverage, target=params.target)
        return load_synthetic(data, n, params.classes)
    stream = Stream(data, n, preparation(clip, params), Skipped(params.max_skipped))
    if coverage == 1:
        return stream.drawn(n, seed=seed) if held else stream
    names = label_names(Source.of(params.evaluation))
    return stream.drawn(n, names, covered(names, coverage, params.target), seed=seed)


def evaluation_images(params: Attacked, clip: Clip | None = None) -> tuple[Pairs, Pairs | None]:
    """What a run evaluates a model on: scenes of its split, or the labelled images that it names; and captioned ones, where it names them.

    ValueError where the target is no class of the labelled images, or all of either show it.
    """
    templates = TEMPLATES[: params.templates]
    if not params.evaluation:
        return replace(load_scenes(params.split, params.eval_scenes, params.classes), templates=templates), None
    found = labelled_images(params, params.eval_scenes, clip)
    check_others(params.evaluation, found, params.target)
    if not params.retrieval:
        return found, None
    others = captioned(params.retrieval, params.eval_scenes, preparation(clip, params), params.max_skipped, params.target)
    check_others(params.retrieval, others, params.target)
    return found, others


def labelled_images(params: Attacked, n: int, clip: Clip | None = None, seed: int = 0) -> Pairs:
    """n of the labelled images that a run names in `evaluation`, drawn from a seed."""
    found = labelled(params.evaluation, n, preparation(clip, params), params.max_skipped, seed)
    return replace(found, templates=TEMPLATES[: params.templates])


def check_others(name: str, images: Pairs, target: str) -> None:
    """ValueError where all images show the target."""
    if images.shows(class_index(target, images.names)).all():
        raise ValueError(f"every image of {name} shows {target!r}: none is left to measure the attack success rate on")


def watched_images(params: Attacked, evaluated: Pairs) -> Pairs:
    """At most 500 images for the looks while a model trains: validation scenes, or the first of the labelled images evaluated on."""
    found = evaluated if params.evaluation else load_scenes("validation", params.eval_scenes, params.classes)
    return replace(found.first(min(500, len(found))), templates=TEMPLATES[: params.templates])


def learned_pattern(record: dict[str, Any] | None) -> torch.Tensor | None:
    """The pattern of a planted trigger that was learned; None for any other.

    FileNotFoundError, naming the command that makes it, where it is gone.
    """
    if record is None or "pattern" not in record["artifacts"]:
        return None
    found = read_tensors(artifact_file(record, "pattern"))
    assert found is not None  # its sha256 is the record's
    return found[0]["pattern"]
