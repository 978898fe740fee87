"""Ctrl-C on the runner, as a terminal sends it to its process group: one line, and the next start goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from parlib.cache import ROOT

RUN = "01_poison/badnet_stripes_s0"


def _start(checkout: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "parlib.cli.run", "params/smoke", "--only", RUN],
        cwd=checkout,
        env=os.environ | {"PAR_CACHE": str(checkout / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell hands down an ignored one
    )


def test_ctrl_c_ends_in_a_line_and_the_next_start_goes_on(checkout):
    first = _start(checkout)
    for line in first.stdout:  # the base is trained and cached by then, poisoning is not
        if "pairs carry" in line:
            break
    os.killpg(first.pid, signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130
    assert errors.strip().splitlines()[-1] == "stopped; the same command goes on where it was"
    assert not (checkout / f"outputs/smoke/{RUN}.json").exists()
    models = {path.name for path in (checkout / "cache" / "models").iterdir()}
    assert len(models) == 1

    second = _start(checkout)
    printed, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    assert "missing; running it" in printed
    record = json.loads((checkout / f"outputs/smoke/{RUN}.json").read_text())
    weights = {Path(record["artifacts"][name]["path"]).parent.name for name in ("weights", "base_weights")}
    assert weights == {path.name for path in (checkout / "cache" / "models").iterdir()}
    assert weights > models  # the base was not trained again


_TRAINING = """
from dataclasses import replace
from parlib import fit
from parlib.data.scenes import load_scenes
from parlib.method.methods import METHODS, Recipe
from parlib.model.clip import create
from parlib.train.cached import train
fit._KEEP_EVERY = 0.0
usual, clip = METHODS["par"], create("small_resnet", seed=0)
def par(step):
    print("a step", flush=True)
    return usual.loss(step)
METHODS["par"] = replace(usual, loss=par)
METHODS["par"].__class__.code = property(lambda self: [])
made = train(clip, load_scenes("train", 48, 10), Recipe("par", 2, 8, 1e-3, 0, tau=1.0, looks=0), reference=clip)
print("weights", made.sha256)
"""


def _train(cache: Path, steps: int = 0) -> str:
    """Train in another process, which is killed at a step where one is named; the sha256 of its weights."""
    environment = os.environ | {"PAR_CACHE": str(cache)}
    process = subprocess.Popen([sys.executable, "-c", _TRAINING], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    seen = 0
    for line in process.stdout:
        seen += line.strip().endswith("a step")
        if steps and seen == steps:
            process.kill()
            break
    rest = process.stdout.read()
    process.wait()
    return "" if steps else (line + rest).split("weights ")[1].split()[0]


def test_kill_9_at_a_step_and_the_next_start_ends_with_the_same_weights(tmp_path):
    whole = _train(tmp_path / "whole")
    _train(tmp_path / "killed", steps=5)
    assert list((tmp_path / "killed" / "unfinished").glob("*.pt"))
    assert _train(tmp_path / "killed") == whole
    assert not list((tmp_path / "killed" / "unfinished").glob("*.pt"))
