"""Injected faults: each ends in the right result or in one clear error, and leaves nothing behind that grows. `make test-full` runs the
long ones; with --write-figures what they counted goes to docs/faults.json, from which README's line comes.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from faults import DAMAGE, cut, flip, good_inputs, killed, malformed, other_process, place, records, runner, timed
from test_interrupt import trained

from parlib import cache, progress
from parlib.cache import ROOT, atomic_file, atomic_folder, lock, read_json, read_tensors, seal, sealed, write_json, write_tensors
from parlib.cli.plan import plan
from parlib.data.scenes import load_scenes
from parlib.external.batches import Skipped, read
from parlib.model.checkpoints import read_checkpoint
from parlib.model.preparation import Preparation
from parlib.train.ray import _short_folder

CHAIN = """
experiment: main
defaults: {scale: smoke}
runs:
  - notebook: 01_poison
  - {notebook: 02_clean, method: par}
"""
SWEEP = f"""{CHAIN}
  - {{notebook: 03_tau_sweep, experiment: tau, name: grid, alone: false, space: [{{method: [par], tau: [0.5, 2.15], batch: [50]}}]}}
"""
GRID = CHAIN.replace("method: par", "method: [par, finetune]")


# Files


def test_a_cut_or_flipped_file_is_known(tmp_path, capsys):
    draw = random.Random(0)
    value, path = {"accuracy": 0.8125, "history": [1.0, 2.5], "name": "é"}, tmp_path / "a.json"
    tensors, about, other = {"pixels": torch.arange(60, dtype=torch.uint8).view(3, 20)}, {"captions": "a cat"}, tmp_path / "a.safetensors"
    write_json(value, path)
    write_tensors(tensors, other, about)
    assert read_json(path) == value
    whole, stored = path.read_bytes(), other.read_bytes()
    for damage in [cut] + 200 * [flip]:
        path.write_bytes(damage(whole, draw))
        found = read_json(path)
        assert found is None or {name: found[name] for name in value} == value
        other.write_bytes(damage(stored, draw))
        assert (kept := read_tensors(other)) is None or torch.equal(kept[0]["pixels"], tensors["pixels"])
    assert str(path) in capsys.readouterr().out
    assert read_json(tmp_path / "none.json") is read_tensors(tmp_path / "none.safetensors") is None


def test_what_earlier_versions_wrote_is_taken_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text('{"sha256": "ab", "seconds": 2.5}')
    assert read_json(tmp_path / "a.json") == {"sha256": "ab", "seconds": 2.5}
    cache.save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"captions": "b"})
    found = read_tensors(tmp_path / "a.safetensors")
    assert found is not None
    assert (found[0]["a"].tolist(), found[1]) == ([1.0, 1.0], {"captions": "b"})


def test_a_sealed_file_is_still_torch_s_and_a_damaged_one_is_known(tmp_path):
    path, draw = tmp_path / "a.pt", random.Random(0)
    torch.save({"net": torch.arange(100)}, path)
    seal(path)
    assert sealed(path)
    assert torch.load(path, weights_only=True)["net"].tolist() == list(range(100))
    whole = path.read_bytes()
    for damage in [cut, *DAMAGE.values()] + 50 * [flip]:
        path.write_bytes(damage(whole, draw))
        assert not sealed(path)


def test_drawn_scenes_that_were_changed_are_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))
    right = load_scenes("test", 12, 10)
    (path,) = (tmp_path / "scenes").iterdir()
    whole = path.read_bytes()
    for damage in (cut, flip):
        path.write_bytes(damage(whole, random.Random(0)))
        again = load_scenes("test", 12, 10)
        assert torch.equal(again.pixels, right.pixels)
        assert again.captions == right.captions


@pytest.mark.full
def test_a_model_of_which_any_file_was_changed_is_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))
    right = trained()
    for path in sorted(right.weights.parent.iterdir()):
        path.write_bytes(flip(path.read_bytes(), random.Random(1)))
        again = trained()
        assert (again.sha256, again.history) == (right.sha256, right.history)
        assert str(path) in capsys.readouterr().out
    assert not list(tmp_path.glob("unfinished/*"))


# Writers that die


@pytest.mark.parametrize("kind", [atomic_file, atomic_folder], ids=["file", "folder"])
def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path, kind):
    path = tmp_path / "held"
    with other_process(lambda: kind(path)) as (process, left):
        for alive in (True, False):
            with kind(path) as temporary:
                (temporary / "held" if temporary.is_dir() else temporary).write_text("whole")
            assert Path(left).exists() == alive
            process.kill()
            process.join()
    assert [one.name for one in tmp_path.iterdir()] == ["held"]


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no record"), FileNotFoundError(2, "no such file", "/of/another/file")], ids=["own", "errno"]
)
@pytest.mark.parametrize("kind", [atomic_file, atomic_folder], ids=["file", "folder"])
def test_an_error_of_what_is_read_is_not_said_to_be_the_disks(tmp_path, kind, error):
    with pytest.raises(FileNotFoundError) as raised, kind(tmp_path / "held"):
        raise error
    assert raised.value is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "maker"), [(atomic_file, "mkstemp"), (atomic_folder, "mkdtemp")], ids=["file", "folder"])
def test_a_new_name_that_another_writer_removed_is_drawn_again(tmp_path, monkeypatch, kind, maker):
    real, drawn = getattr(tempfile, maker), []

    def taken_once(**options):
        found = real(**options)
        drawn.append(Path(found if maker == "mkdtemp" else found[1]))
        if len(drawn) == 1:
            shutil.rmtree(drawn[0]) if drawn[0].is_dir() else drawn[0].unlink()
        return found

    monkeypatch.setattr(tempfile, maker, taken_once)
    with kind(tmp_path / "held") as temporary:
        (temporary / "held" if temporary.is_dir() else temporary).write_text("whole")
    assert len(set(drawn)) >= 2
    assert [one.name for one in tmp_path.iterdir()] == ["held"]


def test_a_lock_leaves_nothing_and_a_full_disk_is_no_reason(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with lock(tmp_path / "a.lock", wait=False, doing="this"):
        with pytest.raises(RuntimeError, match="this"), lock(tmp_path / "a.lock", wait=False, doing="that"):
            pass
        assert (tmp_path / "a.lock").exists()
    monkeypatch.setattr(os, "pwrite", full)
    with lock(tmp_path / "a.lock", wait=False, doing="this"):
        pass
    assert not list(tmp_path.iterdir())


def test_progress_goes_on_when_the_clock_is_set_back(monkeypatch, capsys):
    monkeypatch.setenv("PAR_PROGRESS", "lines")
    monkeypatch.setitem(progress._EVERY, "lines", 0.0)
    clock = iter(range(10_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    for _ in progress.progress(range(5), "steps", miniters=1):
        pass
    assert len(capsys.readouterr().out.splitlines()) >= 3


# Malformed inputs


def _take(kind: str, path: Path) -> str:
    """Read an input as a run would; what was skipped, in words."""
    if kind == "checkpoint":
        read_checkpoint(f"file:{path}", encoder="small_resnet")
    elif kind == "yaml":
        plan(path)
    else:
        skipped, layouts = Skipped(1.0), {"csv": "csv", "parquet": "parquet", "tar": "webdataset", "images": "folder"}
        folder = path.parent.parent if kind == "images" else path.parent
        for _ in read(f"{layouts[kind]}:{folder}", images=Preparation(64), batch=4, skipped=skipped):
            pass
        return str(skipped) if skipped.kinds else ""
    return ""


def test_inputs_are_taken_before_they_are_damaged(tmp_path):
    for kind, files in good_inputs(tmp_path).items():
        for name, content in files:
            assert _take(kind, place(tmp_path / name, kind, name, content)) == "", name


@pytest.mark.full
def test_malformed_inputs(tmp_path, figures):
    """An error is one line, of a kind that the runner knows, and names the input; what can be read is read, or skipped and counted."""
    trace = tmp_path / "trace"
    for kind, how, path in malformed(tmp_path, trace):
        before = {file: file.read_bytes() for file in path.parent.rglob("*")}
        try:
            outcome = "rows skipped and counted" if _take(kind, path) else "read as it stands"
        except (ValueError, OSError) as error:
            said, outcome = str(error), "one clear error"
            assert "\n" not in said, (kind, how, said)
            assert str(path.parent) in said, (kind, how, said)
        assert not trace.exists(), (kind, how)
        assert {file: file.read_bytes() for file in path.parent.rglob("*")} == before
        figures[outcome] += 1
    assert sum(figures.values()) == 100


# Runs that are killed


def _copies(folder: Path, plan: str) -> tuple[Path, Path]:
    """Two checkouts of which each training is kept after every step, with a parameter file."""
    found = folder / "killed", folder / "whole"
    for checkout in found:
        for name in ("parlib", "notebooks", "params", "docs"):
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", checkout)
        (checkout / "plan.yaml").write_text(plan)
        loop = checkout / "parlib" / "train" / "loop.py"
        text = loop.read_text()
        assert "_KEEP_EVERY = 20.0" in text
        loop.write_text(text.replace("_KEEP_EVERY = 20.0", "_KEEP_EVERY = 0.0"))
    return found


def _left(checkout: Path) -> list[str]:
    """What no run needs: temporary files, locks and unfinished trainings."""
    files = [path for top in ("cache", "outputs") for path in (checkout / top).rglob("*")]
    found = [path for path in files if path.name.startswith(".") or path.suffix == ".lock" or path.parent.name in ("unfinished", "ray")]
    return [path.relative_to(checkout).as_posix() for path in found]


@pytest.mark.full
@pytest.mark.parametrize(
    ("plan", "options"),
    [(CHAIN, ["--functions"]), (SWEEP, ["--functions"]), (GRID, ["--functions", "--jobs", "2", "--threads", "1"])],
    ids=["chain", "sweep", "grid"],
)
def test_kill_9_at_random_moments(tmp_path, plan, options, figures):
    """Twenty kills, up to four in a row before a run to the end."""
    draw = random.Random(0)
    checkout, whole = _copies(tmp_path, plan)
    told, seconds = timed(runner(whole, "plan.yaml", *options))
    right = records(whole)
    assert right, told
    while figures["kills"] < 20:
        shutil.rmtree(checkout / "cache", ignore_errors=True)
        shutil.rmtree(checkout / "outputs", ignore_errors=True)
        for _ in range(4):
            figures["kills"] += killed(runner(checkout, "plan.yaml", *options), draw.uniform(0, seconds))
        told, _ = timed(runner(checkout, "plan.yaml", *options))
        assert records(checkout) == right, told
        assert not _left(checkout)
        figures["runs to the end, with the same records"] += 1


@pytest.mark.full
def test_a_worker_that_dies_is_replaced(tmp_path, figures):
    """kill -9 a worker of Ray's at a step of its training: its run is made again, from where it was."""
    checkout, whole = _copies(tmp_path, GRID)
    options = ["plan.yaml", "--functions", "--jobs", "2", "--threads", "1"]
    timed(runner(whole, *options))
    process = runner(checkout, *options)
    while process.poll() is None and not figures["workers killed"]:
        for pid in _training(checkout)[:1]:
            os.kill(pid, 9)
            figures["workers killed"] += 1
        time.sleep(0.05)
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 0, told
    assert records(checkout) == records(whole)
    figures["runs to the end, with the same records"] += 1


@pytest.mark.full
def test_a_node_of_a_cluster_that_dies(tmp_path, figures, monkeypatch):
    """Two nodes of one CPU each, on this machine: they share a grid's runs out, and what the killed one was at, the other does."""
    from ray.cluster_utils import Cluster

    checkout, whole = _copies(tmp_path, GRID)
    timed(runner(whole, "plan.yaml", "--functions", "--jobs", "1", "--threads", "1"))
    own = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with cache.scratch(_short_folder() / "par-ray") as folder:
        (folder / "ray").mkdir()
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            node = cluster.add_node(num_cpus=1)
            (raylet,) = node.all_processes["raylet"]
            process = runner(checkout, "plan.yaml", "--functions", "--threads", "1", "--ray-address", cluster.address)
            while process.poll() is None and not figures["nodes killed"]:
                if raylet.process.pid in {_parent(pid) for pid in _training(checkout)}:
                    cluster.remove_node(node, allow_graceful=False)
                    figures["nodes killed"] += 1
                time.sleep(0.05)
            told, _ = process.communicate(timeout=600)
        finally:
            cluster.shutdown()
    assert process.returncode == 0, told
    assert figures["nodes killed"] == 1, told
    assert records(checkout) == records(whole)
    figures["runs to the end, with the same records"] += 1


def _training(checkout: Path) -> list[int]:
    """The processes that are in the middle of a training, with a checkpoint."""
    found = []
    for kept in (checkout / "cache").glob("unfinished/*.lock"):
        with suppress(FileNotFoundError):  # it is done
            if kept.with_suffix(".pt").exists():
                found += [int(pid) for pid in kept.read_text().split()[1:2]]
    return found


def _parent(pid: int) -> int | None:
    with suppress(FileNotFoundError):  # it is done
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.full
def test_two_runners_at_once(tmp_path, figures):
    """In one folder the second refuses; in two folders with one cache each training is made once, and the records are the same."""
    one, other = _copies(tmp_path, CHAIN)
    first = runner(one, "plan.yaml", "--functions")
    said = first.stdout.readline()
    refused, _ = timed(runner(one, "plan.yaml", "--functions"))
    assert f"process {first.pid}" in refused.splitlines()[-1], refused
    second, _ = timed(runner(other, "plan.yaml", "--functions", PAR_CACHE=str(one / "cache")))
    first.communicate(timeout=600)
    assert records(one) == records(other), said + second
    assert len(list((one / "cache" / "models").glob("*/training.json"))) == 3
    figures["refused"] += 1
    figures["runs to the end, with the same records"] += 1


# Disks


@pytest.fixture
def disk(tmp_path):
    """A small disk that a test can mount again with another size or read-only; skipped where it can't be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        again = ["-o", f"remount,{options}"] if folder.is_mount() else ["-t", "tmpfs", "-o", options, "tmpfs"]
        done = subprocess.run(["mount", *again, folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


WRITERS = {
    "json": lambda path: write_json({"a": list(range(50_000))}, path),
    "tensors": lambda path: write_tensors({"a": torch.zeros(100_000)}, path),
    "checkpoint": lambda path: _file(path, lambda temporary: (torch.save({"a": torch.zeros(100_000)}, temporary), seal(temporary))),
    "text": lambda path: _file(path, lambda temporary: temporary.write_text("x" * 400_000)),
    "copy": lambda path: _file(path, lambda temporary: shutil.copyfile(sys.executable, temporary)),
    "folder": lambda path: _folder(path),
}


def _file(path: Path, write) -> None:
    with atomic_file(path) as temporary:
        write(temporary)


def _folder(path: Path) -> None:
    with atomic_folder(path) as temporary:
        cache.save_file({"a": torch.zeros(100_000)}, temporary / "weights")


@pytest.mark.full
def test_a_full_disk_at_every_writer(disk, figures):
    folder = disk("size=128k")
    for name, write in WRITERS.items():
        with pytest.raises(OSError, match=str(folder / name)):
            write(folder / name)
        assert not list(folder.iterdir())
        figures["one clear error"] += 1
    disk("size=16m")
    for name, write in WRITERS.items():
        write(folder / name)


@pytest.mark.full
def test_a_full_disk_in_a_run(tmp_path, disk, figures):
    """The chain on disks of growing size: each time it ends in a line that names the file, and on the last one in the right records."""
    checkout, whole = _copies(tmp_path, CHAIN)
    timed(runner(whole, "plan.yaml", "--functions"))
    folder = disk("size=1m")
    for size in ("1m", "4m", "8m", "16m", "24m", "32m", "48m", "400m"):
        disk(f"size={size}")
        process = runner(checkout, "plan.yaml", "--functions", PAR_CACHE=str(folder / "cache"))
        told, _ = timed(process)
        if process.returncode:
            last = told.strip().splitlines()[-1]
            assert last.startswith("error: cannot write "), told
            assert str(folder) in last
            figures["one clear error"] += 1
    assert records(checkout) == records(whole)
    figures["runs to the end, with the same records"] += 1


@pytest.mark.full
def test_read_only_folders(tmp_path, disk, figures):
    checkout, other = _copies(tmp_path, CHAIN)
    folder = disk("size=1m")
    (folder / "cache").mkdir()
    disk("ro")
    (checkout / "outputs").symlink_to(folder)
    for of, environment in ((checkout, {}), (other, {"PAR_CACHE": str(folder / "cache")})):
        process = runner(of, "plan.yaml", "--functions", **environment)
        told, _ = timed(process)
        assert process.returncode == 1
        assert told.strip().splitlines()[-1].startswith("error: cannot write "), told
        figures["one clear error"] += 1


@pytest.mark.full
def test_a_clock_that_jumps_back(tmp_path, figures):
    checkout, whole = _copies(tmp_path, CHAIN)
    (checkout / "parlib" / "__init__.py").write_text(
        "import itertools, time\n_hours, _time = itertools.count(), time.time\ntime.time = lambda: _time() - 3600 * next(_hours)\n"
    )
    timed(runner(whole, "plan.yaml", "--functions"))
    told, _ = timed(runner(checkout, "plan.yaml", "--functions"))
    assert records(checkout) == records(whole), told
    figures["runs to the end, with the same records"] += 1


@pytest.mark.full
def test_every_file_of_the_cache_cut_and_flipped(tmp_path, figures):
    """Each file in its turn, its records away: the same records again, and not a word of a wrong number."""
    checkout, whole = _copies(tmp_path, CHAIN)
    timed(runner(whole, "plan.yaml", "--functions"))
    timed(runner(checkout, "plan.yaml", "--functions"))
    draw, right = random.Random(0), records(whole)
    for path in sorted(path for path in (checkout / "cache").rglob("*") if path.is_file()):
        for damage in (cut, flip):
            path.write_bytes(damage(path.read_bytes(), draw))
            shutil.rmtree(checkout / "outputs")
            told, _ = timed(runner(checkout, "plan.yaml", "--functions"))
            assert records(checkout) == right, (path, told)
            figures["made again"] += 1
