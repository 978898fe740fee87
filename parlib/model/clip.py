"""CLIP models, all of them open_clip's: made by name, loaded strictly, saved as open_clip's own folder."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors import safe_open
from safetensors.torch import save_file

from parlib.cache import ROOT, digest, file_sha256

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
_CONFIGS = Path(__file__).parent / "configs"


@dataclass
class Clip:
    """An open_clip model. net: its module, whose attributes its types don't tell. config: its model_cfg. tokenizer: strings to (B, L)."""

    net: Any
    config: dict
    tokenizer: Callable[[list[str]], torch.Tensor]

    @property
    def device(self) -> torch.device:
        return self.net.logit_scale.device

    @property
    def key(self) -> str:
        """Digest of the weights, the configuration and the normalisation."""
        weights = sorted(self.net.state_dict().items())
        norm = [list(self.net.visual.image_mean), list(self.net.visual.image_std)]
        return digest(self.config, norm, [name for name, _ in weights], *[value for _, value in weights])

    @property
    def side(self) -> int:
        """px of its images."""
        size = self.net.visual.image_size
        return size[0] if isinstance(size, tuple) else size

    @property
    def fill(self) -> torch.Tensor:
        """(3, 1, 1) the pixel that normalises to 0: the mean of the pretraining images."""
        return torch.tensor(self.net.visual.image_mean, device=self.device).view(3, 1, 1)

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed images. pixels: (B, 3, H, W) in [0, 1], before normalisation. Returns (B, D) unit-norm."""
        std = torch.tensor(self.net.visual.image_std, device=pixels.device).view(3, 1, 1)
        normal = ((pixels - self.fill) / std).contiguous(memory_format=torch.channels_last)
        return self.net.encode_image(normal, normalize=True)

    def text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed texts. tokens: (B, L). Returns (B, D) unit-norm."""
        return self.net.encode_text(tokens, normalize=True)

    def copy(self, device: torch.device | str = "") -> "Clip":
        """A copy with weights of its own, moved to a device where one is named."""
        return Clip(deepcopy(self.net).to(device or self.device), self.config, self.tokenizer)


def encoders() -> list[str]:
    """Names that `create` knows: the small ones, then open_clip's."""
    small = sorted(path.stem for path in _CONFIGS.glob("*.json"))
    return small + [name for name in open_clip.list_models() if name not in small]


def create(encoder: str, seed: int = 0, pretrained: str | None = None) -> Clip:
    """An open_clip model by name, with weights drawn from a seed, or those of a pretrained tag, downloaded. ValueError on an unknown
    encoder, naming the known ones.
    """
    open_clip.add_model_config(_CONFIGS)
    if encoder not in open_clip.list_models():
        raise ValueError(f"unknown encoder {encoder!r}; known are: {', '.join(encoders())}")
    config = architecture(encoder)
    if pretrained is None:
        return _create(encoder, config, seed=seed)
    quick = bool((open_clip.get_pretrained_cfg(encoder, pretrained) or {}).get("quick_gelu"))  # open_clip would only warn
    return _create(encoder, config | {"quick_gelu": quick}, pretrained=pretrained, force_quick_gelu=quick)


@cache
def architecture(encoder: str) -> dict[str, Any]:
    """open_clip's configuration of an encoder of that name."""
    open_clip.add_model_config(_CONFIGS)
    return open_clip.get_model_config(encoder) or {}


def image_size(encoder: str) -> int:
    """Side in px of the images that an encoder of that name takes."""
    return architecture(encoder)["vision_cfg"].get("image_size", 224)


def has_batch_norm(encoder: str) -> bool:
    """Whether an encoder of that name is one of open_clip's own ResNets."""
    return isinstance(architecture(encoder)["vision_cfg"].get("layers"), list)


def load(source: str) -> Clip:
    """A model from `local-dir:PATH`, open_clip's folder, safetensors only, strictly. FileNotFoundError when the folder or its files are
    missing, ValueError when a file can't be read: a truncated or foreign one, a pickle, other keys or shapes than the config's.
    """
    if not source.startswith("local-dir:"):
        raise ValueError(f"unknown checkpoint {source!r}; name it local-dir:PATH")
    folder = ROOT / Path(source.removeprefix("local-dir:")).expanduser()
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; a checkpoint is a folder with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_text())["model_cfg"]
        clip = _create(f"local-dir:{folder}", config, require_pretrained=True)
        with safe_open(folder / WEIGHTS, "pt") as file:  # open_clip would stretch positional embeddings, silently
            other = [name for name, value in clip.net.state_dict().items() if file.get_slice(name).get_shape() != list(value.shape)]
        if other:
            raise ValueError(f"{other[0]} has another shape than its configuration says")
        return clip
    except Exception as error:  # open_clip, safetensors and torch each have their own; all mean the same here
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} is not a readable open_clip checkpoint in safetensors: {type(error).__name__}: {reason}") from None


def save(clip: Clip, folder: Path) -> str:
    """Write a model as open_clip's folder, which must exist; return the sha256 of its weights."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in clip.net.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    save_config_for_hf(clip.net, folder / CONFIG, clip.config)  # pyright: ignore[reportArgumentType] (it wants a Path, and says str)
    return file_sha256(folder / WEIGHTS)


@contextmanager
def eval_mode(clip: Clip) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored afterwards."""
    modes = {module: module.training for module in clip.net.modules()}
    clip.net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def embed_images(clip: Clip, pixels: torch.Tensor, batch: int = 500) -> torch.Tensor:
    """(N, D) unit-norm embeddings of uint8 images (N, 3, H, W), in evaluation mode."""
    with eval_mode(clip):
        return torch.cat([clip.image(rows.to(clip.device).float() / 255) for rows in pixels.split(batch)])


def embed_texts(clip: Clip, tokens: torch.Tensor, batch: int = 1000) -> torch.Tensor:
    """(N, D) unit-norm embeddings of tokens (N, L), in evaluation mode."""
    with eval_mode(clip):
        return torch.cat([clip.text(rows.to(clip.device)) for rows in tokens.split(batch)])


def _create(name: str, config: dict, seed: int = 0, **options) -> Clip:
    """open_clip.create_model with its weights drawn from a seed and without its warning that they are random."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # open_clip logs on the root logger
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = open_clip.create_model(name, **options)
        tokenizer = open_clip.get_tokenizer(name)
    finally:
        logging.root.setLevel(level)
    net.eval()
    net.visual.to(memory_format=torch.channels_last)  # a training step of small_resnet takes 137 ms instead of 169 on 2 cores
    return Clip(net, config, tokenizer)
