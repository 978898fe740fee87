"""Shared small data and models; tests use the cache that make test names, else a temporary one: never the user's."""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "PAR_PROGRESS": "lines"}
if "smoke" not in Path(os.environ.get("PAR_CACHE", "")).parts:
    os.environ["PAR_CACHE"] = tempfile.mkdtemp(prefix="par-test-cache-")
    atexit.register(shutil.rmtree, os.environ["PAR_CACHE"], ignore_errors=True)

import pytest
import torch

from parlib.cache import ROOT
from parlib.data.pairs import Pairs
from parlib.data.scenes import load_scenes
from parlib.model.clip import Clip, create

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the cores: OMP_NUM_THREADS says how
    torch.set_num_threads(2)
_FIRST = (r"0[0-5]_.*\.ipynb", r"test_(mini_world|gradcache|notebooks|sweep|interrupt)\.py", r"test_.*\.py", r".*\.ipynb")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The notebooks that others build on first, then what is long: so two workers (--dist loadfile) end together."""
    items.sort(key=lambda item: next(i for i, name in enumerate(_FIRST) if re.fullmatch(name, item.path.name)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="keep the golden output of each stage that has none of its version yet")


def _copied(folder: Path) -> Path:
    for name in ("parlib", "notebooks", "params", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what the runner needs, with its own outputs and cache; `python -m` prefers it to the installed one."""
    return _copied(tmp_path)


@pytest.fixture(scope="module")
def shared_checkout(tmp_path_factory) -> Path:
    """The same, shared by the tests of a module."""
    return _copied(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def own_outputs(tmp_path, monkeypatch) -> Path:
    """A folder of the test's own in whose outputs records are kept, and looked for."""
    for module in ("parlib.records.store", "parlib.experiments.result"):
        monkeypatch.setattr(f"{module}.ROOT", tmp_path)
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
