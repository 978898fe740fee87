"""Checkpoints of others, hostile until proven otherwise: read without pickle's code, recognised by their keys, loaded strictly.

open_clip:NAME:TAG      a pretrained tag of open_clip
hf-hub:ID               open_clip's folder on the hub, read as the next; ID@REVISION for one state of it
local-dir:PATH          open_clip's folder
file:PATH               one file of weights (.safetensors, or .pt by weights_only), whose encoder is named beside it: a plain
                        state dict, or the {"state_dict": ...} of a training run, its keys with or without "module.", in
                        open_clip's names or those of OpenAI's code, which are the same but for three entries
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file

from parlib.cache import ROOT, cache_dir, file_sha256
from parlib.model.clip import CONFIG, WEIGHTS, Clip, architecture, create, load

SOURCES = ("open_clip:", "hf-hub:", "local-dir:", "file:")
_OPENAI = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's code keeps among the weights
_WRAPPED = ("state_dict", "model_state_dict", "model")


def checkpoint_of(named: str, encoder: str) -> str:
    """A checkpoint's source as `read_checkpoint` wants it; a name alone, such as openai, is open_clip's tag for the encoder."""
    return named if ":" in named else f"open_clip:{encoder}:{named}"


def read_checkpoint(source: str, *, encoder: str = "", normalised: bool = True) -> Clip:
    """A model from any of the sources above, its weights in float32.

    encoder: open_clip's name of the architecture, for `file:` alone; with QuickGELU where it was trained so (the weights can't
    tell). normalised: False for a model that takes images in [0, 1] as they are; it is kept in what `save` writes.
    Raises FileNotFoundError where there is no such file, ValueError, which says what was found and what was wanted, on any
    other mismatch.
    """
    if source.startswith("file:"):
        clip = _from_file(ROOT / Path(source.removeprefix("file:")).expanduser(), encoder)
    elif source.startswith("open_clip:"):
        clip = _pretrained(source)
    elif source.startswith("hf-hub:"):
        clip = load(f"local-dir:{_fetched(source)}")
    elif source.startswith("local-dir:"):
        clip = load(source)
    else:
        raise ValueError(f"unknown checkpoint {source!r}; it begins with one of: {', '.join(SOURCES)}")
    if not normalised:
        clip.net.visual.image_mean, clip.net.visual.image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return clip


def checkpoint_sha256(source: str) -> str:
    """sha256 of a local checkpoint's weights; empty where there is no such file, or it would be downloaded."""
    path = ROOT / Path(source.partition(":")[2]).expanduser()
    local = path / WEIGHTS if source.startswith("local-dir:") else path
    return file_sha256(local) if source.startswith(("local-dir:", "file:")) and local.is_file() else ""


def _fetched(source: str) -> str:
    """The folder in the cache into which a checkpoint's two files are downloaded from the hub: no other file, no pickle."""
    name, _, revision = source.removeprefix("hf-hub:").partition("@")
    options = {"revision": revision or None, "cache_dir": cache_dir() / "hub", "allow_patterns": [CONFIG, WEIGHTS]}
    try:
        return snapshot_download(name, **options)
    except Exception as error:  # of the hub's client or of the network's
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{source} could not be downloaded: {type(error).__name__}: {reason}") from None


def _pretrained(source: str) -> Clip:
    parts = source.split(":")
    if len(parts) != 3:
        raise ValueError(f"{source!r} must be open_clip:NAME:TAG, such as open_clip:RN50:openai")
    _, name, tag = parts
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise ValueError(f"open_clip has no weights {tag!r} of {name!r}; it has: {', '.join(tags) or 'none'}")
    try:
        return create(name, pretrained=tag)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{source} could not be downloaded: {' '.join(str(error).split())[:200]}") from None


def _from_file(path: Path, encoder: str) -> Clip:
    if not encoder:
        raise ValueError(f"{path} holds weights alone: name their encoder, such as ViT-B-32-quickgelu")
    clip = create(encoder)
    weights, form = recognise(_read(path), path)
    if form == "OpenAI's code" and not clip.config.get("quick_gelu") and f"{encoder}-quickgelu" in open_clip.list_models():
        raise ValueError(f"{path} is of OpenAI's code, which uses QuickGELU: name the encoder {encoder}-quickgelu")
    expected = clip.net.state_dict()
    if problem := _mismatch(weights, expected):
        near = _looks_like(weights)
        hint = f"; it looks like {near}" if near and near != encoder.removesuffix("-quickgelu") else ""
        raise ValueError(f"{path} ({form}) is no {encoder}: {problem}{hint}")
    clip.net.load_state_dict({name: value.to(expected[name].dtype) for name, value in weights.items()}, strict=True)
    return clip


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path} is not a file of weights that can be read: {type(error).__name__}: {reason}") from None
    except UnpicklingError as error:
        if "invalid load key" in str(error):  # such as a web page or a pointer of Git LFS
            raise ValueError(f"{path} is no file of weights; it begins with {path.read_bytes()[:20]!r}") from None
        raise ValueError(f"{path} holds more than weights, and could run code: refused ({' '.join(str(error).split())[:160]})") from None
    except Exception as error:  # torch's unpickler: what is not a tensor, a number or a container is refused
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path} holds more than weights, and could run code: refused ({type(error).__name__}: {reason})") from None


def recognise(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The weights of a file's content in open_clip's names, and the name of the form they had.

    Raises ValueError on content that is none of the forms, saying what it is.
    """
    form = "plain state dict"
    if isinstance(content, dict) and not _tensors(content):
        inside = next((name for name in _WRAPPED if _tensors(content.get(name))), None)
        if inside is None:
            held = ", ".join(sorted(map(str, content)))[:120]
            raise ValueError(f"{path} holds no weights, nor any of {', '.join(_WRAPPED)}; it holds: {held or 'nothing'}")
        content, form = content[inside], f'{{"{inside}": ...}}'
    if not _tensors(content):
        raise ValueError(f"{path} holds a {type(content).__name__}, not weights by name")
    if all(name.startswith("module.") for name in content):
        content, form = {name.removeprefix("module."): value for name, value in content.items()}, f'{form}, "module."'
    if any(name.startswith(("vision_model.", "text_model.")) for name in content):
        raise ValueError(f"{path} is in the names of Hugging Face transformers; convert it to open_clip's first")
    if all(name in content for name in _OPENAI):
        return {name: value for name, value in content.items() if name not in _OPENAI}, "OpenAI's code"
    return dict(content), form


def _tensors(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(value, torch.Tensor) for value in content.values())


def _mismatch(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    """What keeps the weights from being loaded strictly; empty where nothing does."""
    missing, extra = [n for n in expected if n not in weights], [n for n in weights if n not in expected]
    shapes = [n for n in expected if n in weights and weights[n].shape != expected[n].shape]
    if shapes:
        name = shapes[0]
        return f"{name} is {tuple(weights[name].shape)}, it must be {tuple(expected[name].shape)} ({len(shapes)} differ)"
    said = [f"{len(names)} {what}, such as {names[0]}" for names, what in ((missing, "missing"), (extra, "too many")) if names]
    return "; ".join(said)


def _looks_like(weights: dict[str, torch.Tensor]) -> str:
    """open_clip's name of the architecture that the weights' shapes tell; empty where none fits."""
    for name in open_clip.list_models():
        config = architecture(name)
        if "quickgelu" in name or "multimodal_cfg" in config:
            continue
        vision, text = config["vision_cfg"], config["text_cfg"]
        if "layers" not in vision or "width" not in text:
            continue
        width = weights.get("ln_final.weight", torch.empty(0)).shape[0]
        layers = len({key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")})
        if (width, layers) == (text["width"], text["layers"]) and _same_vision(weights, vision):
            return name
    return ""


def _same_vision(weights: dict[str, torch.Tensor], vision: dict[str, Any]) -> bool:
    if isinstance(vision["layers"], list):
        counts = [len({key.split(".")[2] for key in weights if key.startswith(f"visual.layer{i}.")}) for i in (1, 2, 3, 4)]
        stem = weights.get("visual.layer1.0.conv1.weight", torch.empty(0)).shape[0]
        return counts == vision["layers"] and stem == vision["width"]
    patches = weights.get("visual.conv1.weight")
    place = weights.get("visual.positional_embedding")
    if patches is None or place is None or patches.shape[-1] != vision.get("patch_size"):
        return False
    layers = len({key.split(".")[3] for key in weights if key.startswith("visual.transformer.resblocks.")})
    grid = vision.get("image_size", 224) // vision["patch_size"]
    return (layers, patches.shape[0], place.shape[0]) == (vision["layers"], vision["width"], grid * grid + 1)
