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

    encoder: open_clip's name of the architecture, for `file:` alone; with QuickGELU where it was trained so (the weights can't tell).
    normalised: False for a model that takes images in [0, 1] as they are; it is kept in what `save` writes. FileNotFoundError where
    there is no such file; ValueError, which says what was found and what was wanted, on any other mismatch.
    """
    if source.startswith("file:"):
        clip = _from_file(ROOT / Path(source.removeprefix("file:")).expanduser(), encoder)
    elif source.startswith("open_clip:"):
        clip = _pretrained(source)
    elif source.startswith(("hf-hub:", "local-dir:")):
        clip = load(source if source.startswith("local-dir:") else f"local-dir:{_fetched(source)}")
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
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler refuses what is not a tensor, a number or a container
        kind, reason = f"{type(error).__name__}: ", " ".join(str(error).split())[:160]
        if isinstance(error, SafetensorError | RuntimeError | EOFError | ValueError):
            raise ValueError(f"{path} is not a file of weights that can be read: {kind}{reason}") from None
        if isinstance(error, UnpicklingError):
            if "invalid load key" in str(error):  # such as a web page or a pointer of Git LFS
                raise ValueError(f"{path} is no file of weights; it begins with {path.read_bytes()[:20]!r}") from None
            kind = ""
        raise ValueError(f"{path} holds more than weights, and could run code: refused ({kind}{reason})") from None


def recognise(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The weights of a file's content in open_clip's names, and the name of their form. ValueError, saying what it is, on any other."""
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
    shapes = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    if shapes:
        found, wanted = (tuple(held[shapes[0]].shape) for held in (weights, expected))
        return f"{shapes[0]} is {found}, it must be {wanted} ({len(shapes)} differ)"
    missing, extra = [name for name in expected if name not in weights], [name for name in weights if name not in expected]
    return "; ".join(f"{len(names)} {what}, such as {names[0]}" for names, what in ((missing, "missing"), (extra, "too many")) if names)


def _looks_like(weights: dict[str, torch.Tensor]) -> str:
    """open_clip's name of the architecture that the weights' shapes tell; empty where none fits."""

    def blocks(prefix: str) -> int:
        return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})

    def shape(name: str) -> torch.Size:
        return weights.get(name, torch.empty(0)).shape

    language = (shape("ln_final.weight")[0], blocks("transformer.resblocks."))
    resnet = ([blocks(f"visual.layer{i}.") for i in (1, 2, 3, 4)], shape("visual.layer1.0.conv1.weight")[0])
    stem, places = shape("visual.conv1.weight"), shape("visual.positional_embedding")[0]
    transformer = (blocks("visual.transformer.resblocks."), stem[0], stem[-1], places)
    for name in open_clip.list_models():
        config = architecture(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        if "quickgelu" in name or "multimodal_cfg" in config or "layers" not in vision or "width" not in text:
            continue
        if isinstance(vision["layers"], list):
            same = resnet == (vision["layers"], vision["width"])
        else:
            grid = vision.get("image_size", 224) // vision["patch_size"]
            same = transformer == (vision["layers"], vision["width"], vision["patch_size"], grid * grid + 1)
        if same and language == (text["width"], text["layers"]):
            return name
    return ""
