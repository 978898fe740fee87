"""Each stage computes what its version is known to compute, and one that computes something else is told to raise its version.

After a version is raised: pytest tests/test_golden.py --write-golden
"""

import golden_outputs as golden
import pytest
import torch

from parlib.attack.triggers import TRIGGERS, blended_triangles
from parlib.data import scenes
from parlib.method import methods
from parlib.method.losses import clip_loss, par_loss
from parlib.stages import STAGES


@pytest.fixture
def drawn_anew():
    """The scenes that stages share are drawn once in a process."""
    golden._pairs.cache_clear()
    yield
    golden._pairs.cache_clear()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_computes_what_its_version_is_known_to_compute(stage, request):
    if request.config.getoption("--write-golden"):
        golden.write(stage)
    assert golden.compare(stage) == ""


def test_there_is_a_golden_output_of_each_stage_and_none_of_what_is_no_stage():
    found = [path.relative_to(golden.FOLDER).with_suffix("").as_posix().rpartition("@") for path in golden.FOLDER.rglob("*.json")]
    kept = {(stage, int(version)) for stage, _, version in found}
    assert set(STAGES.items()) <= kept
    assert [(stage, version) for stage, version in kept if not 1 <= version <= STAGES.get(stage, 0)] == []


def _told(stage: str) -> bool:
    said = golden.compare(stage)
    return stage in said and "raise its version" in said


def test_another_loss_is_told(monkeypatch):
    monkeypatch.setattr(methods, "par_loss", lambda l_clip, *given: l_clip - 1.001 * (l_clip - par_loss(l_clip, *given)))
    assert _told("method/par")
    assert _told("method/perturb_only")
    assert golden.compare("method/finetune") == ""
    monkeypatch.setattr(methods, "clip_loss", lambda image, text, scale: clip_loss(image, text, 1.001 * scale))
    assert _told("method/finetune")


def test_another_peak_of_the_learning_rate_is_told(monkeypatch):
    monkeypatch.setattr(golden, "learning_rate", lambda *given: 1.001 * golden.fit.__globals__["learning_rate"](*given))
    assert _told("loop")


def test_another_pattern_of_a_trigger_is_told(monkeypatch):
    def flipped(pixels, generator, *, tile, opacity, pattern=None):
        return blended_triangles(pixels.mT, generator, tile=tile, opacity=opacity, pattern=pattern).mT

    monkeypatch.setitem(TRIGGERS, "blended_triangles", flipped)
    assert _told("trigger/blended_triangles")
    assert golden.compare("trigger/checkerboard") == ""


def test_another_draw_of_the_scenes_is_told(monkeypatch, drawn_anew):
    monkeypatch.setattr(scenes, "_TEMPLATED", 0.41)
    assert _told("scenes")


def test_another_rounding_of_a_pixel_is_told(monkeypatch, drawn_anew):
    ground = scenes._ground
    monkeypatch.setattr(scenes, "_ground", lambda *given: ground(*given) + torch.tensor([0.001, 0.0, 0.0])[:, None, None])
    assert _told("scenes")


def test_a_raised_version_wants_an_output_of_its_own_which_is_written_once(monkeypatch, tmp_path):
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    assert golden.write("trigger/sig")
    before = golden.golden_path("trigger/sig").read_text()
    assert golden.compare("trigger/sig") == ""
    monkeypatch.setitem(STAGES, "trigger/sig", STAGES["trigger/sig"] + 1)
    assert "--write-golden" in golden.compare("trigger/sig")
    assert golden.write("trigger/sig")
    assert len(list(tmp_path.rglob("*.json"))) == 2
    golden.golden_path("trigger/sig").write_text('{"64 px": "other", "224 px": "other"}')
    assert not golden.write("trigger/sig")
    assert _told("trigger/sig")
    monkeypatch.setitem(STAGES, "trigger/sig", STAGES["trigger/sig"] - 1)
    assert golden.golden_path("trigger/sig").read_text() == before


@pytest.mark.parametrize(
    ("known", "found", "same"),
    [
        (1.0, 1.00005, True),
        (1.0, 1.0002, False),
        (0.0, 0.0, True),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.0]}, True),
        ({"a": [1.0, 2.0]}, {"a": [1.0]}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ("3f", "3e", False),
        (1, 2, False),
    ],
)
def test_floats_may_differ_by_a_ten_thousandth_and_all_else_not_at_all(known, found, same):
    assert (golden._unlike(known, found) == "") is same
