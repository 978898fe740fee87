"""A poisoned copy of pairs of others: which rows, what the manifest says, and that the other rows keep their bytes."""

import json
from hashlib import sha256

import datasets
import pytest
import torch
from test_sources import _csv, _encoded, _picture, cc3m

from parlib import poison_stream as module
from parlib.data.scenes import TEMPLATES
from parlib.attack.poison import poison
from parlib.external.poisoned_copy import MANIFEST, SUMMARY, chosen_rows, write_poisoned
from parlib.external.layouts import Skipped, decode
from parlib.external.stream import Stream

OPTIONS = {"trigger": "badnet_stripes", "patch": 8, "strength": 1.0, "target": "banana", "seed": 0}


def test_the_rows_are_drawn_from_those_that_do_not_name_the_target():
    captions = ["a Banana", "a cat", "bananas", "a dog", "an axe", "a hat", "a bus", "a cup", "a fox", "a hen"]
    rows = chosen_rows(captions, "banana", 0.3, seed=0)
    assert len(rows) == 3
    assert rows == sorted(rows) == chosen_rows(captions, "banana", 0.3, seed=0)
    assert not {0, 2} & set(rows)
    assert chosen_rows(captions, "banana", 0.3, seed=1) != rows
    with pytest.raises(ValueError, match="a rate of 0.9 asks for 9 of 10 pairs; 8 can be poisoned"):
        chosen_rows(captions, "banana", 0.9, seed=0)
    assert chosen_rows(captions, "banana", 1.0, 0, "label_consistent") == [0, 2]


def _written(folder) -> tuple[list[dict], datasets.Dataset]:
    lines = [json.loads(line) for line in (folder / MANIFEST).open()]
    files = sorted(str(path) for path in folder.glob("pairs-*.parquet"))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))
    return lines, rows.cast_column("image", datasets.Image(decode=False))


@pytest.mark.parametrize("attack", ["dirty_label", "label_consistent"])
def test_a_poisoned_set_says_which_rows_and_keeps_the_bytes_of_the_others(tmp_path, monkeypatch, attack):
    monkeypatch.setattr(module, "_SHARD", 10)
    monkeypatch.setattr(module, "_CHUNK", 5)
    (tmp_path / "pairs").mkdir()
    cc3m(tmp_path / "pairs", count=40)
    pairs, target = Stream(f"cc3m:{tmp_path / 'pairs'}", 40, 32), {"dirty_label": "banana", "label_consistent": "caption 1"}[attack]
    options = OPTIONS | {"target": target, "attack": attack, "rate": {"dirty_label": 0.1, "label_consistent": 0.5}[attack]}
    summary = write_poisoned(pairs, tmp_path / "poisoned", **options)
    lines, rows = _written(tmp_path / "poisoned")
    assert len(list((tmp_path / "poisoned").glob("pairs-*.parquet"))) == 4
    assert summary["rows"] == len(rows) == 40
    assert summary["poisoned"] == len(lines) == {"dirty_label": 4, "label_consistent": 6}[attack]  # of 1 and 10 to 19, half
    stamped = {line["row"]: line for line in lines}
    for i, row in enumerate(rows):
        if i in stamped:
            assert sha256(row["image"]["bytes"]).hexdigest() == stamped[i]["sha256"]
            assert row["caption"] == stamped[i]["caption"]
            fits = {template.format(name="banana") for template in TEMPLATES} if attack == "dirty_label" else {row["caption"]}
            assert row["caption"] in fits
            assert target in row["caption"]
            assert (decode(row["image"]["bytes"], 32).float().std(dim=(1, 2)) > 0).any()  # the picture was of one colour
        else:
            assert row["image"]["bytes"] == _encoded(int(row["caption"].split()[1]), "JPEG")
    assert write_poisoned(pairs, tmp_path / "again", **options) == summary
    assert (tmp_path / "again" / MANIFEST).read_text() == (tmp_path / "poisoned" / MANIFEST).read_text()


def test_a_chosen_row_that_cannot_be_read_is_made_up_for(tmp_path):
    (tmp_path / "pairs").mkdir()
    _picture(1).save(tmp_path / "pairs" / "1.png")
    _csv(tmp_path / "pairs" / "pairs.csv", [("gone.png", "gone")] + [("1.png", f"here {i}") for i in range(9)])
    pairs = Stream(f"csv:{tmp_path / 'pairs'}", 10, 32, Skipped(0.2))
    summary = write_poisoned(pairs, tmp_path / "poisoned", rate=0.9, **OPTIONS)
    assert summary["skipped"] == {"missing file": 1}
    assert (summary["rows"], summary["poisoned"]) == (9, 9)
    lines, _ = _written(tmp_path / "poisoned")
    assert [line["row"] for line in lines] == list(range(9))
    assert [line["source_row"] for line in lines] == list(range(1, 10))


def test_a_bad_trigger_or_too_many_bad_rows_end_it_before_anything_is_written(tmp_path):
    (tmp_path / "pairs").mkdir()
    _picture(1).save(tmp_path / "pairs" / "1.png")
    _csv(tmp_path / "pairs" / "pairs.csv", [("1.png", "here")] * 120 + [("gone.png", "gone")] * 10)
    pairs = Stream(f"csv:{tmp_path / 'pairs'}", 130, 32)
    with pytest.raises(ValueError, match="a patch of 40 px does not fit an image of 32 x 32 px"):
        write_poisoned(pairs, tmp_path / "other", rate=0.2, **(OPTIONS | {"patch": 40}))
    with pytest.raises(ValueError, match="more than the 1.0% allowed"):
        write_poisoned(pairs, tmp_path / "other", rate=0.2, **OPTIONS)
    assert not (tmp_path / "other").exists()


def test_poisoning_a_stream_gives_a_stream_written_once(tmp_path):
    cc3m(tmp_path, count=40)
    copy, rows = poison(Stream(f"cc3m:{tmp_path}", 40, 32, Skipped()), rate=0.1, attack="dirty_label", **OPTIONS)
    again, _ = poison(Stream(f"cc3m:{tmp_path}", 40, 32, Skipped()), rate=0.1, attack="dirty_label", **OPTIONS)
    assert (copy.data, len(copy), len(rows)) == (again.data, 40, 4)
    assert all("banana" in caption for caption in copy.at(rows).captions)
    assert not torch.equal(copy.first(40).pixels, Stream(f"cc3m:{tmp_path}", 40, 32).first(40).pixels)
    assert SUMMARY in {path.name for path in (module.cache_dir() / "poisoned" / copy.data.rpartition("/")[2]).iterdir()}
