"""Files: digests, atomic writes, locks, and the folder of weights."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

ROOT = Path(__file__).resolve().parents[1]


def cache_dir() -> Path:
    """Folder of weights and rendered scenes: PAR_CACHE, where it is unset or empty ~/.cache/par. ValueError where it is relative, as
    notebooks, the runner and Ray's workers start in different folders.
    """
    named = os.environ.get("PAR_CACHE") or "~/.cache/par"
    path = Path(named).expanduser()
    if not path.is_absolute():
        raise ValueError(f"PAR_CACHE = {named!r} is a relative path; name the folder from the root on, such as {path.absolute()}")
    return path.resolve()


def check_surroundings() -> None:
    """Raise, before anything is done, FileNotFoundError where parlib was installed without its repository, and ValueError where the cache
    can't be named.
    """
    if not (ROOT / "notebooks").is_dir():
        raise FileNotFoundError(f"{ROOT} holds no notebooks: parlib is used from its repository; there, run: pip install -e .")
    cache_dir()


def digest(*parts) -> str:
    """sha256 (64 hex digits) of JSON-able values and tensors (by their bytes), in order."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            sha.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    return sha.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path`, moved onto it on success, else removed. OSError, naming it, when it cannot be written."""
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary neighbour of folder `path`, moved to it on success and removed on failure."""
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            temporary.chmod(0o755)
            shutil.rmtree(path, ignore_errors=True)
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Raise OSError, naming the path, unless a file can be written there: before hours of work, not after."""
    probe = path.with_name(f".{path.name}.writable.{os.getpid()}")
    with atomic_file(probe) as temporary:
        temporary.write_text("this can be written\n")
    probe.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises, in Python, torch or safetensors, into an OSError that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot write {path}: {reason}; free some space or name another folder") from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "writing file" not in str(error):
            raise
        raise OSError(f"cannot write {path}: {error}; free some space or name another folder") from error


@contextmanager
def lock(path: Path, *, wait: bool, doing: str) -> Iterator[None]:
    """Hold `path` as a lock file among processes; it is freed when its holder dies. wait: for the other holder, or else raise
    RuntimeError, which names what it does.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (closed below, after its errors have been told from the caller's)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                raise RuntimeError(f"{holder} is at work on this already, in {path.parent}; wait for it or stop it") from None
            print(f"waiting for {holder}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} ({doing})")
        file.flush()
        yield
