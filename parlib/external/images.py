"""Images of external data: their encoded bytes, from a file, a row or an archive, and what a model is given of them."""

import io
import os
import zipfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from parlib.model.preparation import Preparation


class UnusableImageError(ValueError):
    """An image in a number format whose white is not known, or a link to one. Its words are the kind under which it is counted."""


@lru_cache(maxsize=2)
def _archives(folder: Path) -> dict[str, Path]:
    """Every file in the zip archives of a folder, by its name within them."""
    return {name: path for path in sorted(folder.glob("*.zip")) for name in _opened(path, os.getpid()).namelist()}


@lru_cache(maxsize=8)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    """An archive, opened once in each process."""
    return zipfile.ZipFile(archive)


def image_name(image: Any) -> str:
    """What an image is called in a list of those that can't be used."""
    named = image.get("path") if isinstance(image, dict) else image
    return str(named if isinstance(named, str) else "an image without a name")[:200]


def encoded_bytes(image: Any, folder: Path) -> tuple[bytes, str]:
    """An image's encoded bytes and its name, from bytes, a path, or a path into an archive; FileNotFoundError where it is none,
    UnusableImageError where it is a link.
    """
    name = image_name(image)
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, bytes):
        return image, name
    if not image:
        raise FileNotFoundError("no image")
    if str(image).startswith(("http://", "https://")):
        raise UnusableImageError("link in the place of an image")
    if (path := folder / str(image)).is_file():
        return path.read_bytes(), name
    near = folder / f"{name.partition('/')[0]}.zip"  # the archive of its first folder's name, else whichever holds it
    archive = near if near.is_file() and name in _opened(near, os.getpid()).NameToInfo else _archives(folder).get(name)
    if archive is None:
        raise FileNotFoundError(name)
    return _opened(archive, os.getpid()).read(name), f"{archive.name}/{name}"


def opened(image: Any, folder: Path, images: Preparation) -> tuple[bytes, str, torch.Tensor] | str:
    """A row's image: its encoded bytes, its name, and what a model is given of it; or, of one that can't be used, the kind of that."""
    try:
        encoded, name = encoded_bytes(image, folder)
        return encoded, name, decode(encoded, images)
    except FileNotFoundError:
        return "missing file"
    except UnusableImageError as error:
        return str(error)
    except Exception:  # Pillow, zipfile and zlib each have their own; all mean that this row can't be used
        return "unreadable image"


def decode(encoded: bytes, images: Preparation) -> torch.Tensor:
    """(3, side, side) uint8 in RGB, prepared as the model's own preparation does: transparency is dropped and a camera's orientation tag
    ignored, as open_clip does. Raises OSError or ValueError on a damaged image, UnusableImageError on a number format that isn't known.
    """
    with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
        image.draft(None, (2 * images.side, 2 * images.side))  # a JPEG is decoded at the smallest size that is twice as large
        prepared = images(_eight_bits(image))
    return torch.from_numpy(np.array(prepared)).permute(2, 0, 1)


@cache
def _formats() -> list[str]:
    """The formats that Pillow reads by itself: for EPS it would start Ghostscript, on a program that the file holds."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits scaled to 8, which Pillow would cut off at 255; any other as it is."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnusableImageError(f"image of {'32-bit' if image.mode == 'I' else 'floating-point'} numbers")
    return image
