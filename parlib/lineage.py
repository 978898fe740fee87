"""What a run builds on: its poisoned model, the trigger that was planted in it, and data of others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from parlib.cache import atomic_folder, cache_dir, digest, file_sha256
from parlib.checkpoints import SOURCES, checkpoint_of, read_checkpoint
from parlib.data import TEMPLATES, Pairs, class_index, load_scenes
from parlib.ids import run_id, scale_defaults
from parlib.model import WEIGHTS, Clip, architecture, load, save
from parlib.params import Attack, Clean, Params, Poison, Training, check
from parlib.presets import preset
from parlib.records import command, located, read
from parlib.streams import captioned, labelled
from parlib.train import Trained


def upstream(params: Clean) -> tuple[Clip, dict[str, Any] | None]:
    """02's poisoned model, on the device that it is cleaned on, and its record, None for an external checkpoint.

    Raises FileNotFoundError, naming the command that makes it, when the run is missing, ValueError when the checkpoint
    can't be read or takes other images than the encoder named.
    """
    source, record = source_of(params)
    if record is not None:
        intact(record, "weights")
    return open_checkpoint(source, params), record


def open_checkpoint(source: str, params: Training) -> Clip:
    """A checkpoint on the device that it is trained on. ValueError where it takes other images than the encoder named."""
    clip = read_checkpoint(source, encoder=params.encoder, normalised=params.normalised)
    if other := _unlike(clip.config, architecture(params.encoder)):
        raise ValueError(f"{source} is no {params.encoder}: its {other}; name its encoder")
    clip.net.to(params.compute.device)
    return clip


def _unlike(config: dict[str, Any], named: dict[str, Any]) -> str:
    """In what a model's configuration differs from that of the encoder named; empty where it doesn't. QuickGELU may differ."""
    flat = []
    for one in (config, named):
        text = {f"text {name}": value for name, value in one["text_cfg"].items()}
        flat.append({"embed_dim": one["embed_dim"]} | one["vision_cfg"] | text)
    for name in ("image_size", "embed_dim", "layers", "width", "patch_size", "timm_model_name", "text width", "text layers"):
        here, there = (one.get(name) for one in flat)
        if here != there:
            return f"{name} is {here}, not {there}"
    return ""


def imported(params: Poison) -> Trained:
    """01's clean base where it is a checkpoint: kept in the cache as open_clip's folder, as what was trained here is."""
    clip = open_checkpoint(checkpoint_of(params.base, params.encoder), params)
    folder = cache_dir() / "models" / digest("imported", clip.key)[:32]
    if not (folder / WEIGHTS).exists():
        with atomic_folder(folder) as temporary:
            save(clip, temporary)
    return Trained(clip, folder / WEIGHTS, file_sha256(folder / WEIGHTS), {}, 0.0)


def evaluation_images(params: Attack) -> tuple[Pairs, Pairs | None]:
    """What a run evaluates on: scenes of its split, or the labelled images that it names; and captioned ones, where it names them.

    ValueError where the target is no class of the labelled images, or all of either show it.
    """
    templates = TEMPLATES[: params.templates]
    if not params.evaluation:
        return replace(load_scenes(params.split, params.eval_scenes, params.classes), templates=templates), None
    found = replace(labelled(params.evaluation, params.eval_scenes, params.side, params.max_skipped), templates=templates)
    others = captioned(params.retrieval, params.eval_scenes, params.side, params.max_skipped, params.target) if params.retrieval else None
    for name, images in {params.evaluation: found, params.retrieval: others}.items():
        if images is not None and images.shows(class_index(params.target, images.names)).all():
            raise ValueError(f"every image of {name} shows {params.target!r}: none is left to measure the attack success rate on")
    return found, others


def watched_images(params: Attack, evaluated: Pairs) -> Pairs:
    """At most 500 images for the looks while a model trains: validation scenes, or the first of the labelled images evaluated on."""
    found = evaluated if params.evaluation else load_scenes("validation", params.eval_scenes, params.classes)
    return replace(found.first(min(500, len(found))), templates=TEMPLATES[: params.templates])


def base(params: Clean) -> Clip:
    """The clean base from which the poisoned model of a cleaning was made; FileNotFoundError naming the command that makes it."""
    _, record = source_of(params)
    if record is None:
        raise ValueError(f"{params.poisoned} comes without its clean base; name a run of 01_poison")
    return load(f"local-dir:{intact(record, 'base_weights').parent}")


def source_of(params: Clean) -> tuple[str, dict[str, Any] | None]:
    """Where 02's poisoned model is, as `read_checkpoint` wants it, and its record."""
    if params.poisoned.startswith(SOURCES):
        return params.poisoned, None
    run = params.poisoned or poisoned_run(params)
    record = read(params.scale, run)
    if record["notebook"] != "01_poison":
        raise ValueError(f"{run} is no poisoned model; name a run of 01_poison or a checkpoint: {', '.join(SOURCES)}")
    for name in ("encoder", "trigger", "attack", "target", "classes"):
        if record["params"].get(name, getattr(params, name)) != getattr(params, name):  # an older record may not know it; it is stale
            raise ValueError(f"{run} was made with {name} = {record['params'][name]!r}, not {getattr(params, name)!r}: say the same here")
    return f"local-dir:{located(record['artifacts']['weights']).parent}", record


def intact(record: dict[str, Any], name: str) -> Path:
    """The file of a record's artifact; FileNotFoundError, naming the command that makes it, where it is gone or another one.

    ValueError where the record names no such artifact.
    """
    if name not in record["artifacts"]:
        raise ValueError(f"{record['run']} keeps no {name.replace('_', ' ')}; it keeps: {', '.join(record['artifacts']) or 'nothing'}")
    artifact = record["artifacts"][name]
    path = located(artifact)
    if not path.exists() or file_sha256(path) != artifact["sha256"]:
        remedy = command(record["run"], record["params"]["scale"])
        raise FileNotFoundError(f"the {name.replace('_', ' ')} of {record['run']} are gone or damaged; make them again with: {remedy}")
    return path


def planted(params: Clean, record: dict[str, Any] | None) -> dict[str, Any]:
    """Options of the trigger to test on a cleaned model: as it was planted, unless the parameters say otherwise.

    FileNotFoundError, naming the command that makes it, where a learned pattern is gone.
    """
    found = record["params"] if record is not None else {}
    patch, strength = params.patch or found.get("patch", 0), params.strength or found.get("strength", 0.0)
    return preset(params.trigger, params.target, params.side, patch=patch, strength=strength) | learned_pattern(record)


def learned_pattern(record: dict[str, Any] | None) -> dict[str, torch.Tensor]:
    """The pattern of a planted trigger that was learned, as an option of the trigger; empty for any other."""
    if record is None or "pattern" not in record["artifacts"]:
        return {}
    with safe_open(intact(record, "pattern"), "pt") as file:
        return {"pattern": file.get_tensor("pattern")}


def poisoned_run(params: Clean) -> str:
    """The 01 run that a cleaning starts from when none is named: the same encoder, trigger, target and seed."""
    return run_id("01_poison", poisoned_params(params))


def poisoned_params(params: Clean) -> Params:
    """Parameters of that 01 run."""
    same = {name: getattr(params, name) for name in ("scale", "encoder", "trigger", "attack", "target", "seed")}
    return check("01_poison", scale_defaults("01_poison", params.scale, params.encoder) | same)
