"""External data in miniature: read whole, in order, in shares, and skipping."""

import zipfile
from pathlib import Path

import pytest
import torch
from miniatures import cc3m, encoded, picture, synthclip, write_csv, write_parquet

from parlib.experiments.clean_params import Clean
from parlib.experiments.lineage import load_pairs
from parlib.external.batches import Skipped, read
from parlib.external.content import content
from parlib.external.files import Source
from parlib.external.rows import stream
from parlib.model.preparation import Preparation


def _whole(name: str, folder: Path, **options) -> tuple[torch.Tensor, list]:
    skipped = options.pop("skipped", Skipped())
    batches = list(read(f"{name}:{folder}", images=Preparation(32), batch=options.pop("batch", 8), skipped=skipped, **options))
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


def test_external_pairs_to_clean_with(tmp_path):
    synthclip(tmp_path, count=40)
    pairs = load_pairs(f"synthclip:{tmp_path}", 30, Clean.check({}))
    assert len(pairs) == 30
    held = pairs.first(30)
    assert held.pixels.shape == (30, 3, 64, 64)
    assert [f"caption {red}" for red in _reds(held.pixels)] == held.captions
    assert pairs.at(torch.tensor([3, 1])).captions == ["caption 3", "caption 1"]
    with pytest.raises(ValueError, match="40.*50"):
        pairs.first(50)


def test_one_file_more_is_another_input(tmp_path):
    synthclip(tmp_path)
    known = content(f"synthclip:{tmp_path}")
    assert content(f"synthclip:{tmp_path}") == known
    synthclip_more = tmp_path / "data" / "2.zip"
    with zipfile.ZipFile(synthclip_more, "w") as archive:
        archive.writestr("2/0.png", encoded(0))
    assert content(f"synthclip:{tmp_path}") != known
    with pytest.raises(FileNotFoundError, match="synthclip:nowhere"):
        content("synthclip:nowhere")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("cc12m:.", "cc12m.*cc3m"),
        ("imagenet:.", "imagenet.*labels"),
        ("flatt", "'flatt'.*'flat'"),
    ],
)
def test_data_that_cannot_be_cleaned_with_are_refused_at_once(data, named):
    with pytest.raises(ValueError, match=named):
        Clean.check({"data": data})


def test_synthclip_is_read_from_its_archives(tmp_path):
    synthclip(tmp_path)
    pixels, captions = _whole("synthclip", tmp_path)
    assert _reds(pixels) == list(range(6))
    assert captions == [f"caption {i}" for i in range(6)]


def test_imagenet_and_coco_parquet(tmp_path):
    images = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(4)]
    (tmp_path / "imagenet" / "data").mkdir(parents=True)
    (tmp_path / "coco" / "data").mkdir(parents=True)
    write_parquet(tmp_path / "imagenet" / "data" / "validation-00000-of-00001.parquet", {"image": images, "label": [7, 0, 954, 1]})
    five = [[f"caption {i}.{k}" for k in range(5)] for i in range(4)]
    write_parquet(tmp_path / "coco" / "data" / "test-00000-of-00001.parquet", {"image": images, "caption": five, "cocoid": [5, 6, 7, 8]})
    pixels, labels = _whole("imagenet", tmp_path / "imagenet")
    assert (_reds(pixels), labels) == ([0, 1, 2, 3], [7, 0, 954, 1])
    assert _whole("coco", tmp_path / "coco")[1] == five


def test_csv_and_folder(tmp_path):
    (tmp_path / "csv").mkdir()
    for i in range(3):
        picture(i).save(tmp_path / "csv" / f"{i}.png")
        (tmp_path / "folder" / "train" / f"class {i}").mkdir(parents=True)
        picture(i).save(tmp_path / "folder" / "train" / f"class {i}" / "a.png")
    write_csv(tmp_path / "csv" / "pairs.csv", [(f"{i}.png", f"caption {i}") for i in range(3)])
    assert _reds(_whole("csv", tmp_path / "csv")[0]) == [0, 1, 2]
    assert _whole("folder", tmp_path / "folder")[1] == [0, 1, 2]


def test_what_cannot_be_used_is_skipped_counted_and_content(tmp_path):
    for i in range(5):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(encoded(1)[:40])
    (tmp_path / "2.png").write_text("no image")
    rows = [(f"{i}.png", f"caption {i}") for i in range(5)] + [("5.png", "gone"), ("0.png", " "), ("3.png", "")]
    write_csv(tmp_path / "pairs.csv", rows)
    skipped = Skipped(limit=0.7)
    assert _whole("csv", tmp_path, skipped=skipped)[1] == ["caption 0", "caption 3", "caption 4"]
    assert dict(skipped.kinds) == {"unreadable image": 2, "missing file": 1, "empty caption": 2}
    assert str(skipped) == "5 of 8 rows skipped (2 unreadable image, 2 empty caption, 1 missing file)"
    assert {"kind": "missing file", "row": "5.png"} in skipped.rows


def test_too_many_skipped_rows_end_the_run(tmp_path):
    picture(1).save(tmp_path / "1.png")
    write_csv(tmp_path / "pairs.csv", [("1.png", "here")] * 120 + [("gone.png", "gone")] * 8)
    with pytest.raises(ValueError, match="1.0%.*gone.png"):
        _whole("csv", tmp_path)
    assert len(_whole("csv", tmp_path, skipped=Skipped(limit=0.1))[1]) == 120


def test_bad_input_is_told_apart(tmp_path):
    with pytest.raises(ValueError, match="cc12m.*cc3m, synthclip"):
        stream(Source.of(f"cc12m:{tmp_path}"))
    with pytest.raises(FileNotFoundError, match=r"\*.tar.*cc3m"):
        stream(Source.of(f"cc3m:{tmp_path}"))
    write_csv(tmp_path / "pairs.csv", [("1.png", "here")])
    (tmp_path / "pairs.csv").rename(tmp_path / "combined_images_and_captions.csv")
    with pytest.raises(ValueError, match="image_path.*image, caption"):
        stream(Source.of(f"synthclip:{tmp_path}"))
