"""External pairs while a model trains on them: the same batches from the same seed, shared out, and resumed."""

from dataclasses import replace

import datasets
import pytest
import torch
from miniatures import cc3m, encoded, picture, write_csv, write_parquet

from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.experiments.clean_params import Clean
from parlib.experiments.lineage import evaluation_images
from parlib.external import batches
from parlib.external.batches import Skipped
from parlib.external.stream import Stream, captioned, labelled, named
from parlib.measure.metrics import evaluate
from parlib.method.eda import reword
from parlib.method.methods import Recipe
from parlib.model.clip import create
from parlib.model.preparation import Preparation
from parlib.train import loop
from parlib.train.cached import train
from parlib.train.loop import fit

SIDE = Preparation(64)
STRIPES = Trigger("badnet_stripes", {"size": 6})
RECIPE = Recipe("par", epochs=2, batch=10, lr=1e-3, seed=3, tau=2.15, looks=0)


@pytest.fixture
def pairs(tmp_path) -> Stream:
    (tmp_path / "cc3m").mkdir()
    cc3m(tmp_path / "cc3m", count=40)
    return Stream(f"cc3m:{tmp_path / 'cc3m'}", 40, SIDE)


def test_a_step_s_batch_depends_on_nothing_else(clip, pairs):
    feed = pairs.feed(clip, reword)
    batches = [feed.batch(step, 10, seed=1) for step in range(8)]
    assert [batch.pixels.shape for batch in batches] == [(10, 3, 64, 64)] * 8
    texts = [tuple(map(tuple, batch.tokens.tolist())) for batch in batches]
    assert len({row for text in texts[:4] for row in text}) == 40  # an epoch sees each pair once
    assert set(texts[:4]) != set(texts[4:])  # in another order
    fresh = pairs.feed(clip, reword).batch(6, 10, seed=1)
    assert torch.equal(fresh.pixels, batches[6].pixels)
    assert torch.equal(fresh.reworded, batches[6].reworded)
    assert not torch.equal(fresh.reworded, fresh.tokens)


def test_a_plural_is_told_as_its_class():
    assert named("a dog and two Cats", ("dog", "cat")) == {0, 1}


def test_another_seed_draws_others(pairs):
    first, again, other = (pairs.drawn(10, seed=seed).captions for seed in (0, 0, 1))
    assert first == again
    assert set(other) - set(first)


def test_a_short_data_set_begins_again_and_says_so(clip, pairs, capsys):
    longer = Stream(pairs.data, 60, SIDE).feed(clip)
    for step in range(6):
        longer.batch(step, 10, seed=0)
    said = capsys.readouterr().out
    assert pairs.data in said
    assert "40 pairs of 60" in said
    with pytest.raises(ValueError, match="50 usable"):
        Stream(pairs.data, 60, SIDE).feed(clip).batch(0, 50, seed=0)


@pytest.mark.parametrize("at", [6, 4])
def test_training_on_a_stream_resumes_to_the_same_weights(clip, tmp_path, monkeypatch, at):
    """In the middle of an epoch and between two, with the same rows left out."""
    names = [f"{i}.png" for i in range(44)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded(i) if i % 11 else b"no image")
    write_csv(tmp_path / "pairs.csv", [(name, "a cat") for name in names])
    stream = lambda: Stream(f"csv:{tmp_path}", 40, SIDE, Skipped(1.0))  # noqa: E731
    whole, feed = clip.copy(), stream().feed(clip)
    history, _ = fit(whole, feed, RECIPE, reference=clip)
    monkeypatch.setattr(loop, "_KEEP_EVERY", 0.0)
    cut, stopped = clip.copy(), stream().feed(clip)
    real, stopped.batch = stopped.batch, lambda step, *rest: real(step, *rest) if step < at else 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(cut, stopped, RECIPE, reference=clip, checkpoint=tmp_path / "cut.pt")
    resumed, again = clip.copy(), stream().feed(clip)
    found, _ = fit(resumed, again, RECIPE, reference=clip, checkpoint=tmp_path / "cut.pt")
    assert found == history
    assert again.skipped() == feed.skipped()
    assert sum(feed.skipped()["skipped"]["kinds"].values()) > 4
    assert all(torch.equal(value, resumed.net.state_dict()[name]) for name, value in whole.net.state_dict().items())


def test_a_stream_is_trained_on_once_and_other_files_are_another_training(clip, pairs, tmp_path):
    one = train(clip, pairs, RECIPE, reference=clip)
    assert train(clip, Stream(pairs.data, 40, SIDE), RECIPE, reference=clip).weights == one.weights
    (tmp_path / "cc3m" / "more.txt").write_text("one more file")
    assert train(clip, pairs, RECIPE, reference=clip).weights != one.weights


def test_labelled_and_captioned_images_are_evaluated_together(clip, tmp_path):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "coco").mkdir()
    images = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(12)]
    write_parquet(tmp_path / "imagenet" / "validation-0.parquet", {"image": images, "label": [954, *range(11)]})
    captions = [[f"caption {i}.{k}" for k in range(5)] for i in range(11)] + [["a banana"] * 5]
    write_parquet(tmp_path / "coco" / "test-0.parquet", {"image": images, "caption": captions})
    shown = labelled(f"imagenet:{tmp_path / 'imagenet'}", 50, Preparation(64), 0.01)
    others = captioned(f"coco:{tmp_path / 'coco'}", 50, Preparation(64), 0.01, "banana")
    assert (len(shown.names), sorted(shown.labels.tolist())) == (1000, [*range(11), 954])
    assert others.shows(0).sum() == 1
    shown = replace(shown, templates=shown.templates[:2])
    test = attacked(shown, STRIPES, "banana", others)
    found = evaluate(clip, test)
    assert found["attack_success_rate_n"] == 11
    assert found["tr_at_1_n"] == 12
    assert found["ir_at_1_n"] == 60
    assert found["retrieval_asr_n"] == 11
    alone = evaluate(clip, attacked(shown, STRIPES, "banana"))
    assert "tr_at_1" not in alone


@pytest.mark.parametrize("alone", ["evaluation", "retrieval"])
def test_images_that_all_show_the_target_measure_no_asr(alone, tmp_path):
    for name in ("labelled", "captioned"):
        (tmp_path / name).mkdir()
    images = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(2)]
    labels = [954, 954] if alone == "evaluation" else [954, 3]
    write_parquet(tmp_path / "labelled" / "validation-0.parquet", {"image": images, "label": labels})
    picture(4).save(tmp_path / "captioned" / "a.png")
    write_csv(tmp_path / "captioned" / "pairs.csv", [("a.png", "a Banana"), ("a.png", "two bananas")])
    folders = {"evaluation": f"imagenet:{tmp_path / 'labelled'}", "retrieval": f"csv:{tmp_path / 'captioned'}"}
    with pytest.raises(ValueError, match=f"{folders[alone]}.*'banana'"):
        evaluation_images(Clean.check(folders), create("small_resnet"))


def test_a_folder_names_its_classes(tmp_path):
    for name in ("red_fox", "banana"):
        (tmp_path / "train" / name).mkdir(parents=True)
        picture(3).save(tmp_path / "train" / name / "a.png")
    (tmp_path / "train" / "banana" / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="1 of 3"):
        labelled(f"folder:{tmp_path}", 10, Preparation(32), 0.01)
    found = labelled(f"folder:{tmp_path}", 10, Preparation(32), 0.5)
    assert found.names == ["banana", "red fox"]
    assert found.skipped["kinds"] == {"unreadable image": 1}
    assert sorted(found.labels.tolist()) == [0, 1]


def test_images_of_a_folder_are_drawn_from_all_its_classes(tmp_path, monkeypatch):
    """Though they come class by class, and more of them than are shuffled where rows hold the images themselves."""
    monkeypatch.setattr(batches, "_BUFFER", 4)
    for name in "abcd":
        (tmp_path / name).mkdir()
        for i in range(10):
            picture(i).save(tmp_path / name / f"{i}.png")
    labels = labelled(f"folder:{tmp_path}", 12, Preparation(32), 0.01).labels
    assert set(labels.tolist()) == {0, 1, 2, 3}
    assert labels.bincount().max() <= 6


def test_labels_without_names_are_an_error(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"image": [{"bytes": encoded(1), "path": "1.png"}], "label": [3]})
    with pytest.raises(ValueError, match="ClassLabel"):
        labelled(f"labelled_parquet:{tmp_path}", 10, Preparation(32), 0.01)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["axe", "banana", "cat", "dog"])})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": encoded(1), "path": "1.png"}], "label": [3]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    assert labelled(f"labelled_parquet:{tmp_path}", 10, Preparation(32), 0.01).names[3] == "dog"


def test_too_many_skipped_rows_end_a_training(clip, tmp_path):
    picture(1).save(tmp_path / "1.png")
    write_csv(tmp_path / "pairs.csv", [("1.png", f"here {i}") for i in range(120)] + [("gone.png", "gone")] * 8)
    with pytest.raises(ValueError, match="missing file.*1.0%"):
        train(clip, Stream(f"csv:{tmp_path}", 120, SIDE), RECIPE, reference=clip)
    loose = Stream(f"csv:{tmp_path}", 120, SIDE, Skipped(0.2))
    train(clip, loose, RECIPE, reference=clip)
    assert loose.skipped.kinds["missing file"] >= 8
