"""Forms of checkpoints: weights are found in what a file holds, given open_clip's names, and compared with what an encoder has."""

import re
from pathlib import Path
from typing import Any

import open_clip
import torch

from parlib.model import hugging_face
from parlib.model.clip import architecture

OPENAI = "OpenAI's code"
_OPENAI = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's code keeps among the weights
_WRAPPED = ("state_dict", "model_state_dict", "model", "module")
_AVERAGED = ("model_ema", "ema", "ema_state_dict", "state_dict_ema")  # moving averages of the weights
_AVERAGED_PART = re.compile(r"\.(model_ema|ema_model|ema)\.")  # of a name
# What training code puts anywhere into a name: torch.compile, FSDP and DataParallel, of parts too.
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
_COUNTERS = ("n_averaged", "decay", "num_updates")  # of moving averages: no weights


def recognise(content: Any, path: Path, kind: str = "") -> tuple[dict[str, torch.Tensor], str]:
    """The weights of a file's content in open_clip's names, and their form: what they were wrapped in, what was done to read them.

    kind: the file's form, where that is worth a word. ValueError, saying what was found, where it holds no weights.
    """
    form = [kind] if kind else []
    weights = _unnamed(_unwrapped(content, path, form), form)
    if any(name.startswith(("vision_model.", "text_model.")) for name in weights):
        weights = hugging_face.converted(weights, path)
        form.append(hugging_face.NAME)
    if all(name in weights for name in _OPENAI):
        weights = {name: value for name, value in weights.items() if name not in _OPENAI}
        form.append(OPENAI)
    return weights, ", ".join(form) or "plain state dict"


def _unwrapped(content: Any, path: Path, form: list[str]) -> dict[str, torch.Tensor]:
    """The tensors by name inside up to three wrappings, each of which is told; plain weights go before averaged ones."""
    for _ in range(3):
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}, not weights by name")
        plain, averaged = ([name for name in names if _holds_tensors(content.get(name))] for names in (_WRAPPED, _AVERAGED))
        if not plain and not averaged and not any(isinstance(value, torch.Tensor) for value in content.values()):
            others = [name for name, value in content.items() if _holds_tensors(value)]
            plain = others if len(others) == 1 else []
        if not plain and not averaged:
            break
        inside = (plain or averaged)[0]
        form.append(f'{{"{inside}": ...}}')
        if averaged:
            form.append(f'averaged weights "{averaged[0]}" left out' if plain else "averaged weights")
        content = content[inside]
    weights = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not weights:
        held = ", ".join(sorted(map(str, content)))[:120]
        raise ValueError(f"{path} holds no weights, nor any of {', '.join((*_WRAPPED, *_AVERAGED))}; it holds: {held or 'nothing'}")
    if strange := [name for name, value in weights.items() if value.layout != torch.strided or value.is_quantized or value.is_meta]:
        raise ValueError(f"{path}: {strange[0]} is no plain tensor, but a sparse or quantised one, or one without its values")
    return weights


def _holds_tensors(content: Any, depth: int = 3) -> bool:
    """Whether it is a dictionary of tensors, or one that holds such a one in a known wrapping."""
    if not isinstance(content, dict) or not depth:
        return False
    inside = any(_holds_tensors(content.get(name), depth - 1) for name in (*_WRAPPED, *_AVERAGED))
    return inside or any(isinstance(value, torch.Tensor) for value in content.values())


def _unnamed(weights: dict[str, torch.Tensor], form: list[str]) -> dict[str, torch.Tensor]:
    """The weights without what training code put into their names, and without what is not the CLIP's; each is told."""
    for inside in _INSIDE:
        if any(f".{inside}" in f".{name}" for name in weights):
            weights = {f".{name}".replace(f".{inside}", ".")[1:]: value for name, value in weights.items()}
            form.append(f'"{inside}"')
    weights = {name: value for name, value in weights.items() if name.rpartition(".")[2] not in _COUNTERS}
    averaged = {name: found[0][1:] for name in weights if (found := _AVERAGED_PART.search(f".{name}"))}
    if 0 < len(averaged) < len(weights):
        weights = {name: value for name, value in weights.items() if name not in averaged}
        form.append(f'averaged weights "{next(iter(averaged.values()))}" left out')
    scales = [name for name in weights if name.endswith(".logit_scale")]
    if len(scales) != 1 or "logit_scale" in weights:
        return weights
    prefix = scales[0].removesuffix("logit_scale")  # what stands before it stands before all names of the CLIP
    found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    form.append(f'"{prefix}"' + (f", {len(weights) - len(found)} others left out" if len(found) < len(weights) else ""))
    return found


def fitted(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], form: str) -> tuple[dict[str, torch.Tensor], str]:
    """The weights with what may differ harmlessly as a model wants it, and their form with what was done."""
    found, said = dict(weights), [form]
    for name in ("logit_scale", "logit_bias"):
        if name in found and name in expected and found[name].shape != expected[name].shape and found[name].numel() == 1:
            found[name] = found[name].reshape(expected[name].shape)
            said.append(f"{name} of shape {tuple(weights[name].shape)}")
    counters = [name for name in expected if name.endswith(".num_batches_tracked") and name not in found]
    if counters:  # BatchNorm counts batches for a momentum that CLIP doesn't use
        found |= {name: torch.zeros_like(expected[name]) for name in counters}
        said.append("num_batches_tracked filled with 0")
    return found, ", ".join(said)


def mismatch(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    """What keeps the weights from being loaded strictly; empty where nothing does."""
    shapes = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    if shapes:
        found, wanted = (tuple(held[shapes[0]].shape) for held in (weights, expected))
        return f"{shapes[0]} is {found}, it must be {wanted} ({len(shapes)} differ)"
    missing, extra = [name for name in expected if name not in weights], [name for name in weights if name not in expected]
    return "; ".join(f"{len(names)} {what}, such as {names[0]}" for names, what in ((missing, "missing"), (extra, "too many")) if names)


def not_finite(weights: dict[str, torch.Tensor]) -> str:
    """Which tensor holds NaN or infinite values, and how many; empty where none does."""
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            return f"{name} has {int((~value.isfinite()).sum())} of {value.numel()} values NaN or infinite"
    return ""


def unlike(config: dict[str, Any], encoder: str) -> str:
    """In what a model's configuration differs from that of the encoder named; empty where it doesn't. QuickGELU may differ."""
    flat = []
    for one in (config, architecture(encoder)):
        text = {f"text {name}": value for name, value in one["text_cfg"].items()}
        flat.append({"embed_dim": one["embed_dim"]} | one["vision_cfg"] | text)
    for name in ("image_size", "embed_dim", "layers", "width", "patch_size", "timm_model_name", "text width", "text layers"):
        here, there = (one.get(name) for one in flat)
        if here != there:
            return f"{name} is {here}, not {there}"
    return ""


def looks_like(weights: dict[str, torch.Tensor]) -> str:
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
