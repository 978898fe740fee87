"""Where results live on disk: content-addressed keys, atomic writes, locks."""

import ast
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError

ROOT = Path(__file__).resolve().parents[1]
PINNED = ("torch", "open_clip_torch", "numpy", "pillow")
# These modules store, name or schedule: what they decide stands in keys by its value.
_BOOKKEEPING = {"cache", "grids", "ids", "keys", "lineage", "notebook", "params", "presets", "publish", "records", "run"}
_REGISTRIES = {"METHODS", "TRIGGERS"}
# These read data and checkpoints of others: runs on the embedded scenes alone don't execute them.
_OUTSIDE = {"checkpoints", "poison_stream", "sources", "streams"}


def cache_dir() -> Path:
    """Folder of weights and rendered scenes: PAR_CACHE, else ~/.cache/par."""
    return Path(os.environ.get("PAR_CACHE", "~/.cache/par")).expanduser().resolve()


def digest(*parts) -> str:
    """sha256 (64 hex digits) of JSON-able values and tensors (by their bytes), in order."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            sha.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    return sha.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on, without local suffixes such as +cpu."""
    return {name: version(name).split("+")[0] for name in PINNED}


def code_fingerprint(*roots: str, outside: bool = True) -> str:
    """sha256 of the code that names of parlib reach, such as "fit.fit": their definitions, and all that these name.

    outside: False where no data and no checkpoint of others are read, so that the code that reads them doesn't count.

    Code that isn't reached doesn't count, nor do comments, docstrings and layout: a new figure or method must not cost
    hours of training. Of METHODS and TRIGGERS a key names the entries that it uses. KeyError on a name that isn't there.
    """
    seen: dict[str, list[str]] = {}
    uncounted = _BOOKKEEPING if outside else _BOOKKEEPING | _OUTSIDE
    todo = list(roots)
    while todo:
        module, name = todo.pop().split(".")
        if f"{module}.{name}" in seen or module in uncounted or name in _REGISTRIES:
            continue
        path = ROOT / "parlib" / f"{module}.py"
        defined, imported = _names(path, path.stat().st_mtime_ns)
        if name in imported:
            todo.append(imported[name])
            continue
        seen[f"{module}.{name}"] = [code for code, _ in defined[name]]
        used = {other for _, others in defined[name] for other in others if other in defined or other in imported}
        todo += [imported.get(other, f"{module}.{other}") for other in used]
    return digest(sorted(seen.items()))


@cache
def _names(path: Path, changed: int) -> tuple[dict[str, list[tuple[str, set[str]]]], dict[str, str]]:
    """What a module of parlib defines, each as its code without docstrings and the names in it, and what it imports from
    parlib, as module.name.

    changed: the file's time, for the cache of this function.
    """
    defined: dict[str, list[tuple[str, set[str]]]] = {}
    imported: dict[str, str] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("parlib."):
            imported |= {alias.asname or alias.name: f"{node.module.split('.')[1]}.{alias.name}" for alias in node.names}
        for part in ast.walk(node):
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str):
                part.value.value = ""
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        code = ast.dump(node), {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        for name in names or {getattr(node, "name", "")} - {""}:
            defined.setdefault(name, []).append(code)
    return defined, imported


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path`, moved onto it on success and removed on failure.

    Raises OSError, naming the path, when the folder is full or cannot be written.
    """
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
    with atomic_file(path.with_name(f".{path.name}.writable.{os.getpid()}")) as temporary:
        temporary.write_text("this can be written\n")
    path.with_name(f".{path.name}.writable.{os.getpid()}").unlink(missing_ok=True)


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
    """Hold `path` as a lock file among processes; it is freed when its holder dies.

    wait: whether to wait for the other holder, or else raise RuntimeError, which names what it does.
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
