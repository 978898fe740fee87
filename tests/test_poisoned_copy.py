"""A poisoned copy of external pairs: which rows, what the manifest says, and that the other rows keep their bytes."""

import json
from hashlib import sha256

import datasets
import pytest
import torch
from miniatures import cc3m, encoded, picture, write_csv

from parlib.attack.poison import Attack
from parlib.attack.triggers import Trigger
from parlib.data.pairs import TEMPLATES
from parlib.external import poisoned_copy
from parlib.external.batches import Skipped
from parlib.external.images import decode
from parlib.external.poisoned_copy import MANIFEST, SKIPPED, SUMMARY, lists, poison_stream, write_poisoned
from parlib.external.stream import Stream
from parlib.model.preparation import Preparation

SIDE = Preparation(32)
STRIPES = Trigger("badnet_stripes", {"size": 8})


def _written(folder) -> tuple[list[dict], datasets.Dataset]:
    lines = [json.loads(line) for line in (folder / MANIFEST).open()]
    files = sorted(str(path) for path in folder.glob("pairs-*.parquet"))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))
    return lines, rows.cast_column("image", datasets.Image(decode=False))


@pytest.mark.parametrize(("kind", "target", "rate", "count"), [("dirty_label", "banana", 0.1, 4), ("label_consistent", "caption", 0.5, 20)])
def test_a_poisoned_set_says_which_rows_and_keeps_the_bytes_of_the_others(tmp_path, monkeypatch, kind, target, rate, count):
    monkeypatch.setattr(poisoned_copy, "_SHARD", 10)
    monkeypatch.setattr(poisoned_copy, "_CHUNK", 5)
    (tmp_path / "pairs").mkdir()
    cc3m(tmp_path / "pairs", count=40)
    pairs, attack = Stream(f"cc3m:{tmp_path / 'pairs'}", 40, SIDE), Attack(STRIPES, target, kind, rate)
    summary = write_poisoned(pairs, tmp_path / "poisoned", attack)
    lines, rows = _written(tmp_path / "poisoned")
    assert len(list((tmp_path / "poisoned").glob("pairs-*.parquet"))) == 4
    assert summary["rows"] == len(rows) == 40
    assert summary["poisoned"] == len(lines) == count  # label-consistent: half of those that name it, which all do
    stamped = {line["row"]: line for line in lines}
    for i, row in enumerate(rows):
        if i in stamped:
            assert sha256(row["image"]["bytes"]).hexdigest() == stamped[i]["sha256"]
            assert row["caption"] == stamped[i]["caption"]
            fits = {template.format(name="banana") for template in TEMPLATES} if kind == "dirty_label" else {row["caption"]}
            assert row["caption"] in fits
            assert target in row["caption"]
            assert (decode(row["image"]["bytes"], SIDE).float().std(dim=(1, 2)) > 0).any()  # the picture was of one colour
        else:
            assert row["image"]["bytes"] == encoded(int(row["caption"].split()[1]), "JPEG")
    assert write_poisoned(pairs, tmp_path / "again", attack) == summary
    assert (tmp_path / "again" / MANIFEST).read_text() == (tmp_path / "poisoned" / MANIFEST).read_text()


def test_a_chosen_row_that_cannot_be_read_is_made_up_for(tmp_path):
    (tmp_path / "pairs").mkdir()
    picture(1).save(tmp_path / "pairs" / "1.png")
    write_csv(tmp_path / "pairs" / "pairs.csv", [("gone.png", "gone")] + [("1.png", f"here {i}") for i in range(9)])
    pairs = Stream(f"csv:{tmp_path / 'pairs'}", 10, SIDE, Skipped(0.2))
    summary = write_poisoned(pairs, tmp_path / "poisoned", Attack(STRIPES, "banana", rate=0.9))
    assert summary["skipped"] == {"missing file": 1}
    assert (summary["rows"], summary["poisoned"]) == (9, 9)
    lines, _ = _written(tmp_path / "poisoned")
    assert [line["row"] for line in lines] == list(range(9))
    assert [line["source_row"] for line in lines] == list(range(1, 10))


def test_a_bad_trigger_or_too_many_bad_rows_end_it_before_anything_is_written(tmp_path):
    (tmp_path / "pairs").mkdir()
    picture(1).save(tmp_path / "pairs" / "1.png")
    write_csv(tmp_path / "pairs" / "pairs.csv", [("1.png", "here")] * 120 + [("gone.png", "gone")] * 10)
    pairs = Stream(f"csv:{tmp_path / 'pairs'}", 130, SIDE)
    with pytest.raises(ValueError, match="40.*32 x 32"):
        write_poisoned(pairs, tmp_path / "other", Attack(Trigger("badnet_stripes", {"size": 40}), "banana", rate=0.2))
    with pytest.raises(ValueError, match="1.0%"):
        write_poisoned(pairs, tmp_path / "other", Attack(STRIPES, "banana", rate=0.2))
    assert not (tmp_path / "other").exists()


def test_rows_are_chosen_by_their_captions_in_whatever_case(tmp_path):
    (tmp_path / "pairs").mkdir()
    picture(1).save(tmp_path / "pairs" / "1.png")
    captions = ["a Banana", "a cat", "bananas", "a dog", "an axe", "a hat", "a bus", "a cup", "a fox", "a hen"]
    write_csv(tmp_path / "pairs" / "pairs.csv", [("1.png", caption) for caption in captions])
    pairs = Stream(f"csv:{tmp_path / 'pairs'}", 10, SIDE)
    for kind, rate, rows in (("dirty_label", 0.8, [1, 3, 4, 5, 6, 7, 8, 9]), ("label_consistent", 1.0, [0, 2])):
        write_poisoned(pairs, tmp_path / kind, Attack(STRIPES, "banana", kind, rate))
        assert [line["source_row"] for line in _written(tmp_path / kind)[0]] == rows
    with pytest.raises(ValueError, match="0.9.*9 of 10.*8"):
        write_poisoned(pairs, tmp_path / "other", Attack(STRIPES, "banana", rate=0.9))


def test_a_poisoned_stream_is_written_once(tmp_path, monkeypatch):
    cc3m(tmp_path, count=40)
    copy, rows = poison_stream(Stream(f"cc3m:{tmp_path}", 40, SIDE, Skipped()), Attack(STRIPES, "banana", rate=0.1))
    with monkeypatch.context() as patched:
        patched.setattr(poisoned_copy, "write_poisoned", None)
        again, _ = poison_stream(Stream(f"cc3m:{tmp_path}", 40, SIDE, Skipped()), Attack(STRIPES, "banana", rate=0.1))
    assert (copy.data, len(copy), len(rows)) == (again.data, 40, 4)
    assert all("banana" in caption for caption in copy.at(rows).captions)
    assert not torch.equal(copy.first(40).pixels, Stream(f"cc3m:{tmp_path}", 40, SIDE).first(40).pixels)
    other, _ = poison_stream(Stream(f"cc3m:{tmp_path}", 40, SIDE, Skipped()), Attack(STRIPES, "banana", rate=0.1, seed=1))
    assert other.data != copy.data


def test_a_poisoned_copy_names_its_lists_and_held_pairs_have_none(tmp_path, scenes):
    cc3m(tmp_path, count=40)
    copy, _ = poison_stream(Stream(f"cc3m:{tmp_path}", 40, SIDE, Skipped()), Attack(STRIPES, "banana", rate=0.1))
    assert {path.name for path in lists(copy).values()} == {MANIFEST, SKIPPED}
    assert all(path.is_file() for path in (*lists(copy).values(), lists(copy)["manifest"].with_name(SUMMARY)))
    assert lists(scenes) == {}
