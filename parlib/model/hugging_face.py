"""CLIPModel of Hugging Face transformers in open_clip's terms: names of weights, configuration, preprocessing."""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch

NAME = "CLIPModel of Hugging Face transformers"
CONFIG, PREPROCESSING = "config.json", ("preprocessor_config.json", "processor_config.json")
# Weights as a folder holds them: in one file, or in parts that an index lists. The first that is there is read.
SINGLE, INDEXES = ("model.safetensors", "pytorch_model.bin"), ("model.safetensors.index.json", "pytorch_model.bin.index.json")

_TOWERS = {"vision_model": "visual.", "text_model": ""}
_SINGLE_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = ("visual_projection.weight", "text_projection.weight")  # open_clip multiplies from the right
_LAYER_NAMES = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_LAYER = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # one matrix in open_clip

# transformers' own defaults: a configuration may leave out what equals them.
_SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
_VISION = _SHARED | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224, "patch_size": 32}
_TEXT = _SHARED | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_TEXT |= {"max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": 49407}
_VOCABULARY, _LAST = 49408, 49407  # of CLIP's tokenizer, and its token of a text's end
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # pillow's numbers


def converted(weights: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Weights of a CLIPModel in open_clip's names. ValueError, naming what is strange, where they are of another model."""
    if "logit_bias" in weights or any(name.startswith("vision_model.head.") for name in weights):
        raise ValueError(
            f"{path} is a SigLIP model of Hugging Face transformers (it has a logit_bias or a pooling head); only CLIPModel is read"
        )
    found, apart = {}, {}
    for name, value in weights.items():
        if name.endswith(".position_ids"):  # 0, 1, 2, ...: a buffer of older versions
            continue
        layer = _LAYER.fullmatch(name)
        if name in _SINGLE_NAMES:
            found[_SINGLE_NAMES[name]] = value.T.contiguous() if name in _TRANSPOSED else value
        elif layer and layer[3] in _LAYER_NAMES:
            found[f"{_block(layer)}{_LAYER_NAMES[layer[3]]}.{layer[4]}"] = value
        elif layer and layer[3] in _QKV:
            apart.setdefault(f"{_block(layer)}attn.in_proj_{layer[4]}", {})[layer[3]] = value
        else:
            raise ValueError(f"{path} is in the names of Hugging Face transformers, but no CLIPModel: it has {name}")
    for name, parts in apart.items():
        if absent := [part for part in _QKV if part not in parts]:
            raise ValueError(f"{path} lacks {absent[0]}, of which {name} is made")
        found[name] = torch.cat([parts[part] for part in _QKV])
    return found


def vision_weights(weights: dict[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
    """The reverse of `converted`: weights of a CLIPVisionModel, by its own names, from those of an open_clip model. ValueError where that
    has no such vision transformer.
    """
    found = {}
    for name in names:
        full = name if name.startswith("vision_model.") else f"vision_model.{name}"
        layer = _LAYER.fullmatch(full)
        part = None
        if layer is None:
            ours = _SINGLE_NAMES.get(full, "")
        elif layer[3] in _QKV:
            ours, part = f"{_block(layer)}attn.in_proj_{layer[4]}", _QKV.index(layer[3])
        else:
            ours = f"{_block(layer)}{_LAYER_NAMES.get(layer[3], layer[3])}.{layer[4]}"
        if ours not in weights:
            raise ValueError(f"the encoder has no {name}: only a vision transformer of CLIP's goes into a captioner of transformers")
        found[name] = weights[ours] if part is None else weights[ours].chunk(3)[part]
    return found


def _block(layer: re.Match[str]) -> str:
    return f"{_TOWERS[layer[1]]}transformer.resblocks.{layer[2]}."


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder's weights: safetensors where there are any; none where it holds no weights."""
    for single, index in zip(SINGLE, INDEXES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / name for name in shards(folder / index)]
    return []


def shards(index: Path) -> list[str]:
    """The names of the files that an index lists. ValueError where it is none, or names files elsewhere."""
    listed = _object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{index} has no weight_map of names to files")
    names = sorted(set(map(str, listed.values())))
    if strange := [name for name in names if not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", name)]:
        raise ValueError(f"{index} names {strange[0]!r}, which is no file of weights beside it: refused")
    return names


def model_config(path: Path) -> dict[str, Any]:
    """open_clip's model_cfg for a config.json; empty where it does not describe both towers. ValueError on what open_clip doesn't know."""
    config = _object(path)
    if (kind := config.get("model_type", "clip")) != "clip":
        raise ValueError(f"{path} is of a model of type {kind!r}; of transformers' models only CLIPModel (type 'clip') is read")
    vision, text = _tower(config, "vision_config", _VISION), _tower(config, "text_config", _TEXT)
    if not vision or not text:
        return {}

    def size(held: dict[str, Any], name: str) -> int:
        value = held.get(name, 512)  # of projection_dim alone
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{path}: {name} = {value!r}, it must be a whole number above 0")
        return value

    def shared(tower: dict[str, Any]) -> dict[str, Any]:
        width, inner, eps = size(tower, "hidden_size"), size(tower, "intermediate_size"), tower["layer_norm_eps"]
        if not isinstance(eps, int | float):
            raise ValueError(f"{path}: layer_norm_eps = {eps!r}, it must be a number")
        ratio = inner / width
        if int(width * ratio) < inner:  # open_clip rounds down
            ratio = math.nextafter(ratio, math.inf)
        found = {"layers": size(tower, "num_hidden_layers"), "width": width, "mlp_ratio": ratio}
        return found | ({} if eps == _SHARED["layer_norm_eps"] else {"norm_kwargs": {"eps": float(eps)}})

    if vision["hidden_act"] != text["hidden_act"] or vision["hidden_act"] not in ("quick_gelu", "gelu"):
        raise ValueError(f"{path}: hidden_act is {vision['hidden_act']!r} and {text['hidden_act']!r}; both must be quick_gelu, or gelu")
    if size(text, "vocab_size") < _VOCABULARY or text["eos_token_id"] not in (2, _LAST):  # 2: in old files, read as 49407 by transformers
        said = f"{text['vocab_size']} tokens, of which {text['eos_token_id']} ends a text"
        raise ValueError(f"{path}: its tokenizer has {said}; it must be CLIP's, of {_VOCABULARY} tokens and {_LAST}")
    width, heads = size(vision, "hidden_size"), size(vision, "num_attention_heads")
    return {
        "embed_dim": size(config, "projection_dim"),
        "quick_gelu": vision["hidden_act"] == "quick_gelu",
        "vision_cfg": shared(vision)
        | {"image_size": size(vision, "image_size"), "patch_size": size(vision, "patch_size"), "head_width": width // heads},
        "text_cfg": shared(text)
        | {
            "context_length": size(text, "max_position_embeddings"),
            "vocab_size": text["vocab_size"],
            "heads": size(text, "num_attention_heads"),
        },
    }


def preprocess_config(folder: Path, side: int) -> dict[str, Any]:
    """open_clip's preprocess_cfg for a folder's image processor, of a model that takes images of that side; empty where it has none.

    ValueError on preprocessing that open_clip's can't do.
    """
    path = next((folder / name for name in PREPROCESSING if (folder / name).is_file()), None)
    if path is None:
        return {}
    held = _object(path)
    held = held.get("image_processor", held)  # processor_config.json holds the tokenizer's part beside it
    usual = {"do_resize": True, "do_center_crop": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3}
    told = usual | {name: value for name, value in held.items() if value is not None}
    size, crop = told.get("size", side), told.get("crop_size", side)
    sides = size if isinstance(size, dict) else {"shortest_edge": size}
    cut = [side, side] == ([crop["height"], crop["width"]] if isinstance(crop, dict) else [crop, crop])
    if sides.get("shortest_edge") == side and told["do_center_crop"] and cut:
        mode = "shortest"
    elif [sides.get("height"), sides.get("width")] == [side, side] and (cut or not told["do_center_crop"]):
        mode = "squash"
    else:
        raise ValueError(f"{path}: size {size}, crop_size {crop}: open_clip can't do that at {side} px; mend or remove it")
    if not told["do_resize"] or not told["do_rescale"] or not math.isclose(told["rescale_factor"], 1 / 255, rel_tol=1e-3):
        raise ValueError(f"{path}: images must be resized, and scaled to [0, 1], as open_clip does; mend or remove it")
    if told["resample"] not in _RESAMPLE:
        raise ValueError(f"{path}: resample = {told['resample']!r}; open_clip knows 2 (bilinear) and 3 (bicubic)")
    found: dict[str, Any] = {"interpolation": _RESAMPLE[told["resample"]], "resize_mode": mode}
    if not told["do_normalize"]:
        return found | {"mean": [0.0] * 3, "std": [1.0] * 3}
    for name, ours in (("image_mean", "mean"), ("image_std", "std")):
        if name in told:
            found[ours] = [float(value) for value in told[name]]
            if len(found[ours]) != 3 or (ours == "std" and min(found[ours]) <= 0):
                raise ValueError(f"{path}: {name} = {told[name]}; it must be three numbers")
    return found


def _tower(config: dict[str, Any], name: str, usual: dict[str, Any]) -> dict[str, Any]:
    """A tower's configuration; empty where there is none. Files of old have it twice, and transformers prefers the second."""
    held, second = config.get(name), config.get(f"{name}_dict")
    if held is None and second is None:
        return {}
    if wrong := [one for one in (held, second) if not isinstance(one, dict | None)]:
        raise ValueError(f"its {name} is {wrong[0]!r}, it must be an object")
    return usual | (held or {}) | (usual | second if second else {})


def _object(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(held, dict):
        raise ValueError(f"{path} holds a {type(held).__name__}, no JSON object")
    return held
