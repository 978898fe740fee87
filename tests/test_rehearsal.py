"""The dry run: it finds what is wrong before anything is trained, and trains nothing."""

import re

import pytest
from test_sources import _picture, cc3m

from parlib.cache import cache_dir
from parlib.model.clip import save
from parlib.experiments.params import check
from parlib.cli.dry_run import rehearse


@pytest.fixture
def own(clip, tmp_path) -> dict:
    """A checkpoint, pairs and labelled images of one's own, at the scenes' size."""
    (tmp_path / "model").mkdir()
    save(clip, tmp_path / "model")
    (tmp_path / "pairs").mkdir()
    cc3m(tmp_path / "pairs", count=40)
    for name in ("axe", "banana"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        _picture(7).save(tmp_path / "labelled" / name / "a.png")
    values = {"poisoned": f"local-dir:{tmp_path / 'model'}", "data": f"cc3m:{tmp_path / 'pairs'}"}
    return values | {"evaluation": f"folder:{tmp_path / 'labelled'}"} | {"pairs": 40, "batch": 20, "epochs": 1, "tests": ["blended"]}


def _rehearsed(values: dict) -> dict[str, tuple[str, bool]]:
    return {what.split(" ")[0]: (said, fine) for what, said, fine in rehearse(check("02_clean", values))}


def test_everything_is_looked_at_and_nothing_trained(own):
    before = set((cache_dir() / "models").glob("*"))
    found = _rehearsed(own)
    assert all(fine for _, fine in found.values()), found
    assert "64 px" in found["checkpoint"][0]
    assert "40 rows read, captions of 2 to 2 words, such as 'caption" in found["pairs"][0]
    assert "2 classes, 'banana' among them; 2 images read" in found["evaluation"][0]
    assert "blended (patch 0 px, strength 0.2)" in found["triggers"][0]
    assert "GB free" in found["disk"][0]
    assert "(40 pairs, 1 epochs" in found["time"][0]
    assert set((cache_dir() / "models").glob("*")) == before


@pytest.mark.parametrize(
    ("change", "what", "message"),
    [
        ({"target": "cat"}, "evaluation", "unknown class 'cat'; the classes are: axe, banana"),
        ({"poisoned": "local-dir:nowhere"}, "checkpoint", "holds no open_clip_config.json"),
        ({"data": "cc3m:nowhere"}, "pairs", r"holds no \*\*/\*.tar"),
        ({"encoder": "small_vit"}, "checkpoint", "is no small_vit: its layers"),
        ({"patch": 70}, "triggers", "a patch of 70 px does not fit"),
    ],
)
def test_what_is_wrong_is_marked(own, change, what, message):
    said, fine = _rehearsed(own | change)[what]
    assert not fine
    assert re.search(message, said), said
