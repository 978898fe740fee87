"""Ctrl-C on the runner, as a terminal sends it to its process group: one line, and the next start goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from parlib.cache import ROOT

RUN = "01_poison/badnet_stripes_s0"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what the runner needs, with its own outputs and cache; `python -m` prefers it to the installed one."""
    for folder in ("parlib", "notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _start(checkout: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "parlib.run", "params/smoke", "--only", RUN],
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
