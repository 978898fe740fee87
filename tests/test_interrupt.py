"""Ctrl-C on the runner, as a terminal sends it to its process group: one line, and the next start goes on. And kill -9."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from parlib.cache import ROOT
from parlib.data.scenes import load_scenes
from parlib.method.methods import Recipe
from parlib.model.clip import create
from parlib.train.cached import Trained, train

RUN = "01_poison/badnet_stripes_s0"


def _start(checkout: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "parlib.run", "params/smoke", "--only", RUN, *options],
        cwd=checkout,
        env=os.environ | {"PAR_CACHE": str(checkout / "cache"), "PAR_PROGRESS": "lines"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell hands down an ignored one
    )


def _models(checkout: Path) -> set[str]:
    return {path.name for path in (checkout / "cache" / "models").glob("*") if (path / "training.json").exists()}


def test_ctrl_c_ends_in_a_line_and_the_next_start_goes_on_without_its_notebook_too(checkout):
    loop = checkout / "parlib" / "train" / "loop.py"
    whole = loop.read_text()
    loop.write_text(whole + _SLOWLY)
    manager = checkout / "parlib" / "cli" / "notebooks.py"
    manager.write_text(manager.read_text() + _SLOW_TO_STOP)
    first = _start(checkout)
    for line in first.stdout:  # the base is trained and cached by then, poisoning has begun
        if "poisoning begins" in line:
            break
    os.killpg(first.pid, signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "stopped; the same command goes on where it was"
    assert "Traceback" not in errors
    assert not (checkout / f"outputs/smoke/{RUN}.json").exists()
    models = _models(checkout)
    assert len(models) == 1

    loop.write_text(whole)
    second = _start(checkout, "--functions")
    printed, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    assert f"{RUN}: missing" in printed
    record = json.loads((checkout / f"outputs/smoke/{RUN}.json").read_text())
    weights = {Path(record["artifacts"][name]["path"]).parent.name for name in ("weights", "base_weights")}
    assert weights == _models(checkout)
    assert weights > models  # the base was not trained again


_SLOWLY = """
_fit = fit
def fit(*arguments, title="", **options):
    print(title, "begins", flush=True)
    if title == "poisoning":
        time.sleep(60)
    return _fit(*arguments, title=title, **options)
"""

# As on a busy machine: nbclient still looks whether the kernel lives, and finds that it doesn't.
_SLOW_TO_STOP = """
import asyncio
_cleanup = _Manager._async_cleanup_resources
async def _slowly(self, restart=False):
    await asyncio.sleep(2)
    await _cleanup(self, restart)
_Manager._async_cleanup_resources = _Manager.cleanup_resources = _slowly
"""

_TRAINING = """
from dataclasses import replace
import torch
from parlib.method.methods import METHODS
from parlib.train import loop
from tests.test_interrupt import trained
torch.set_num_threads({threads})
loop._KEEP_EVERY = 0.0
usual = METHODS["par"]
def par(step):
    print("a step", flush=True)
    return usual.loss(step)
METHODS["par"] = replace(usual, loss=par)
trained()
"""


def trained() -> Trained:
    """Twelve steps of PAR."""
    clip = create("small_resnet", seed=0)
    return train(clip, load_scenes("train", 48, 10), Recipe("par", 2, 8, 1e-3, 0, tau=1.0, looks=0), reference=clip)


def test_kill_9_at_a_step_and_the_next_start_ends_with_the_same_weights(tmp_path, monkeypatch, capsys):
    code = _TRAINING.format(threads=torch.get_num_threads())
    environment = os.environ | {"PAR_CACHE": str(tmp_path / "killed"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    steps = 0
    for line in process.stdout:
        steps += line.strip().endswith("a step")
        if steps == 5:
            process.kill()
            break
    process.communicate()
    (kept,) = (tmp_path / "killed" / "unfinished").glob("*.pt")
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "killed"))
    resumed = trained()
    assert "resumed at step" in capsys.readouterr().out
    assert not kept.exists()
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "whole"))
    whole = trained()
    assert (resumed.sha256, resumed.history) == (whole.sha256, whole.history)
