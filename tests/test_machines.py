"""The main job's smoke form, notebooks and all, on machines set up in another way: each gives the same records. `make test-full`."""

import os
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
from faults import records

from parlib.cache import ROOT

pytestmark = pytest.mark.full
PLAN = """
experiment: scarce
defaults: {scale: smoke, trigger: badnet_stripes}
runs:
  - notebook: 01_poison
  - {notebook: 02_clean, method: [finetune, par]}
  - notebook: 05_evaluate
"""
_NOT_THERE = Path("/proc/self/none")  # a folder that not even root can make


def _run(checkout: Path, umask: int = 0o022, **environment: str) -> subprocess.CompletedProcess:
    (checkout / "plan.yaml").write_text(PLAN)
    given = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING"))}
    given |= {"PAR_CACHE": str(checkout / "cache"), "LANG": "C.UTF-8"} | environment
    command = [sys.executable, "-m", "parlib.run", "plan.yaml"]
    return subprocess.run(
        command, cwd=checkout, env=given, capture_output=True, text=True, timeout=900, preexec_fn=partial(os.umask, umask)
    )


@pytest.fixture(scope="module")
def usual(shared_checkout) -> dict[str, dict]:
    """The records of a machine as the others are."""
    done = _run(shared_checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    return records(shared_checkout)


def test_a_path_with_spaces(usual, checkout):
    spaced = checkout.rename(checkout.with_name("PAR, a kör's copy (1)"))
    _succeeds(spaced, usual)


def test_a_downloaded_zip(usual, tmp_path):
    """What a host offers for download: the tracked files alone, without git."""
    packed = tmp_path / "main.zip"
    done = subprocess.run(["git", "archive", "--format=zip", "--prefix=par-main/", f"--output={packed}", "HEAD"], cwd=ROOT)
    if done.returncode:
        pytest.skip("no git checkout here")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    _succeeds(tmp_path / "par-main", usual)


def test_a_locale_without_letters_beyond_ascii(usual, checkout):
    _succeeds(checkout, usual, LC_ALL="C", LANG="C")


def test_a_umask_that_shuts_others_out(usual, checkout):
    _succeeds(checkout, usual, umask=0o077)
    made = [path for path in (checkout / "outputs").rglob("*") if path.is_file()]
    assert made
    assert all(path.stat().st_mode & 0o077 == 0 for path in made)


def test_a_home_that_can_not_be_written(usual, checkout):
    _succeeds(checkout, usual, HOME=str(_NOT_THERE))


def test_without_a_cache_that_can_be_written_one_line_says_so(checkout):
    done = _run(checkout, HOME=str(_NOT_THERE), PAR_CACHE="")
    assert done.returncode == 1
    assert "none/.cache/par" in done.stderr.splitlines()[-1]
    assert "PAR_CACHE" in done.stderr.splitlines()[-1]
    assert not (checkout / "outputs").exists() or not list((checkout / "outputs").rglob("*.json"))


def _succeeds(checkout: Path, usual: dict[str, dict], **how) -> None:
    done = _run(checkout, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert records(checkout) == usual
    assert (checkout / "outputs" / "smoke" / "05_evaluate.ipynb").exists()
    assert list((checkout / "outputs" / "smoke" / "02_clean").glob("*.png"))
