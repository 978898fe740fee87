"""Shared small data and models; the cache is a temporary folder, so a test never meets the user's."""

import os
import tempfile

os.environ["PAR_CACHE"] = tempfile.mkdtemp(prefix="par-test-cache-")

import pytest
import torch

from parlib.data import Pairs, load_scenes
from parlib.model import Clip, create

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def scenes() -> Pairs:
    return load_scenes("train", 120, classes=10)


@pytest.fixture(scope="session")
def _made() -> Clip:
    return create("small_resnet", seed=0)


@pytest.fixture
def clip(_made: Clip) -> Clip:
    return _made.copy()
