"""Shared small data and models; tests use the cache that make test names, else a temporary one: never the user's."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if "smoke" not in Path(os.environ.get("PAR_CACHE", "")).parts:
    os.environ["PAR_CACHE"] = tempfile.mkdtemp(prefix="par-test-cache-")
    atexit.register(shutil.rmtree, os.environ["PAR_CACHE"], ignore_errors=True)

import pytest
import torch

from parlib.cache import ROOT
from parlib.data.scenes import Pairs, load_scenes
from parlib.model.clip import Clip, create

torch.set_num_threads(2)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what the runner needs, with its own outputs and cache; `python -m` prefers it to the installed one."""
    for folder in ("parlib", "notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def scenes() -> Pairs:
    return load_scenes("train", 120, classes=10)


@pytest.fixture(scope="session")
def _made() -> Clip:
    return create("small_resnet", seed=0)


@pytest.fixture
def clip(_made: Clip) -> Clip:
    return _made.copy()
