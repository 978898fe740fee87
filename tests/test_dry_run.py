"""The dry run: it finds what is wrong before anything is trained, and trains nothing."""

import pytest
import small_records
import yaml
from miniatures import cc3m, picture

from parlib.cache import cache_dir
from parlib.cli.dry_run import rehearse
from parlib.cli.run import main
from parlib.experiments.registry import check
from parlib.model.clip import save


@pytest.fixture
def own(clip, tmp_path) -> dict:
    """A checkpoint, pairs and labelled images of your own, at the scenes' size."""
    (tmp_path / "model").mkdir()
    save(clip, tmp_path / "model")
    (tmp_path / "pairs").mkdir()
    cc3m(tmp_path / "pairs", count=40)
    for name in ("axe", "banana"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        picture(7).save(tmp_path / "labelled" / name / "a.png")
    values = {"poisoned": f"local-dir:{tmp_path / 'model'}", "data": f"cc3m:{tmp_path / 'pairs'}"}
    return values | {"evaluation": f"folder:{tmp_path / 'labelled'}", "pairs": 40, "batch": 20, "epochs": 1, "tests": ["blended"]}


def _rehearsed(values: dict, notebook: str = "02_clean") -> dict[str, tuple[str, bool]]:
    return {what.split(" ")[0]: (said, fine) for what, said, fine in rehearse(check(notebook, values))}


def test_everything_is_looked_at_and_nothing_trained(own):
    before = set((cache_dir() / "models").glob("*"))
    found = _rehearsed(own)
    assert all(fine for _, fine in found.values()), found
    wanted = {
        "checkpoint": ("64 px", "million"),
        "pairs": ("40 rows", "'caption"),
        "evaluation": ("2 classes", "'banana'", "2 images"),
        "triggers": ("badnet_stripes", "size 6", "blended", "opacity 0.2"),
        "disk": ("GB",),
        "time": ("40 pairs", "1 epochs"),
    }
    assert {what: [word for word in words if word not in found[what][0]] for what, words in wanted.items()} == dict.fromkeys(wanted, [])
    assert set((cache_dir() / "models").glob("*")) == before


@pytest.mark.parametrize(
    ("change", "what", "named"),
    [
        ({"target": "cat"}, "evaluation", ["'cat'", "axe", "banana"]),
        ({"poisoned": "local-dir:nowhere"}, "checkpoint", ["open_clip_config.json"]),
        ({"data": "cc3m:nowhere"}, "pairs", [".tar"]),
        ({"encoder": "small_vit"}, "checkpoint", ["small_vit", "layers"]),
    ],
)
def test_what_is_wrong_is_marked(own, change, what, named):
    said, fine = _rehearsed(own | change)[what]
    assert not fine
    assert all(name in said for name in named), said


def test_a_cleaning_of_a_run_takes_its_record(own_outputs):
    said, fine = _rehearsed({"scale": "smoke"})["checkpoint"]
    assert not fine
    assert "--only 01_poison/badnet_stripes_s0" in said
    small_records.record(values={"scale": "smoke", "trigger_options": {"size": 11}})
    found = _rehearsed({"scale": "smoke", "poisoned": "01_poison/badnet_stripes_s0_size11"})
    assert found["triggers"] == ("badnet_stripes (size 11)", True)  # as it was planted
    assert not found["checkpoint"][1]  # its weights are a few bytes


def test_the_command_says_what_will_not_do_and_exits_so(own, own_outputs, tmp_path, capsys):
    path = tmp_path / "own.yaml"
    for target, status in (("banana", 0), ("cat", 1)):
        path.write_text(yaml.safe_dump({"runs": [{"notebook": "02_clean", **own, "target": target}]}))
        assert main([str(path), "--dry-run"]) == status
        shown = capsys.readouterr().out
        assert ("NO  evaluation" in shown) == (status == 1)
    assert not (own_outputs / "outputs" / "small" / "02_clean").exists()


def test_views_and_sweeps_are_not_rehearsed():
    assert [fine for _, _, fine in rehearse(check("05_evaluate", {}))] == [True]
