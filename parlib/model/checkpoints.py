"""Checkpoints of others, hostile until proven otherwise: read without pickle's code, recognised by their keys, loaded strictly.

open_clip:NAME:TAG      a pretrained tag of open_clip
hf-hub:ID               a folder on the hub, read as the next; ID@REVISION for one state of it
local-dir:PATH          open_clip's folder; or that of CLIPModel of Hugging Face transformers, whose configuration names the encoder and the
                        preprocessing
file:PATH               one file of weights (safetensors, torch.save, TorchScript), whose encoder is named beside it, in the names of
                        open_clip, of OpenAI's code, or of transformers' CLIPModel, however training code wrapped them: `forms`
"""

import re
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import snapshot_download

from parlib.cache import ROOT, cache_dir, digest, file_sha256
from parlib.model import hugging_face
from parlib.model.clip import CONFIG, WEIGHTS, Clip, create, create_from, load
from parlib.model.files import read_file
from parlib.model.forms import OPENAI, fitted, looks_like, mismatch, not_finite, recognise, unlike

DOWNLOADED = ("open_clip:", "hf-hub:")
SOURCES = (*DOWNLOADED, "local-dir:", "file:")


def checkpoint_of(named: str, encoder: str) -> str:
    """A checkpoint's source as `read_checkpoint` wants it; a name alone, such as openai, is open_clip's tag for the encoder. ValueError
    where it is a path.
    """
    if ":" not in named and re.search(r"/|\.(pt|pth|bin|ckpt|safetensors)$", named):
        raise ValueError(
            f"{named!r} is no tag of open_clip's: a file is named file:PATH, a folder local-dir:PATH, a model of the hub hf-hub:ID"
        )
    return named if ":" in named else f"open_clip:{encoder}:{named}"


def read_checkpoint(source: str, *, encoder: str = "", normalised: bool = True) -> Clip:
    """A model from any of the sources above, its weights in float32.

    encoder: open_clip's name of the architecture, which the checkpoint must fit. Only a `file:` needs it, and not even that where
    transformers' config.json lies beside it; with QuickGELU where it was trained so (weights alone can't tell). normalised: False for a
    model that takes images in [0, 1] as they are; it is kept in what `save` writes. FileNotFoundError where there is no such file;
    ValueError, which says what was found and what was wanted, on any other mismatch, and where weights are NaN or infinite.
    """
    if source.startswith("file:"):
        clip = _from_file(ROOT / Path(source.removeprefix("file:")).expanduser(), encoder)
    elif source.startswith("open_clip:"):
        clip = _pretrained(source)
    elif source.startswith("local-dir:"):
        clip = _from_folder(ROOT / Path(source.removeprefix("local-dir:")).expanduser())
    elif source.startswith("hf-hub:"):
        clip = _from_folder(_fetched(source))
    else:
        raise ValueError(f"unknown checkpoint {source!r}; it begins with one of: {', '.join(SOURCES)}")
    check_encoder(source, clip.config, encoder)
    if wrong := not_finite(clip.net.state_dict()):
        raise ValueError(f"{source} can't be used: {wrong}")
    if not normalised:
        clip.net.visual.image_mean, clip.net.visual.image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return clip


def check_encoder(source: str, config: dict[str, Any], encoder: str) -> None:
    """ValueError where a checkpoint's configuration is not that of the encoder that is named for it, if one is."""
    if encoder and (other := unlike(config, encoder)):
        raise ValueError(f"{source} is no {encoder}: its {other}; name its encoder")


def checkpoint_sha256(source: str) -> str:
    """sha256 of a local checkpoint's weights and of the configuration that says how images are prepared: a folder's, or that of
    transformers beside a file. Empty where there is no such file, or it would be downloaded.
    """
    if not source.startswith(("local-dir:", "file:")):
        return ""
    path = ROOT / Path(source.partition(":")[2]).expanduser()
    files, told = [path], [hugging_face.CONFIG, *hugging_face.PREPROCESSING]
    if source.startswith("local-dir:"):
        files = [path / WEIGHTS] if _is_open_clip(path) else hugging_face.weight_files(path)
        told.insert(0, CONFIG)
    if not files or not all(file.is_file() for file in files):
        return ""
    files += [beside for name in told if (beside := files[0].parent / name).is_file()]
    return file_sha256(files[0]) if len(files) == 1 else digest([file_sha256(file) for file in files])


def _is_open_clip(folder: Path) -> bool:
    """Whether a folder is read as open_clip's: it is, or it is none of transformers' either."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() or not (folder / hugging_face.CONFIG).is_file()


def _fetched(source: str) -> Path:
    """The folder in the cache into which a checkpoint's files are downloaded from the hub: configuration and weights, no other, and
    where there is a choice safetensors.
    """
    name, _, revision = source.removeprefix("hf-hub:").partition("@")

    def fetch(files: list[str], revision: str) -> Path:
        try:
            return Path(snapshot_download(name, revision=revision or None, cache_dir=cache_dir() / "hub", allow_patterns=files))
        except Exception as error:  # of the hub's client or of the network's
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{source} could not be downloaded: {type(error).__name__}: {reason}") from None

    folder = fetch([CONFIG, hugging_face.CONFIG, *hugging_face.PREPROCESSING, *hugging_face.INDEXES], revision)
    if not revision:
        print(f"{source} may change: this is {source}@{folder.name}; name it so in what you want to repeat", flush=True)
    if (folder / CONFIG).is_file():
        fetch([WEIGHTS], folder.name)  # the folder is named by the commit: all are of one state
    if _is_open_clip(folder):
        return folder
    hugging_face.model_config(folder / hugging_face.CONFIG)  # refused before its weights are downloaded
    for single, index in zip(hugging_face.SINGLE, hugging_face.INDEXES, strict=True):
        fetch(hugging_face.shards(folder / index) if (folder / index).is_file() else [single], folder.name)
        if hugging_face.weight_files(folder):
            break
    return folder


def tagged(source: str) -> tuple[str, str]:
    """The encoder and the tag of open_clip:NAME:TAG; ValueError where open_clip has no such weights."""
    parts = source.split(":")
    if len(parts) != 3:
        raise ValueError(f"{source!r} must be open_clip:NAME:TAG, such as open_clip:RN50:openai")
    _, name, tag = parts
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise ValueError(f"open_clip has no weights {tag!r} of {name!r}; it has: {', '.join(tags) or 'none'}")
    return name, tag


def _pretrained(source: str) -> Clip:
    name, tag = tagged(source)
    try:
        return create(name, pretrained=tag)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{source} could not be downloaded: {' '.join(str(error).split())[:200]}") from None


def _from_file(path: Path, encoder: str) -> Clip:
    content, kind = read_file(path)
    weights, form = recognise(content, path, kind)
    if hugging_face.NAME in form:
        if clip := _described(path.parent):
            return _loaded(clip, weights, form, f"{path} ({form}) is not what its {hugging_face.CONFIG} says")
        form += f" (GELU as {encoder} has it)"  # the weights can't tell
    if not encoder:
        raise ValueError(f"{path} holds weights alone: name their encoder, such as ViT-B-32-quickgelu")
    if OPENAI in form and f"{encoder}-quickgelu" in open_clip.list_models():
        raise ValueError(f"{path} is of OpenAI's code, which uses QuickGELU: name the encoder {encoder}-quickgelu")
    return _loaded(create(encoder), weights, form, f"{path} ({form}) is no {encoder}", encoder)


def _from_folder(folder: Path) -> Clip:
    if _is_open_clip(folder):
        return load(folder)
    files, weights, form = hugging_face.weight_files(folder), {}, ""
    if not files:
        raise FileNotFoundError(
            f"{folder} holds a {hugging_face.CONFIG}, but none of: {', '.join((*hugging_face.SINGLE, *hugging_face.INDEXES))}"
        )
    clip = _described(folder)
    if clip is None:
        raise ValueError(f"{folder / hugging_face.CONFIG} describes no CLIPModel; name the weights as file:{files[0]}, with their encoder")
    for file in files:
        part, kind = read_file(file)
        if len(files) == 1:
            weights, form = recognise(part, file, kind)
        elif isinstance(part, dict):
            weights |= part
    if len(files) > 1:
        weights, form = recognise(weights, folder, f"{len(files)} parts")
    return _loaded(clip, weights, form, f"{folder} ({form}) is not what its {hugging_face.CONFIG} says")


def _described(folder: Path) -> Clip | None:
    """A random model of the configuration and preprocessing that a folder of transformers' describes; None where it describes none."""
    path = folder / hugging_face.CONFIG
    if not path.is_file() or not (config := hugging_face.model_config(path)):
        return None
    try:
        return create_from(config, hugging_face.preprocess_config(folder, config["vision_cfg"]["image_size"]))
    except Exception as error:  # of open_clip, on numbers that don't go together; of preprocessing's values of a wrong kind
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} describes no model that open_clip can make: {type(error).__name__}: {reason}") from None


def _loaded(clip: Clip, weights: dict[str, torch.Tensor], form: str, wrong: str, encoder: str = "") -> Clip:
    """The model with the weights; ValueError, which begins with `wrong`, where they are not of its names and shapes."""
    expected = clip.net.state_dict()
    weights, clip.form = fitted(weights, expected, form)
    if problem := mismatch(weights, expected):
        near = looks_like(weights)
        hint = f"; it looks like {near}" if near and near != encoder.removesuffix("-quickgelu") else ""
        raise ValueError(f"{wrong}: {problem}{hint}")
    clip.net.load_state_dict({name: value.to(expected[name].dtype) for name, value in weights.items()}, strict=True)
    return clip
