"""Published patterns of triggers, such as those in the authors' repository, read from a user's clone of it: nothing of it is here."""

from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from PIL import Image

from parlib.attack.triggers import PATTERNS, pattern_fits

_VALUES = {"wanet": (-8.0, 8.0), "blended_text": (0.0, 1.0), "blended_triangles": (0.0, 1.0), "badclip": (0.0, 1.0)}


def read_pattern(path: Path, trigger: str, side: int) -> torch.Tensor:
    """A trigger's pattern from a file, as parlib.attack.triggers.PATTERNS says: .pt (a tensor alone), .npy, or an image.

    side: px of the images that it is for. Pixels may be (H, W, 3) or (3, H, W), and axes of 1 may come first. blended_text's are pure
    red. FileNotFoundError where the file is missing; ValueError, which names it, where it holds anything else than the trigger takes.
    """
    if trigger not in _VALUES:
        raise ValueError(f"{trigger} takes no published pattern; those that do: {', '.join(_VALUES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, {trigger}'s pattern")
    found = _array(path)
    while found.ndim > 2 and found.shape[0] == 1:
        found = found[0]
    if trigger != "wanet" and found.ndim == 3 and found.shape[2] == 3:
        found = found.permute(2, 0, 1)
    if trigger == "blended_text" and found.ndim == 3 and found.shape[0] == 3:
        if found[1:].any():
            raise ValueError(f"{path} holds green or blue; {trigger} takes a word in pure red")
        found = found[0]
    if not pattern_fits(trigger, found):
        raise ValueError(f"{path} holds {tuple(found.shape)}; {trigger} takes {PATTERNS[trigger]}")
    (low, high), least, most = _VALUES[trigger], found.min().item(), found.max().item()
    if not low <= least <= most <= high:  # nor is it where one is no number
        raise ValueError(f"{path} holds values from {least:g} to {most:g}; {trigger} takes {low:g} to {high:g}")
    size, covering = found.shape[1], trigger in ("blended_text", "blended_triangles")  # on the whole image, pixel on pixel
    if (covering and size != side) or (trigger == "badclip" and size > side):
        raise ValueError(f"{path} is of {size} px; {trigger} lays it on images of {side} px")
    return found.contiguous()


def _array(path: Path) -> torch.Tensor:
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False)).float()
        if path.suffix in (".pt", ".pth"):
            found = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(found, torch.Tensor):
                raise ValueError(f"it holds a {type(found).__name__}, not a tensor")
            return found.detach().float()
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    except UnpicklingError:
        reason = "it is damaged, or holds more than a tensor, which is not loaded, as it could run code"
    except Exception as error:  # which it is on damaged files no reader says
        reason = " ".join(str(error).split())[:160] or type(error).__name__
    raise ValueError(f"{path} can't be read as a pattern: {reason}")
