"""What external data hold, as one digest: by it a run knows its data, whatever they are called and wherever they lie."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from parlib.cache import cache_dir, digest, file_sha256, read_json, write_json
from parlib.external.files import Source, walk
from parlib.external.rows import named_outside, names_file
from parlib.progress import progress

_LONG = 1e9  # bytes from which hashing shows how far it is


def content(data: str) -> str:
    """sha256 of the names and the content of all files of external data, and of what is read outside their folder: images that rows name,
    and the names of labelled tars' classes. A file is hashed once: its digest is remembered, in the cache, by its path, size and time of
    change. FileNotFoundError where there is no such folder.
    """
    source = Source.of(data)
    if not source.path.is_dir():
        raise FileNotFoundError(f"{data} names no folder: {source.path} is not there")
    memory = cache_dir() / "hashes" / f"{digest(str(source.path))[:32]}.json"
    known = read_json(memory) or {}
    hashed = _hashed({file.relative_to(source.path).as_posix(): file for file in walk(source.path)}, known.get("/", {}), source.path.name)
    found, outside = {"/": hashed}, known.get("outside", {})  # no file has the name /
    if source.layout.form in ("csv", "parquet"):  # whose tables are read once for what they name
        tables = digest([hashed[file.relative_to(source.path).as_posix()][-1] for file in source.files()])
        of, names, before = outside.get(str(source), ["", [], {}])
        names = names if of == tables else named_outside(source)
        there = {name: source.folder / name for name in names if os.path.isfile(source.folder / name)}
        beyond = _hashed(there, before, source.path.name)
        found["outside"] = outside | {str(source): [tables, names, beyond]}
        hashed = hashed | beyond
    if (beside := names_file(source)) and beside.parent != source.path:
        hashed = hashed | {f"../{beside.name}": [file_sha256(beside)]}
    if found != known:
        write_json(found, memory)
    return digest([[name, entry[-1]] for name, entry in sorted(hashed.items())])


def _hashed(files: dict[str, Path], known: dict[str, list], title: str) -> dict[str, list]:
    """Size, time of change, inode and sha256 of files, by name; the sha256 of those that are as they were known is taken over."""
    states = {}
    for name, file in files.items():
        state = file.stat()
        states[name] = [state.st_size, state.st_mtime_ns, state.st_ino]
    new = [name for name in states if known.get(name, [None])[:-1] != states[name]]
    shown = sum(states[name][0] for name in new) > _LONG
    with ThreadPoolExecutor() as pool:
        found = pool.map(file_sha256, [files[name] for name in new])
        hashes = dict(zip(new, progress(found, f"hashing {title}", total=len(new), unit="files", shown=shown), strict=True))
    return {name: [*state, hashes.get(name) or known[name][-1]] for name, state in states.items()}
