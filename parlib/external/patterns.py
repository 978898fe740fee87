"""Published patterns of triggers, such as those in the authors' repository, read from a user's clone of it: nothing of it is here."""

from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

# What each trigger's file must hold: its axes without a leading 1, and the bounds of its values.
_SHAPES: dict[str, tuple[str, float, float]] = {
    "wanet": ("(k, k, 2) offsets", -8.0, 8.0),
    "blended_text": ("(H, W) coverage of the word", 0.0, 1.0),
    "blended_triangles": ("(3, H, W) or (H, W) pixels", 0.0, 1.0),
    "badclip": ("(3, size, size) pixels", 0.0, 1.0),
}


def read_pattern(path: Path, trigger: str) -> torch.Tensor:
    """A trigger's pattern from a file: .pt (weights only), .npy, or an image; checked for its shape and its range of values.

    FileNotFoundError where it is missing, ValueError, which names the file, on anything else than what the trigger takes.
    """
    if trigger not in _SHAPES:
        raise ValueError(f"{trigger} takes no published pattern; those that do: {', '.join(_SHAPES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    wanted, low, high = _SHAPES[trigger]
    found = _array(path).float().squeeze()
    if trigger == "wanet":
        fits = found.ndim == 3 and found.shape[2] == 2 and found.shape[0] == found.shape[1]
    elif trigger == "blended_text":
        found = found.amax(dim=0 if found.shape[0] == 3 else 2) if found.ndim == 3 else found  # pure red: one channel holds it
        fits = found.ndim == 2
    else:
        found = found.permute(2, 0, 1) if found.ndim == 3 and found.shape[2] == 3 else found
        fits = found.shape[-1] == found.shape[-2] and (found.ndim == 2 or found.shape[0] == 3)
        fits = fits and not (trigger == "badclip" and found.ndim == 2)
    if not fits:
        raise ValueError(f"{path} holds {tuple(found.shape)}; {trigger} takes {wanted}")
    if not low <= found.min().item() <= found.max().item() <= high:
        raise ValueError(f"{path} holds values from {found.min():g} to {found.max():g}; {trigger} takes {low:g} to {high:g}")
    return found


def _array(path: Path) -> torch.Tensor:
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix in (".pt", ".pth"):
            found = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(found, torch.Tensor):
                raise ValueError(f"it holds a {type(found).__name__}, not a tensor")
            return found
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    except (ValueError, RuntimeError, EOFError, UnpicklingError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} is no pattern that can be read: {' '.join(str(error).split())[:160]}") from None
