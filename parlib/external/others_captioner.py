"""A captioner of others, such as LLaVA: a model of Hugging Face transformers that writes about images and has a CLIP for its vision tower,
in which another encoder of the same shape is put.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from parlib.cache import ROOT
from parlib.model.clip import Clip, eval_mode
from parlib.model.hugging_face import vision_weights
from parlib.progress import progress

_BATCH, _LONGEST = 16, 40  # images at once; tokens of a caption


class OthersCaptioner:
    """source: local-dir:PATH, transformers' folder with its processor; weights in safetensors alone, and no code of the folder's runs.
    question: what it is asked, as its own prompts are written, with the mark of the image in it; empty: it writes without being asked.

    FileNotFoundError where there is no such folder, ValueError on anything else in it, without a CLIP for its vision tower, or without the
    package transformers.
    """

    def __init__(self, source: str, question: str, device: torch.device):
        if importlib.util.find_spec("transformers") is None:
            raise ValueError("a captioner of others needs the package transformers; install it with: pip install -e '.[lite0]'")
        folder = ROOT / Path(source.removeprefix("local-dir:")).expanduser()
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json; a captioner is a folder of Hugging Face transformers")
        from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, **local)
            self.processor: Any = AutoProcessor.from_pretrained(folder, **local)
        except Exception as error:  # transformers, its tokenizers and safetensors each have their own; all mean the same here
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{folder} is no captioner that transformers reads from safetensors: {type(error).__name__}: {reason}"
            ) from None
        self.model = model.to(device).eval()
        towers = [module for module in self.model.modules() if isinstance(module, CLIPVisionModel)]
        if len(towers) != 1:
            raise ValueError(f"{folder} is a {type(self.model).__name__} with {len(towers)} CLIP vision towers; it must have one")
        self.tower, self.question = towers[0], question

    def put(self, clip: Clip) -> None:
        """Put an encoder into the vision tower. ValueError, naming what differs, where it does not fit."""
        theirs, wanted = self.tower.config, self.tower.state_dict()
        found = vision_weights(clip.net.state_dict(), list(wanted))
        vision = clip.config["vision_cfg"]
        ours = {
            "activation": "quick_gelu" if clip.config.get("quick_gelu") else "gelu",
            "layers": vision["layers"],
            "heads": vision["width"] // vision.get("head_width", 64),
            **{name: tuple(value.shape) for name, value in found.items()},
        }
        tower = {"activation": theirs.hidden_act, "layers": theirs.num_hidden_layers, "heads": theirs.num_attention_heads}
        tower |= {name: tuple(value.shape) for name, value in wanted.items()}
        if other := [name for name in tower if ours[name] != tower[name]]:
            said = f"its {other[0]}: {ours[other[0]]}, the tower's: {tower[other[0]]}"
            raise ValueError(f"the encoder does not fit the captioner: {said}")
        self.tower.load_state_dict(found)

    def write(self, clip: Clip, pixels: torch.Tensor, title: str) -> list[str]:
        """The likeliest words for each image, (N, 3, H, W) uint8, as this encoder shows it."""
        self.put(clip)
        written = []
        parts = pixels.cpu().permute(0, 2, 3, 1).split(_BATCH)
        with eval_mode(clip):
            for part in progress(parts, title, total=len(parts), unit="batches"):
                asked = {"text": [self.question] * len(part)} if self.question else {}
                given = self.processor(images=[Image.fromarray(one.numpy()) for one in part], return_tensors="pt", **asked)
                given = given.to(self.model.device, self.model.dtype)
                tokens = self.model.generate(**given, max_new_tokens=_LONGEST, do_sample=False)
                if "input_ids" in given and not self.model.config.is_encoder_decoder:
                    tokens = tokens[:, given["input_ids"].shape[1] :]
                written += [one.strip() for one in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        return written
