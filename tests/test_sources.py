"""Data sets of others in miniature, in the schema in which they are published: read whole, in order, in shares, and skipping."""

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from parlib.experiments.params import check
from parlib.external.layouts import Skipped, decode, listed, read, table
from parlib.data.synthetic import load_pairs


def _picture(i: int, side: int = 48) -> Image.Image:
    """One colour: its red says which it is."""
    return Image.fromarray(np.full((side, side + 16, 3), (i, 100, 200), dtype=np.uint8))


def _encoded(i: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    _picture(i).save(file, kind)
    return file.getvalue()


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def cc3m(folder: Path, count: int = 40, shards: int = 4) -> None:
    """CC3M as pixparse/cc3m-wds holds it: tars of jpg, txt, json."""
    for shard in range(shards):
        rows = range(shard, count, shards)
        files = {f"{i:09d}.{end}": content for i in rows for end, content in _cc3m_row(i).items()}
        _tar(folder / f"cc3m-train-{shard:04d}.tar", files)


def _cc3m_row(i: int) -> dict[str, bytes]:
    return {"jpg": _encoded(i, "JPEG"), "txt": f"caption {i}".encode(), "json": json.dumps({"key": i}).encode()}


def synthclip(folder: Path, count: int = 6) -> None:
    """SynthCLIP: numbered zip archives under data, and one csv of image_path and caption."""
    (folder / "data").mkdir()
    for shard in range(2):
        with zipfile.ZipFile(folder / "data" / f"{shard}.zip", "w") as archive:
            for i in range(shard, count, 2):
                archive.writestr(f"{shard}/{i}.png", _encoded(i))
    _csv(folder / "combined_images_and_captions.csv", [(f"{i % 2}/{i}.png", f"caption {i}") for i in range(count)], "image_path")


def _csv(path: Path, rows: list[tuple[str, str]], image: str = "image") -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([(image, "caption"), *rows])


def _parquet(path: Path, columns: dict) -> None:
    rows = datasets.Dataset.from_dict(columns, features=None)
    rows.cast_column("image", datasets.Image()).to_parquet(path)


def _whole(name: str, folder: Path, **options) -> tuple[torch.Tensor, list]:
    skipped = options.pop("skipped", Skipped())
    batches = list(read(name, folder, side=options.pop("side", 32), batch=options.pop("batch", 8), skipped=skipped, **options))
    return torch.cat([pixels for pixels, _ in batches]), [item for _, given in batches for item in given]


def _reds(pixels: torch.Tensor) -> list[int]:
    return pixels[:, 0, 5, 5].tolist()


def test_cc3m_in_order_and_shuffled_by_seed_and_epoch(tmp_path):
    cc3m(tmp_path)
    pixels, captions = _whole("cc3m", tmp_path)
    assert pixels.shape == (40, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert all(abs(red - int(caption.split()[1])) <= 3 for red, caption in zip(_reds(pixels), captions, strict=True))  # JPEG
    assert sorted(captions) == sorted(f"caption {i}" for i in range(40))
    one, same = _whole("cc3m", tmp_path, seed=0)[1], _whole("cc3m", tmp_path, seed=0)[1]
    other, later = _whole("cc3m", tmp_path, seed=1)[1], _whole("cc3m", tmp_path, seed=0, epoch=1)[1]
    assert one == same
    assert sorted(one) == sorted(captions)
    assert len({tuple(order) for order in (captions, one, other, later)}) == 4


def test_ranks_and_workers_share_the_rows(tmp_path):
    cc3m(tmp_path)
    parts = [_whole("cc3m", tmp_path, rank=rank, world=2)[1] for rank in (0, 1)]
    assert [len(part) for part in parts] == [20, 20]
    assert sorted(parts[0] + parts[1]) == sorted(f"caption {i}" for i in range(40))
    assert sorted(_whole("cc3m", tmp_path, workers=2)[1]) == sorted(f"caption {i}" for i in range(40))


def test_pairs_of_others_to_clean_with(tmp_path):
    synthclip(tmp_path, count=40)
    pairs = load_pairs(f"synthclip:{tmp_path}", 30, 10)
    assert len(pairs) == 30
    held = pairs.first(30)
    assert held.pixels.shape == (30, 3, 64, 64)
    assert [f"caption {red}" for red in _reds(held.pixels)] == held.captions
    assert pairs.at(torch.tensor([3, 1])).captions == ["caption 3", "caption 1"]
    with pytest.raises(ValueError, match="holds 40 usable rows, 50 are asked"):
        pairs.first(50)


def test_a_sweep_s_inputs_name_the_files_of_others(tmp_path, monkeypatch):
    synthclip(tmp_path)
    known = listed(f"synthclip:{tmp_path}")
    assert listed(f"synthclip:{tmp_path}") == known
    synthclip_more = tmp_path / "data" / "2.zip"
    with zipfile.ZipFile(synthclip_more, "w") as archive:
        archive.writestr("2/0.png", _encoded(0))
    assert listed(f"synthclip:{tmp_path}") != known
    with pytest.raises(FileNotFoundError, match="synthclip:nowhere names no folder"):
        listed("synthclip:nowhere")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("cc12m:.", "unknown data 'cc12m'"),
        ("imagenet:.", "imagenet holds labels, not captions"),
        ("flatt", "unknown data 'flatt', did you mean 'flat'"),
    ],
)
def test_data_that_cannot_be_cleaned_with_are_refused_at_once(data, message):
    with pytest.raises(ValueError, match=message):
        check("space", {"data": data})


def test_synthclip_is_read_from_its_archives(tmp_path):
    synthclip(tmp_path)
    pixels, captions = _whole("synthclip", tmp_path)
    assert _reds(pixels) == list(range(6))
    assert captions == [f"caption {i}" for i in range(6)]


def test_imagenet_and_coco_parquet(tmp_path):
    images = [{"bytes": _encoded(i), "path": f"{i}.png"} for i in range(4)]
    (tmp_path / "imagenet" / "data").mkdir(parents=True)
    (tmp_path / "coco" / "data").mkdir(parents=True)
    _parquet(tmp_path / "imagenet" / "data" / "validation-00000-of-00001.parquet", {"image": images, "label": [7, 0, 954, 1]})
    five = [[f"caption {i}.{k}" for k in range(5)] for i in range(4)]
    _parquet(tmp_path / "coco" / "data" / "test-00000-of-00001.parquet", {"image": images, "caption": five, "cocoid": [5, 6, 7, 8]})
    pixels, labels = _whole("imagenet", tmp_path / "imagenet")
    assert (_reds(pixels), labels) == ([0, 1, 2, 3], [7, 0, 954, 1])
    assert _whole("coco", tmp_path / "coco")[1] == five


def test_csv_and_folder(tmp_path):
    (tmp_path / "csv").mkdir()
    for i in range(3):
        _picture(i).save(tmp_path / "csv" / f"{i}.png")
        (tmp_path / "folder" / "train" / f"class {i}").mkdir(parents=True)
        _picture(i).save(tmp_path / "folder" / "train" / f"class {i}" / "a.png")
    _csv(tmp_path / "csv" / "pairs.csv", [(f"{i}.png", f"caption {i}") for i in range(3)])
    assert _reds(_whole("csv", tmp_path / "csv")[0]) == [0, 1, 2]
    assert _whole("folder", tmp_path / "folder")[1] == [0, 1, 2]


def test_what_cannot_be_used_is_skipped_counted_and_listed(tmp_path):
    for i in range(5):
        _picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(_encoded(1)[:40])
    (tmp_path / "2.png").write_text("no image")
    rows = [(f"{i}.png", f"caption {i}") for i in range(5)] + [("5.png", "gone"), ("0.png", " "), ("3.png", "")]
    _csv(tmp_path / "pairs.csv", rows)
    skipped = Skipped(limit=0.7)
    assert _whole("csv", tmp_path, skipped=skipped)[1] == ["caption 0", "caption 3", "caption 4"]
    assert dict(skipped.kinds) == {"unreadable image": 2, "missing file": 1, "empty caption": 2}
    assert str(skipped) == "5 of 8 rows skipped (2 unreadable image, 2 empty caption, 1 missing file)"
    skipped.write(tmp_path / "skipped.jsonl")
    assert {"kind": "missing file", "row": "5.png"} in [json.loads(line) for line in (tmp_path / "skipped.jsonl").open()]


def test_too_many_skipped_rows_end_the_run(tmp_path):
    _picture(1).save(tmp_path / "1.png")
    _csv(tmp_path / "pairs.csv", [("1.png", "here")] * 120 + [("gone.png", "gone")] * 8)
    with pytest.raises(ValueError, match=r"rows skipped \(\d+ missing file\): more than the 1.0% allowed; the first is gone.png"):
        _whole("csv", tmp_path)
    assert len(_whole("csv", tmp_path, skipped=Skipped(limit=0.1))[1]) == 120


def test_bad_input_is_told_apart(tmp_path):
    with pytest.raises(ValueError, match="unknown data 'cc12m'; known are: cc3m, synthclip"):
        table("cc12m", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no \*\*/\*.tar: cc3m is read from such files"):
        table("cc3m", tmp_path)
    _csv(tmp_path / "pairs.csv", [("1.png", "here")])
    (tmp_path / "pairs.csv").rename(tmp_path / "combined_images_and_captions.csv")
    with pytest.raises(ValueError, match=r"has no column 'image_path'; its columns are: image, caption"):
        table("synthclip", tmp_path)


def test_decode_squashes_to_a_square():
    wide = Image.new("RGB", (80, 20))
    wide.paste((255, 0, 0), (40, 0, 80, 20))
    file = io.BytesIO()
    wide.save(file, "PNG")
    pixels = decode(file.getvalue(), 40)
    assert pixels.shape == (3, 40, 40)
    assert pixels[0, 0, 0] < 10
    assert pixels[0, 0, -1] > 245
    with pytest.raises((OSError, ValueError)):
        decode(file.getvalue()[:50], 40)
