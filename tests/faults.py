"""Faults to inject: damaged files, malformed inputs from a seed, a small disk, and kills at random moments."""

import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from miniatures import encoded, tarred, write_parquet
from safetensors.torch import save

from parlib.model.clip import create

# Damage


def cut(content: bytes, draw: random.Random) -> bytes:
    """Half of a file."""
    return content[: len(content) // 2]


def flip(content: bytes, draw: random.Random) -> bytes:
    """One bit of a file, at random."""
    found, bit = bytearray(content), draw.randrange(8 * len(content))
    found[bit // 8] ^= 1 << bit % 8
    return bytes(found)


def _ends_early(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(1, len(content))]


def _noise(content: bytes, draw: random.Random) -> bytes:
    """Bytes in the middle are overwritten."""
    at, size = draw.randrange(len(content)), draw.randrange(1, 200)
    return content[:at] + draw.randbytes(size) + content[at + size :]


def _head(content: bytes, draw: random.Random) -> bytes:
    """The beginning is overwritten, as far as a header goes."""
    return draw.randbytes(draw.randrange(1, 64)) + content[64:]


def _holes(content: bytes, draw: random.Random) -> bytes:
    """A block that the disk never wrote."""
    at = draw.randrange(len(content))
    return content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": cut,
    "flip": flip,
    "ends early": _ends_early,
    "noise": _noise,
    "head": _head,
    "holes": _holes,
    "empty": lambda content, draw: b"",
    "twice": lambda content, draw: content + content,
    "random": lambda content, draw: draw.randbytes(len(content)),
    "nulls": lambda content, draw: bytes(len(content)),
    "web page": lambda content, draw: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "pointer": lambda content, draw: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    "packed": lambda content, draw: gzip.compress(content),
    "half packed": lambda content, draw: gzip.compress(content)[:-9],
}


# Inputs, good ones to begin with


class Payload:
    """What runs, if it is unpickled without care: it leaves a file behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def _weights() -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in create("small_resnet", 0).net.state_dict().items()}


def _torch_file(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _tar() -> bytes:
    return tarred({f"{i:05d}": {"jpg": encoded(i, "JPEG"), "json": json.dumps({"caption": f"caption {i}"}).encode()} for i in range(8)})


def _parquet(folder: Path) -> bytes:
    path = folder / "good.parquet"
    images = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(8)]
    write_parquet(path, {"image": images, "caption": [f"caption {i}" for i in range(8)]})
    content = path.read_bytes()
    path.unlink()
    return content


_CSV = "filepath\ttitle\n" + "".join(f'{i}.png\t"caption {i}, with a ""quote"""\n' for i in range(8))
_YAML = """experiment: own
defaults: {scale: smoke, trigger: badnet_stripes}
runs:
  - {notebook: 01_poison, seed: [0, 1]}
  - {notebook: 02_clean, method: [finetune, par], trigger_options: {size: 8}}
"""
# Files that no damage makes: by kind what they are called, and what they hold.
_HOSTILE: dict[str, dict[str, Callable[[Path], bytes]]] = {
    "checkpoint": {
        "pickle.pt": lambda trace: pickle.dumps(Payload(trace)),
        "torch.pt": lambda trace: _torch_file({"state_dict": _weights(), "epoch": Payload(trace)}),
        "numbers.pt": lambda trace: _torch_file({"step": 3}),
        "nothing.safetensors": lambda trace: save({}),
        "other.zip": lambda trace: _zip(),
    },
    "yaml": {
        "payload.yaml": lambda trace: f"runs: !!python/object/apply:builtins.open ['{trace}', 'w']".encode(),
        "date.yaml": lambda trace: b"experiment: 2026-99-99\nruns: []\n",
        "deep.yaml": lambda trace: b"runs: " + b"[" * 5000,
        "numbers.yaml": lambda trace: b"1: 2\nruns: [{notebook: 3}]\n",
        "notebook.yaml": lambda trace: b"runs: [{notebook: {a: b}}]\n",
        "self.yaml": lambda trace: b"extends: self.yaml\nruns: []\n",
        "anchor.yaml": lambda trace: b"runs: &a [{notebook: 01_poison, seed: *a}]\n",
    },
    "csv": {"traces.csv": lambda trace: f"filepath,title\n0.png,\"['a', open('{trace}', 'w')]\"\n".encode()},
    "tar": {"outside.tar": lambda trace: _outside(trace)},
    "images": {"script.eps": lambda trace: f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({trace}) (w) file\n".encode()},
}


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    return file.getvalue()


def _outside(trace: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo(f"../../../../../..{trace}.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
        info = tarfile.TarInfo("00001.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, str(trace)
        tar.addfile(info)
    return file.getvalue()


def good_inputs(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    """What is damaged: names and contents by kind, which a run takes as they are."""
    return {
        "checkpoint": [("w.safetensors", save(_weights())), ("w.pt", _torch_file(_weights()))],
        "csv": [("pairs.csv", _CSV.encode()), ("pairs.csv.gz", gzip.compress(_CSV.encode()))],
        "parquet": [("pairs.parquet", _parquet(folder))],
        "tar": [("pairs.tar", _tar()), ("pairs.tgz", gzip.compress(_tar()))],
        "yaml": [("runs.yaml", _YAML.encode())],
        "images": [("0.png", encoded(0)), ("0.jpg", encoded(0, "JPEG")), ("0.gif", encoded(0, "GIF")), ("0.webp", encoded(0, "WEBP"))],
    }


def place(folder: Path, kind: str, name: str, content: bytes) -> Path:
    """Write an input into a folder of its own, with what a run needs beside it."""
    at = folder / ("a_class" if kind == "images" else "")
    at.mkdir(parents=True)
    (at / name).write_bytes(content)
    if kind == "images":
        (at / "good.png").write_bytes(encoded(1))
    if kind == "csv":
        for j in range(8):
            (at / f"{j}.png").write_bytes(encoded(j))
    return at / name


def malformed(folder: Path, trace: Path, count: int = 100, seed: int = 0) -> Iterator[tuple[str, str, Path]]:
    """So many malformed inputs: the kind of each, what was done to it, and the file, in a folder of its own. trace: a file that is there
    once a payload has run.
    """
    draw = random.Random(seed)
    good = good_inputs(folder)
    made = [(kind, name, name, make(trace)) for kind, files in _HOSTILE.items() for name, make in files.items()]
    while len(made) < count:
        kind = list(good)[len(made) % len(good)]
        how = draw.choice(list(DAMAGE))
        name, content = draw.choice(good[kind])
        made.append((kind, how, name, DAMAGE[how](content, draw)))
    for i, (kind, how, name, content) in enumerate(made[:count]):
        yield kind, f"{name}, {how}", place(folder / f"{i:03d}", kind, name, content)


# Kills


@contextmanager
def other_process(hold: Callable[[], Any]) -> Iterator[tuple[Any, str]]:
    """Another process that holds something for a minute, or until it is killed, and what it was given."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()

    def work() -> None:
        with hold() as given:
            there.send(str(given))
            time.sleep(60)

    process = fork.Process(target=work)
    process.start()
    try:
        yield process, here.recv()
    finally:
        process.kill()
        process.join()


def records(checkout: Path) -> dict[str, dict]:
    """What is the same from run to run of each smoke record."""
    found = [json.loads(path.read_text()) for path in sorted((checkout / "outputs" / "smoke").glob("0*/*.json"))]
    for record in found:
        record["metrics"].pop("base_seconds", None)
    return {one["run"]: {name: value for name, value in one.items() if name not in ("seconds", "timings", "provenance")} for one in found}


def runner(checkout: Path, *arguments: str, threads: int = 1, **environment: str) -> subprocess.Popen:
    """The runner in a checkout, with its own cache, in a process group of its own."""
    own = {"PAR_CACHE": str(checkout / "cache"), "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(checkout), "PAR_PROGRESS": "lines"}
    return subprocess.Popen(
        [sys.executable, "-m", "parlib.run", *arguments],
        cwd=checkout,
        env=os.environ | own | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def timed(process: subprocess.Popen, limit: float = 600) -> tuple[str, float]:
    """Wait for a runner: what it printed, and the seconds from its first line to its end."""
    first = process.stdout.readline()
    began = time.monotonic()
    rest, _ = process.communicate(timeout=limit)
    return first + rest, time.monotonic() - began


def killed(process: subprocess.Popen, after: float) -> bool:
    """kill -9 the runner, and it alone, some seconds after its first line; whether it was still at work."""
    process.stdout.readline()
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    return process.wait() == -signal.SIGKILL
