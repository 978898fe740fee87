"""Files: digests, atomic writes, files that know whether they are whole, locks, and the folder of weights."""

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
_SEAL = len("\nsha256 ") + 64  # bytes
_UMASK = os.umask(0o077)  # it can only be read by setting it
os.umask(_UMASK)


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
    """A temporary neighbour of `path`, moved onto it on success, else removed. OSError, naming it, when it cannot be written. What writers
    that were killed have left of `path` is removed, and the file is on the disk before it has its name.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, handle = _new_file(path)
        try:
            yield temporary
            os.fsync(handle)
            temporary.chmod(0o666 & ~_UMASK)
            os.replace(temporary, path)
            _keep_names(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary neighbour of folder `path`, moved to it on success and removed on failure, as `atomic_file` does."""
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path) as temporary:
            yield temporary
            for file in temporary.rglob("*"):
                _keep_names(file)
            _keep_names(temporary)
            temporary.chmod(0o777 & ~_UMASK)
            with scratch(path) as before:  # the earlier one goes in one step, too: a kill never leaves half of it
                if path.exists():
                    os.rename(path, before)
                os.rename(temporary, path)
                _keep_names(path.parent)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A folder for a while, whose name begins as `path` does; it is removed at the end, and so are those that were left by a kill."""
    temporary, handle = _temporary(path, tempfile.mkdtemp)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def _temporary(path: Path, make: Callable[..., str]) -> tuple[Path, int]:
    """A new neighbour of `path`, locked as long as its handle is open: so one whose writer was killed is known, and removed here."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{8 * '?'}"):
        with suppress(OSError):  # it is at work, or gone; some shared file systems lock no folders: there it stays
            handle = os.open(left, os.O_RDONLY if left.is_dir() else os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)
    while True:
        found = Path(make(dir=path.parent, prefix=f".{path.name}."))
        try:
            handle = os.open(found, os.O_RDONLY if found.is_dir() else os.O_RDWR)
        except FileNotFoundError:
            continue  # another writer took it for one that was left, before it was opened
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if found.exists():
            return found, handle
        os.close(handle)  # or before it was locked


def _new_file(path: Path) -> tuple[Path, int]:
    def make(**options: Any) -> str:
        handle, name = tempfile.mkstemp(**options)
        os.close(handle)
        return name

    return _temporary(path, make)


def _keep_names(path: Path) -> None:
    """Write a file, or a folder's names, to the disk: after a power cut they are there as they are now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no such thing for folders
            os.fsync(handle)
    finally:
        os.close(handle)


def damaged(path: Path) -> None:
    """Say that a file of the cache was cut or changed, and is made again."""
    print(f"{path} is not the file that was written: making it again", flush=True)


def write_json(value: dict[str, Any], path: Path) -> None:
    """A dictionary as JSON, with a digest of itself, by which `read_json` knows a file that was cut or changed."""
    plain = json.loads(json.dumps(value))
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(plain | {"digest": digest(plain)}))


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None where it is not there, or no longer as it was written. Files of earlier versions, without a digest, are
    taken as they are.
    """
    try:
        text = path.read_text()
        found = json.loads(text)
        told = found.pop("digest", None)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        return damaged(path)
    whole = told == digest(found) if told or re.search(r'"[0-9a-f]{64}"\}\s*$', text) else True
    return found if whole else damaged(path)


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Tensors and words about them as safetensors, with a digest of both, by which `read_tensors` knows a file that was cut or changed."""
    about = about or {}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, about | {"digest": digest(about, *(part for item in sorted(tensors.items()) for part in item))})


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """What `write_tensors` wrote; None where it is not there, or no longer as it was written. Files of earlier versions, without a digest,
    are taken as they are.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            about, tensors = dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception:  # a damaged header has many ways to fail
        return damaged(path)
    told = about.pop("digest", None)
    if told not in (None, digest(about, *(part for item in sorted(tensors.items()) for part in item))):
        return damaged(path)
    return tensors, about


def seal(path: Path) -> None:
    """Add its own sha256 to the end of a file of any kind that takes more at its end, such as a zip archive."""
    sha = file_sha256(path)
    with open(path, "ab") as file:
        file.write(f"\nsha256 {sha}".encode())


def sealed(path: Path) -> bool:
    sha, left = hashlib.sha256(), path.stat().st_size - _SEAL
    with open(path, "rb") as file:
        while left > 0 and (part := file.read(min(left, 2**20))):
            sha.update(part)
            left -= len(part)
        return file.read() == f"\nsha256 {sha.hexdigest()}".encode()


def check_writable(path: Path) -> None:
    """Raise OSError, naming the path, unless a file can be written there: before hours of work, not after."""
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path) as folder:
            (folder / "a").write_bytes(b"this can be written\n")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises, in Python, torch or safetensors, into an OSError that names the path."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("PytorchStreamWriter|inline_container|writing file", str(error)):
            raise
        if isinstance(error, OSError) and (error.errno is None or _elsewhere(error, path)):  # of what is read, such as a missing record
            raise
        remedy = "free some space, or name another folder" + (" for the cache: PAR_CACHE" if path.is_relative_to(cache_dir()) else "")
        raise OSError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}; {remedy}") from error


def _elsewhere(error: OSError, path: Path) -> bool:
    """Whether an error is of another file than `path`, its neighbours and the folders that it lies in."""
    named = [Path(str(name)) for name in (error.filename, error.filename2) if name is not None]  # of a copy where from and where to
    return bool(named) and not any(name.is_relative_to(path.parent) or path.is_relative_to(name) for name in named)


@contextmanager
def lock(path: Path, *, wait: bool, doing: str) -> Iterator[None]:
    """Hold `path` as a lock file among processes; it is freed when its holder dies, and removed when it is done. wait: for the other
    holder, or else raise RuntimeError, which names what it does.
    """
    handle = _locked(path, wait=wait)
    try:
        with suppress(OSError):  # it is a help to others, and a full disk no reason to stop
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} ({doing})".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _locked(path: Path, *, wait: bool) -> int:
    while True:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 500, 0).decode(errors="replace").strip() or "another process"
            if not wait:
                os.close(handle)
                raise RuntimeError(f"{holder} is at work on this already, in {path.parent}; wait for it or stop it") from None
            print(f"waiting for {holder}", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # its holder was done, and has removed it
