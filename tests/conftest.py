"""Shared small data and models; tests use the cache that make test names, else a temporary one: never the user's."""

import atexit
import json
import os
import re
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ |= {"HF_HUB_OFFLINE": "1", "PAR_PROGRESS": "lines"}
if "smoke" not in Path(os.environ.get("PAR_CACHE", "")).parts:
    os.environ["PAR_CACHE"] = tempfile.mkdtemp(prefix="par-test-cache-")
    atexit.register(shutil.rmtree, os.environ["PAR_CACHE"], ignore_errors=True)

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

if TYPE_CHECKING:  # the process that only hands out tests to others need not wait for torch
    from parlib.data.pairs import Pairs
    from parlib.model.clip import Clip

ROOT = Path(__file__).resolve().parents[1]
# In this order the workers of make test begin files: what is long first, so that they end together.
_ORDER = (
    r"test_notebooks\.py",
    r"test_mini_world\.py",
    _PLANTED := r"\d\d_0[12]_.*\.ipynb",  # these are one worker's
    _RUNS := r"\d\d_(03|04|07|08|09|10)_.*\.ipynb",  # of the runs of params/smoke/functions.yaml
    r"test_(gradcache|interrupt|sweep)\.py",
    r"test_.*\.py",
    r".*\.ipynb",  # of the records of all of them
)


def _place(name: str) -> int:
    return next(i for i, pattern in enumerate(_ORDER) if re.fullmatch(pattern, name))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the cores: OMP_NUM_THREADS says how
        import torch

        torch.set_num_threads(2)
    items.sort(key=lambda item: _place(item.path.name))


class _Files(LoadFileScheduling):
    """--dist loadfile, where a worker takes a file at a time; but 01 and 02 as if they were one, and a notebook only when all that it
    builds on has run. Where nothing else is left a worker waits for it.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return _PLANTED if re.fullmatch(_PLANTED, Path(file).name) else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        units = [unit for mine in self.assigned_work.values() for unit in mine.items()]
        # A worker holds its last test until it is told of the next one; a notebook's last cell comes after its record.
        begun = [scope for scope, unit in units if list(unit.values()).count(False) > 1]
        lowest = min((_level(Path(scope).name) for scope in (*self.workqueue, *begun) if scope.endswith(".ipynb")), default=0)
        self.assigned_work.setdefault(node, {})
        ready = [scope for scope in self.workqueue if not scope.endswith(".ipynb") or _level(Path(scope).name) == lowest]
        if ready:
            self.workqueue.move_to_end(ready[0], last=False)
            super()._assign_work_unit(node)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        for other in self.nodes:
            if other is not node:
                self._reschedule(other)  # it may have waited for this test


def _level(name: str) -> int:
    """Notebooks of a higher level show the records of the lower one."""
    return int(name != _PLANTED and not re.fullmatch(_RUNS, name))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    return _Files(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="keep the golden output of each stage that has none of its version yet")
    parser.addoption("--write-figures", action="store_true", help="keep what tests count or measure in docs/*.json")


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


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def scenes() -> "Pairs":
    from parlib.data.scenes import load_scenes

    return load_scenes("train", 120, classes=10)


@pytest.fixture(scope="session")
def _made() -> "Clip":
    from parlib.model.clip import create

    return create("small_resnet", seed=0)


@pytest.fixture
def clip(_made: "Clip") -> "Clip":
    return _made.copy()


@pytest.fixture
def figures(request):
    """What a test counts or measures; with --write-figures, and if it passes, kept by its name in docs, in a file a module."""
    found: defaultdict[str, Any] = defaultdict(int)
    failed = request.session.testsfailed
    yield found
    name = request.node.name.removeprefix("test_")
    print(f"{name}: {dict(found)}")
    if request.config.getoption("--write-figures") and found and request.session.testsfailed == failed:
        path = ROOT / "docs" / f"{request.module.__name__.removeprefix('test_')}.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        text = json.dumps(dict(sorted((kept | {name: dict(found)}).items())), indent=1) + "\n"
        path.write_text(re.sub(r"\[[^][{}]*\]|\{[^][{}]*\}", lambda row: " ".join(row[0].split()), text))  # a row in one line
