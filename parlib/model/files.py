"""Files of weights, read without running anything in them, and what a file is that holds none.

safetensors             by its own library
torch.save              by torch's unpickler with weights_only, which makes tensors, numbers and containers
TorchScript             such as OpenAI's: its tensors alone, by an unpickler of our own; its code is never read
"""

import gzip
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_ZIP, _PICKLE, _MARK = b"PK\x03\x04", b"\x80", b"\xef\xbb\xbf"  # how a zip begins, a pickle, and text that is marked as UTF-8
_LIMIT = 100_000_000  # bytes of what describes the tensors; safetensors' own limit


def read_file(path: Path) -> tuple[Any, str]:
    """A file's content, and the name of its form where that is worth a word. Its bytes decide how it is read, not its suffix.

    FileNotFoundError where there is no such file; ValueError, saying what it is, where it holds no weights or could run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is a folder: name it local-dir:PATH" if path.is_dir() else f"there is no file {path}")
    try:
        if _is_safetensors(path):
            return load_file(path), ""
        if _is_torchscript(path):
            return _archived(path), "TorchScript archive"
        with open(path, "rb") as file:  # of a path torch.load would look at the suffix
            return torch.load(file, map_location="cpu", weights_only=True), ""
    except Exception as error:  # torch's unpickler refuses what is not a tensor, a number or a container
        if known := foreign(path):
            raise ValueError(f"{path} {known}") from None
        kind, reason = f"{type(error).__name__}: ", " ".join(str(error).split())
        if not isinstance(error, pickle.UnpicklingError):
            raise ValueError(f"{path} is not a file of weights that can be read: {kind}{reason[:160]}") from None
        named = re.search(r"\bGLOBAL (\S+)", reason)  # torch's words are long, and advise to trust the file
        raise ValueError(f"{path} holds more than weights, and could run code: refused ({named[1] if named else reason[:160]})") from None


def foreign(path: Path) -> str:
    """What a file is, in words that follow its name, where it is one of those that take a checkpoint's place; else empty."""
    head = _head(path)
    if known := not_fetched(path):
        return known
    text = head.removeprefix(_MARK).lstrip()
    if text.startswith((b"{", b"[")) and (held := _json(path)):
        return f"is JSON, no weights: {held[:80]}"
    if head.startswith(b"\x1f\x8b"):
        return f"is a gzip file{_inside(path)}: unpack it first"
    if zipfile.is_zipfile(path):
        try:
            names = _names(path)
        except Exception:  # zipfile raises several kinds on a damaged directory
            return "is a damaged zip file: fetch it again"
        if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
            return f"is a zip file, none of torch's; it holds {', '.join(names[:3]) or 'nothing'}: unpack it first"
    elif head.startswith(_ZIP):
        return "is cut short: fetch it again"
    if not head.startswith((_ZIP, _PICKLE)) and not _is_safetensors(path):
        return f"is no file of weights; it begins with {head[:20]!r}"
    return ""


def not_fetched(path: Path) -> str:
    """The same, of a file of any kind that was not fetched, or not whole: it is empty, a pointer to it or a web page."""
    text = _head(path).removeprefix(_MARK).lstrip()
    if not text:
        return "is empty: fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer: fetch it with `git lfs pull`"
    if text.lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page: fetch the file itself, not the page that offers it"
    return ""


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _json(path: Path) -> str:
    if path.stat().st_size > 1_000_000:
        return ""
    try:
        return json.dumps(json.loads(path.read_bytes()))
    except (ValueError, RecursionError):
        return ""


def _inside(path: Path) -> str:
    try:
        with gzip.open(path) as file:
            return " of a tar" if file.read(262)[257:] == b"ustar" else ""
    except (OSError, EOFError, zlib.error):
        return ""


def _names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: eight bytes of the header's length, then a JSON object."""
    head = _head(path)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LIMIT


def _is_torchscript(path: Path) -> bool:
    return zipfile.is_zipfile(path) and any(name.rpartition("/")[2] == "constants.pkl" for name in _names(path))


# TorchScript. torch.jit.load would compile the archive's code, and run what its objects name as their __setstate__. So the pickle that
# describes the modules is read here: each global that it may name makes a record that does nothing, whatever is done to it, and any other
# global is refused. Tensors are made afterwards, from records.


class _Record:
    """What stands for any object of the archive: the arguments that it was made of, and its attributes."""

    def __init__(self, *made_of: Any):
        self.made_of, self.state = made_of, {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Tensor(_Record):
    """A tensor: its storage, offset, size and stride."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module.partition(".")[0] == "__torch__" or module == "torch.jit._pickle":
            return _Record
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name.removesuffix("Storage") in _DTYPES:
            return name.removesuffix("Storage")
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any, /) -> Any:
        return pid


_DTYPES = {"Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64}
_DTYPES |= {"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool}


def _archived(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a TorchScript archive by their names; without attention masks, which are no weights."""
    with zipfile.ZipFile(path) as archive:
        described = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        if archive.getinfo(described).file_size > _LIMIT:
            raise ValueError(f"its {described} is too large")
        with archive.open(described) as file:
            root = _Unpickler(file).load()
        held: dict[str, torch.Tensor] = {}
        tensors = {}
        for name, (storage, offset, size, stride, *_) in _walk(root, ""):
            _, kind, key, *_ = storage
            if key not in held:
                record = archive.getinfo(f"{described.removesuffix('.pkl')}/{key}")
                if record.compress_type != zipfile.ZIP_STORED:  # torch stores tensors as they are; a small file must not swell
                    raise ValueError(f"its {record.filename} is compressed")
                held[key] = torch.frombuffer(bytearray(archive.read(record)), dtype=_DTYPES[kind])
            tensors[name] = held[key].as_strided(size, stride, offset)
    return {name: value for name, value in tensors.items() if name.rpartition(".")[2] != "attn_mask"}


def _walk(module: Any, prefix: str) -> Iterator[tuple[str, tuple]]:
    for name, value in module.state.items() if isinstance(module, _Record) and isinstance(module.state, dict) else ():
        if isinstance(value, _Tensor):
            yield f"{prefix}{name}", value.made_of
        else:
            yield from _walk(value, f"{prefix}{name}.")
