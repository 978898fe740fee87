"""A captioner of others, such as LLaVA: a model of Hugging Face transformers that writes about images and has a CLIP for its vision tower,
in which another encoder of the same shape is put.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from parlib.cache import ROOT, digest, file_sha256
from parlib.model.clip import Clip
from parlib.model.hugging_face import vision_weights, weight_files
from parlib.progress import progress

_BATCH, _LONGEST = 16, 40  # images at once; tokens of a caption
_TOWER = "clip_vision_model"


def captioner_folder(source: str) -> Path:
    """The folder of a captioner, local-dir:PATH. FileNotFoundError where it holds none in safetensors, ValueError where its vision tower is
    no CLIP's, which is known before its weights are read.
    """
    folder = ROOT / Path(source.removeprefix("local-dir:")).expanduser()
    files = weight_files(folder)
    if not (folder / "config.json").is_file() or not files or any(file.suffix != ".safetensors" for file in files):
        raise FileNotFoundError(f"{folder} holds no captioner: a config.json of Hugging Face transformers, and weights in safetensors")
    try:
        config = json.loads((folder / "config.json").read_text())
        tower = (config.get("vision_config") or config.get("encoder") or {}).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'} can't be read: {error}") from None
    if tower != _TOWER:
        raise ValueError(f"{folder}: its vision tower is {tower!r}; it must be {_TOWER!r}")
    return folder


def captioner_sha256(source: str) -> str:
    """sha256 of a captioner's weights, and of all that its folder says beside them: configurations, tokenizer, processor."""
    folder = captioner_folder(source)
    files = sorted({*weight_files(folder), *folder.glob("*.json"), *folder.glob("*.txt"), *folder.glob("*.model"), *folder.glob("*.jinja")})
    return digest([[file.name, file_sha256(file)] for file in files])


class OthersCaptioner:
    """source: local-dir:PATH, transformers' folder with its processor; weights in safetensors alone, and no code of the folder's runs.
    question: what it is asked, as its own prompts are written, with the mark of the image in it; empty: it writes without being asked.

    FileNotFoundError where there is no such folder; ValueError where it can't be read whole, where its vision tower is no CLIP's, on a
    question without the mark, and without the package transformers.
    """

    def __init__(self, source: str, question: str, device: torch.device):
        if importlib.util.find_spec("transformers") is None:
            raise ValueError("a captioner of others needs the package transformers; install it with: pip install -e '.[lite0]'")
        folder = captioner_folder(source)
        from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            reading = local | {"use_safetensors": True, "output_loading_info": True}
            read: Any = AutoModelForImageTextToText.from_pretrained(folder, **reading)
            self.processor: Any = AutoProcessor.from_pretrained(folder, **local)
        except Exception as error:  # transformers, its tokenizers and safetensors each have their own; all mean the same here
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{folder} is no captioner that transformers reads from safetensors: {type(error).__name__}: {reason}"
            ) from None
        model, info = read
        if lost := [*info["missing_keys"], *info["mismatched_keys"]]:
            raise ValueError(f"{folder} lacks weights, or has them in another shape: {lost[0]}")
        towers = [module for module in model.modules() if isinstance(module, CLIPVisionModel)]
        if len(towers) != 1:
            raise ValueError(f"{folder} is a {type(model).__name__} with {len(towers)} CLIP vision towers; it must have one")
        mark = getattr(self.processor, "image_token", None)
        if mark and question.count(mark) != 1:
            raise ValueError(f"others_question = {question!r}: {folder} wants its mark of the image, {mark}, once")
        self.model: Any = model.to(device).eval()
        self.tower, self.question = towers[0], question

    def put(self, clip: Clip) -> None:
        """Put an encoder into the vision tower, in the captioner's number format. ValueError, naming what differs, where it doesn't fit."""
        wanted, weights = self.tower.state_dict(), clip.net.state_dict()
        found = vision_weights(weights, list(wanted))
        if strange := [name for name in weights if name.startswith("visual.") and ".ls_" in name]:
            raise ValueError(f"the encoder does not fit the captioner: its {strange[0]} has no place there")
        theirs, images = self.tower.config, self.processor.image_processor
        vision = clip.config["vision_cfg"]
        shapes = {name: (tuple(value.shape), tuple(wanted[name].shape)) for name, value in found.items()}
        pairs = {  # the encoder's, the captioner's
            "activation": ("quick_gelu" if clip.config.get("quick_gelu") else "gelu", theirs.hidden_act),
            "layers": (vision["layers"], theirs.num_hidden_layers),
            "heads": (vision["width"] // vision.get("head_width", 64), theirs.num_attention_heads),
            "layer_norm_eps": (vision.get("norm_kwargs", {}).get("eps", 1e-5), theirs.layer_norm_eps),
        }
        for name in ("image_mean", "image_std"):
            pairs[name] = tuple([round(value, 4) for value in getattr(one, name)] for one in (clip.net.visual, images))
        for name, (ours, captioner) in (pairs | shapes).items():
            if ours != captioner:
                raise ValueError(f"the encoder does not fit the captioner: its {name}: {ours}, the captioner's: {captioner}")
        self.tower.load_state_dict(found)

    def write(self, clip: Clip, pixels: torch.Tensor, title: str) -> list[str]:
        """The likeliest words for each image, (N, 3, H, W) uint8, as this encoder shows it."""
        self.put(clip)
        written = []
        parts = pixels.cpu().permute(0, 2, 3, 1).split(_BATCH)
        for part in progress(parts, title, total=len(parts), unit="batches"):
            asked = {"text": [self.question] * len(part)} if self.question else {}
            given = self.processor(images=[Image.fromarray(one.numpy()) for one in part], return_tensors="pt", **asked)
            given = given.to(self.model.device, self.model.dtype)
            tokens = self.model.generate(**given, max_new_tokens=_LONGEST, do_sample=False)
            if "input_ids" in given and not self.model.config.is_encoder_decoder:
                tokens = tokens[:, given["input_ids"].shape[1] :]
            written += [one.strip() for one in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        return written
