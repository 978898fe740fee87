"""External data as people have them: shapes, depths, captions, class names, parts and forms, each read as what it is."""

import csv
import gzip
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow
import pyarrow.parquet
import pytest
import torch
from miniatures import cc3m, encoded, picture, tarred, write_csv, write_parquet
from PIL import Image

from parlib.cache import ROOT
from parlib.experiments.clean_params import Clean
from parlib.external.batches import Skipped, read
from parlib.external.content import content
from parlib.external.files import Source
from parlib.external.images import decode
from parlib.external.rows import label_names, named_outside, stream
from parlib.external.stream import Stream, labelled
from parlib.external.words import captions_of, class_name, class_names_of, first_caption
from parlib.model.clip import Clip, load, save
from parlib.model.preparation import Preparation

SIDE = Preparation(32)


def _captions(data: str) -> list:
    return [text for _, texts in read(data, images=SIDE, batch=8, skipped=Skipped()) for text in texts]


def _bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# images


@pytest.mark.parametrize("size", [(64, 64), (85, 64), (114, 64), (64, 200), (300, 280)])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_an_image_is_prepared_as_open_clip_prepares_it(clip: Clip, tmp_path, size, resize):
    clip.net.visual.preprocess_cfg["resize_mode"] = resize
    save(clip, tmp_path)
    clip.net.visual.preprocess_cfg["resize_mode"] = "shortest"
    images = load(tmp_path).preparation
    assert images == Preparation(64, resize)
    theirs: Any = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")[2]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.net.visual.image_mean, clip.net.visual.image_std))
    ours = (decode(_bytes(image), images).float() / 255 - mean) / std
    assert torch.equal(ours, theirs(image))


def test_a_large_jpeg_is_decoded_small():
    """At half its size or less, by JPEG's own transform: within what JPEG itself loses."""
    x, y = np.meshgrid(np.arange(1600), np.arange(1200))
    image = Image.fromarray(np.stack([x * 255 // 1600, y * 255 // 1200, 128 + 100 * np.sin(x / 40)], 2).astype(np.uint8))
    whole = _bytes(image, "JPEG")
    with Image.open(io.BytesIO(whole)) as full:
        theirs = np.array(Preparation(64)(full.convert("RGB"))).astype(int)
    ours = decode(whole, Preparation(64)).permute(1, 2, 0).numpy().astype(int)
    assert 0 < np.abs(ours - theirs).max() <= 4
    assert np.abs(ours - theirs).mean() <= 0.5


def test_squashing_is_asked_for():
    wide = Image.new("RGB", (80, 20))
    wide.paste((255, 0, 0), (40, 0, 80, 20))
    pixels = decode(_bytes(wide), Preparation(40, "squash"))
    assert pixels.shape == (3, 40, 40)
    assert (pixels[0, 0, 0] < 10, pixels[0, 0, -1] > 245) == (True, True)
    with pytest.raises((OSError, ValueError)):
        decode(_bytes(wide)[:50], SIDE)
    with pytest.raises(ValueError, match="resize"):
        Clean.check({"resize": "stretch"})


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_a_mode_is_read_as_open_clip_reads_it(mode):
    image = Image.linear_gradient("L").convert("RGB").convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    theirs = np.array(image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB"))
    assert torch.equal(decode(_bytes(image, kind), SIDE), torch.from_numpy(theirs).permute(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    ramp = np.linspace(0, 65535, 32 * 32, dtype=np.uint16).reshape(32, 32)
    pixels = decode(_bytes(Image.fromarray(ramp), kind), SIDE)
    assert (pixels[0].int() - torch.from_numpy((ramp >> 8).astype(np.int32))).abs().max() <= 1


def test_numbers_without_a_known_white_are_counted_by_name(tmp_path):
    picture(0).save(tmp_path / "0.png")
    Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(tmp_path / "1.tif")
    Image.fromarray(np.full((40, 40), 70000, np.int32)).save(tmp_path / "2.tif")
    write_csv(tmp_path / "pairs.csv", [(name, "here") for name in ("0.png", "1.tif", "2.tif")])
    skipped = Skipped(1.0)
    assert sum(len(texts) for _, texts in read(f"csv:{tmp_path}", images=SIDE, batch=8, skipped=skipped)) == 1
    assert dict(skipped.kinds) == {"image of floating-point numbers": 1, "image of 32-bit numbers": 1}


# identity


def test_data_are_known_by_what_they_hold(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for i in range(3):
            picture(i).save(tmp_path / name / f"{i}.png")
        write_csv(tmp_path / name / "pairs.csv", [(f"{i}.png", f"caption {i}") for i in range(3)])
    known = content(f"csv:{tmp_path / 'one'}")
    assert content(f"csv:{tmp_path / 'two'}") == known  # the same, elsewhere
    rows = [(f"{i}.png", f"caption {(i + 1) % 3}") for i in range(3)]
    write_csv(tmp_path / "two" / "pairs.csv", rows)  # of the same size
    assert content(f"csv:{tmp_path / 'two'}") != known
    assert content(f"csv:{tmp_path / 'one'}") == known


@pytest.mark.parametrize("named", ["{}/1.png", "../elsewhere/1.png"])
@pytest.mark.parametrize("layout", ["csv", "parquet"])
def test_images_outside_the_folder_are_part_of_what_it_holds(tmp_path, layout, named):
    for folder in ("data", "elsewhere"):
        (tmp_path / folder).mkdir()
    image, name = tmp_path / "elsewhere" / "1.png", named.format(tmp_path / "elsewhere")
    picture(1).save(image)
    write_csv(tmp_path / "data" / "pairs.csv", [(name, "here")])
    pyarrow.parquet.write_table(pyarrow.table({"image": [name], "text": ["here"]}), tmp_path / "data" / "pairs.parquet")
    known = content(f"{layout}:{tmp_path / 'data'}")
    assert _captions(f"{layout}:{tmp_path / 'data'}") == ["here"]
    assert content(f"{layout}:{tmp_path / 'data'}") == known
    picture(2).save(image)
    assert content(f"{layout}:{tmp_path / 'data'}") not in ("", known)
    image.unlink()
    gone = content(f"{layout}:{tmp_path / 'data'}")
    picture(1).save(image)
    assert content(f"{layout}:{tmp_path / 'data'}") == known != gone


def test_a_table_is_read_once_for_what_it_names_and_may_name_anything(tmp_path, monkeypatch):
    names = ["/9j/" + 5000 * "A", "/a\0b", "../no.png", f"{tmp_path}/in.png", "in.png"]
    picture(1).save(tmp_path / "in.png")
    pyarrow.parquet.write_table(
        pyarrow.table({"image": pyarrow.array(names, pyarrow.large_string()), "text": ["a"] * 5}), tmp_path / "a.parquet"
    )
    known = content(f"parquet:{tmp_path}")
    assert named_outside(Source.of(f"parquet:{tmp_path}")) == names[:3]
    monkeypatch.setattr("parlib.external.content.named_outside", None)
    assert content(f"parquet:{tmp_path}") == known


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    picture(1).save(tmp_path / "1.png")
    write_csv(tmp_path / "pairs.csv", [("1.png", "here")])
    known = content(f"csv:{tmp_path}")
    monkeypatch.setattr("parlib.external.content.file_sha256", None)
    assert content(f"csv:{tmp_path}") == known


# captions


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("None", "None"), ("NA", "NA"), ("007", "007"), ("1.0", "1.0"), (5, "5"), (b"a cat", "a cat"), (None, ""), (float("nan"), ""),
        ("['a cat', \"a dog's\"]", ["a cat", "a dog's"]), ('["a", "b"]', ["a", "b"]), (["a", None, ""], ["a"]), ("[laughs]", "[laughs]"),
        ("[1, 2]", "[1, 2]"), ("['a cat'\n \"it's\"]", ["a cat", "it's"]), ("['a' + 'b']", "['a' + 'b']"), ("['a', [", "['a', ["),
        ("[]", []), ("[None]", []), ('["a", null]', ["a"]), ("['a', 2]", ["a", "2"]), ("('a', 'b')", ["a", "b"]),
        ('("no list")', '("no list")'), ({"raw": "a cat", "tokens": ["a"]}, "a cat"), ([{"text": "a"}, {"id": 1}], ["a"]),
        ({"raw": ["a", "b"]}, ["a", "b"]), ({"id": 1}, ""),
        ("caf\u00e9 \u2013 \u201cbar\u201d".encode("cp1252"), "caf\u00e9 \u2013 \u201cbar\u201d"),
        ("\u732b\u3068\u72ac".encode()[:-1], "\u732b\u3068"),
    ],
)  # fmt: skip
def test_a_caption_is_text(given, found):
    assert captions_of(given) == found


@pytest.mark.parametrize(
    ("file", "columns", "mark", "encoding"),
    [
        ("pairs.csv", ("filepath", "title"), "\t", "utf-8"),  # open_clip's own
        ("pairs.tsv", ("image", "caption"), "\t", "utf-8"),
        ("pairs.csv", ("file_name", "text"), ",", "utf-8"),  # Hugging Face's
        ("pairs.csv", ("IMAGE", "TEXT"), ";", "utf-8-sig"),
        ("pairs.csv", ("image_path", "Caption"), "|", "latin-1"),
        ("pairs.csv.gz", ("image", "caption"), ",", "utf-8"),
        ("PAIRS.CSV", ("image", "caption"), ",", "utf-16"),
    ],
)
def test_the_usual_tables_are_recognised(tmp_path, file, columns, mark, encoding):
    picture(3).save(tmp_path / "a.png")
    captions = ["None", "NA", "42", "a grün", 'says "hi"', "two\nlines", "a, b; c"]
    lines = [mark.join(columns), *(f'a.png{mark}"{caption.replace(chr(34), chr(34) * 2)}"' for caption in captions)]
    body = "\r\n".join(lines).encode(encoding)
    (tmp_path / file).write_bytes(gzip.compress(body) if file.endswith(".gz") else body)
    assert _captions(f"csv:{tmp_path}") == captions


@pytest.mark.parametrize(
    ("mark", "first", "last"),
    [
        ("\t", '"Best in show', 'a dog called "Rex"'),  # closed four rows below
        ("\t", '"Best in show', "a dog"),  # never closed
        (",", '"Best in show', "a dog"),
    ],
)
def test_a_quote_that_takes_in_rows_is_named_by_its_line(tmp_path, mark, first, last):
    for i in range(5):
        picture(i).save(tmp_path / f"{i}.png")
    captions = ['"Good dog", she said', first, "two", "three", last]
    lines = [mark.join(("image", "caption")), *(f"{i}.png{mark}{caption}" for i, caption in enumerate(captions))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"pairs\.csv.*line 3"):
        _captions(f"csv:{tmp_path}?separator={'tab' if mark != ',' else mark}")


@pytest.mark.parametrize("last", ['a dog called "Rex"', "a dog"])
def test_such_a_quote_is_named_where_no_image_has_an_ending(tmp_path, last):
    rows = [("a", "fine"), ("b", '"Best in show'), ("c", "three"), ("d", last)]
    (tmp_path / "pairs.tsv").write_text("\n".join("\t".join(row) for row in [("image", "caption"), *rows]))
    with pytest.raises(ValueError, match=r"pairs\.tsv.*line 3"):
        _captions(f"csv:{tmp_path}")


def test_captions_of_several_lines_stand_before_their_image_or_behind(tmp_path):
    picture(1).save(tmp_path / "cat.png")
    (tmp_path / "a.csv").write_text('caption,image\n"A cat\non a mat",cat.png\n"two, of\nthem, and",cat.png\n')
    assert _captions(f"csv:{tmp_path}") == ["A cat\non a mat", "two, of\nthem, and"]
    (tmp_path / "a.csv").write_text('caption,image\nfine,cat.png\n"open,cat.png\n' + "x,cat.png\n" * 100)
    limit = csv.field_size_limit(500)
    try:
        with pytest.raises(ValueError, match="line 3"):
            _captions(f"csv:{tmp_path}")
    finally:
        csv.field_size_limit(limit)


def test_a_caption_with_a_comma_that_is_not_quoted_is_counted(tmp_path):
    picture(1).save(tmp_path / "1.png")
    (tmp_path / "pairs.csv").write_text("image,caption\n1.png,a cat, a dog and 3 birds\n1.png,a cat,\n1.png,a dog\n")
    skipped = Skipped(limit=1.0)
    assert [first_caption(row["text"]) for row in stream(Source.of(f"csv:{tmp_path}"), images=False)] == ["", "a cat", "a dog"]
    found = [caption for _, given in read(f"csv:{tmp_path}", images=SIDE, batch=8, skipped=skipped) for caption in given]
    assert (found, dict(skipped.kinds)) == (["a cat", "a dog"], {"row of too many cells": 1})


@pytest.mark.parametrize(("mark", "said"), [("~", "~"), ("\t", "tab")])
def test_columns_and_the_separator_can_be_named(tmp_path, mark, said):
    picture(3).save(tmp_path / "a.png")
    lines = [("note, image", "photo", "alt"), ("a, b; c", "a.png", "a cat"), ("x", "a.png", "a; dog")]
    (tmp_path / "pairs.csv").write_text("\n".join(mark.join(line) for line in lines))
    named = f"csv:{tmp_path}?image=photo&text=alt&separator={said}"
    assert _captions(named) == ["a cat", "a; dog"]
    assert str(Source.of(named)) == named
    parted = f"csv:{tmp_path}#pairs?image=photo&text=alt&separator={said}"
    assert str(Source.of(parted)) == parted


def test_of_parquet_the_columns_can_be_named(tmp_path):
    rows = {"photo": [encoded(3)], "image": [b"no image"], "alt": ["a cat"], "text": ["no"]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    assert _captions(f"parquet:{tmp_path}?image=photo&text=alt") == ["a cat"]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("csv:{}?image=foto", "foto.*photo"),
        ("csv:{}?colour=red", "colour=red.*image=.*separator="),
        ("csv:{}?image=", "image="),
        ("csv:{}?separator=, ", "one character"),
        ("csv:{}?label=alt", "label=alt"),
        ("parquet:{}?separator=;", "separator=;"),
        ("webdataset:{}?image=jpg", "webdataset takes no options"),
    ],
)
def test_what_can_not_be_named_is_said(tmp_path, data, named):
    (tmp_path / "pairs.csv").write_text("photo,alt\na.png,a cat\n")
    with pytest.raises(ValueError, match=named):
        _captions(data.format(tmp_path))


def test_links_are_no_images(tmp_path):
    (tmp_path / "pairs.csv").write_text("URL,TEXT\nsomewhere,a cat\n")
    with pytest.raises(ValueError, match="'URL'.*img2dataset"):
        _captions(f"csv:{tmp_path}")
    picture(1).save(tmp_path / "1.png")
    write_csv(tmp_path / "pairs.csv", [("https://somewhere/1.png", "a cat"), ("1.png", "a dog")])
    skipped = Skipped(limit=1.0)
    assert [caption for _, given in read(f"csv:{tmp_path}", images=SIDE, batch=8, skipped=skipped) for caption in given] == ["a dog"]
    assert dict(skipped.kinds) == {"link in the place of an image": 1}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"no such thing", ""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("name", ["a.parquet", "a.tar", "a.csv"])
def test_a_file_that_is_none_is_named(tmp_path, name, body, said):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(ValueError, match=f"{name}.*{said}" if said or name != "a.csv" else "no column"):
        _captions(f"{ {'a.parquet': 'parquet', 'a.tar': 'webdataset'}.get(name, 'csv') }:{tmp_path}")


@pytest.mark.parametrize(("workers", "at"), [(0, 700), (2, 700), (0, 0), (0, 300), (0, None)])
def test_a_file_cut_short_ends_in_one_line(tmp_path, workers, at):
    """In an image, and before and in a header, which tarfile takes for the end, as it does a damaged one."""
    whole = tarred({f"{i:05d}": {"png": encoded(i), "txt": b"a cat"} for i in range(40)})
    header = whole.index(b"00030.png")
    whole = whole.replace(b"00030.png", b"00031.png") if at is None else whole[: header + at]  # another sum than it holds
    for i in range(2):
        (tmp_path / f"{i:05d}.tar").write_bytes(whole)
    with pytest.raises(ValueError, match=r"^[^\n]*00000\.tar can't be read to its end[^\n]*$"):
        list(read(f"webdataset:{tmp_path}", images=SIDE, batch=8, skipped=Skipped(), workers=workers))


# tars


def _tar(path: Path, rows: list[dict[str, bytes]]) -> None:
    path.write_bytes(tarred({f"part/{i:05d}": row for i, row in enumerate(rows)}))


def test_tars_of_every_image_and_of_captions_in_json(tmp_path):
    rows = [{"webp": encoded(1, "WEBP"), "txt": b"one"}, {"png": encoded(2), "json": json.dumps({"caption": "two"}).encode()}]
    rows += [{"JPG": encoded(3, "JPEG"), "json": b"{}", "txt": b"three"}, {"jpeg": encoded(4, "JPEG"), "json": b'{"TEXT": "four"}'}]
    _tar(tmp_path / "00000.tar", rows)
    assert _captions(f"webdataset:{tmp_path}") == ["one", "two", "three", "four"]


def test_labelled_tars_name_their_classes_beside(tmp_path):
    _tar(tmp_path / "0.tar", [{"webp": encoded(i, "WEBP"), "cls": str(i % 2).encode()} for i in range(6)])
    with pytest.raises(ValueError, match=r"classnames\.txt"):
        labelled(f"labelled_webdataset:{tmp_path}", 6, SIDE, 0.0)
    (tmp_path / "classnames.txt").write_text("Axe\nbanana\n")
    found = labelled(f"labelled_webdataset:{tmp_path}", 6, SIDE, 0.0)
    assert (found.names, sorted(found.labels.tolist())) == (["axe", "banana"], [0, 0, 0, 1, 1, 1])
    (tmp_path / "test").mkdir()
    (tmp_path / "0.tar").rename(tmp_path / "test" / "0.tar")
    above = f"labelled_webdataset:{tmp_path / 'test'}"
    assert labelled(above, 6, SIDE, 0.0).names == ["axe", "banana"]
    before = content(above)
    (tmp_path / "classnames.txt").write_text("banana\naxe\n")
    assert content(above) != before


# parts


def test_several_tables_are_not_read_as_one(tmp_path):
    picture(1).save(tmp_path / "1.png")
    for name in ("train", "val"):
        write_csv(tmp_path / f"{name}.csv", [("1.png", name)])
    with pytest.raises(ValueError, match="train, val.*#train"):
        _captions(f"csv:{tmp_path}")
    assert _captions(f"csv:{tmp_path}#val") == ["val"]
    assert _captions(f"csv:{tmp_path}#train+val") == ["train", "val"]
    with pytest.raises(ValueError, match="'test'.*train, val"):
        _captions(f"csv:{tmp_path}#test")


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("captions_2014.csv", "captions_2017.csv"), "captions_2014, captions_2017"),
        (("train.csv", "train.tsv"), r"train\.csv, train\.tsv"),
        (("train.csv", "train.csv.gz"), r"train\.csv, train\.csv\.gz"),
        (("a.csv", "B.CSV"), "B, a"),
        (("x-00000.csv", "x-00001.csv"), ""),
        (("x_1.csv", "x_2.csv"), ""),
        (("x_07.csv", "x_12.csv"), ""),
        (("10000.csv", "10003.csv"), ""),
        (("x_17.csv", "x_18.csv"), ""),
        (("x_2017.csv", "x_2018.csv"), "x_2017, x_2018"),
    ],
)
def test_what_only_a_number_tells_apart_is_one_where_it_counts(tmp_path, names, parts):
    picture(1).save(tmp_path / "1.png")
    for name in names:
        body = f"image,caption\n1.png,{name}\n".encode()
        (tmp_path / name).write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
    if not parts:
        assert _captions(f"csv:{tmp_path}") == list(names)
        return
    with pytest.raises(ValueError, match=parts):
        _captions(f"csv:{tmp_path}")


def test_shards_are_one_part_and_splits_are_several(tmp_path):
    images = [{"bytes": encoded(i), "path": None} for i in range(2)]
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002-0123456789abcdef", "test-00000-of-00001"):
        write_parquet(tmp_path / "data" / f"{name}.parquet", {"image": images, "caption": [name, name]})
    with pytest.raises(ValueError, match="test, train"):
        _captions(f"parquet:{tmp_path}")
    assert {text[:5] for text in _captions(f"parquet:{tmp_path}#train")} == {"train"}
    assert len(_captions(f"parquet:{tmp_path}#train")) == 4


def _folder(folder: Path, *classes: str) -> Path:
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name / "a.png")
    return folder


def test_train_and_val_folders_are_parts(tmp_path):
    _folder(tmp_path / "train", "axe", "banana")
    _folder(tmp_path / "val", "axe", "banana", "cat")
    with pytest.raises(ValueError, match="train, val"):
        labelled(f"folder:{tmp_path}", 10, SIDE, 0.0)
    assert labelled(f"folder:{tmp_path}#val", 10, SIDE, 0.0).names == ["axe", "banana", "cat"]


@pytest.mark.parametrize("parts", [("train", "val", "extra"), ("train2017", "val2017"), ("seg_train", "seg_test"), ("Train", "unlabeled")])
def test_whatever_splits_are_called_they_are_no_classes(tmp_path, parts):
    for part in parts:
        _folder(tmp_path / part, "axe", "banana")
    with pytest.raises(ValueError, match=", ".join(sorted(parts))):
        labelled(f"folder:{tmp_path}", 10, SIDE, 0.0)
    assert labelled(f"folder:{tmp_path}#{parts[1]}", 10, SIDE, 0.0).names == ["axe", "banana"]


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    _folder(tmp_path, "bus", "car")
    _folder(tmp_path / "train", "steam", "bullet")
    assert labelled(f"folder:{tmp_path}", 10, SIDE, 0.0).names == ["bus", "car", "train"]


def test_a_test_folder_without_classes_is_left_out_and_said(tmp_path, capsys):
    _folder(tmp_path / "train", "axe", "banana")
    _folder(tmp_path, "test")
    assert labelled(f"folder:{tmp_path}", 10, SIDE, 0.0).names == ["axe", "banana"]
    assert "1 files" in capsys.readouterr().out


def test_what_lies_beside_the_classes_is_left_out_and_said(tmp_path, capsys):
    _folder(tmp_path, "axe", "banana", ".ipynb_checkpoints")
    picture(5).save(tmp_path / "overview.png")
    (tmp_path / "axe" / "notes.txt").write_text("no image")
    picture(6).save(tmp_path / "axe" / "without_ending", "PNG")
    found = labelled(f"folder:{tmp_path}", 10, SIDE, 0.0)
    assert (found.names, sorted(found.labels.tolist())) == (["axe", "banana"], [0, 0, 1])
    assert "2 files" in capsys.readouterr().out


def test_one_class_alone_and_links_to_folders(tmp_path):
    _folder(tmp_path / "one", "banana")
    assert labelled(f"folder:{tmp_path / 'one'}", 10, SIDE, 0.0).names == ["banana"]
    _folder(tmp_path / "elsewhere", "cat")
    (tmp_path / "one" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (tmp_path / "one" / "banana" / "round").symlink_to(tmp_path / "one")
    assert labelled(f"folder:{tmp_path / 'one'}", 10, SIDE, 0.0).names == ["banana", "cat"]
    cc3m(tmp_path / "elsewhere", count=8)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "linked").symlink_to(tmp_path / "elsewhere")
    assert len(_captions(f"webdataset:{tmp_path / 'tars'}")) == 8


def test_brackets_in_a_path_are_no_pattern(tmp_path):
    folder = tmp_path / "my [data] *?"
    folder.mkdir()
    picture(1).save(folder / "1.png")
    write_csv(folder / "pairs.csv", [("1.png", "here")])
    assert _captions(f"csv:{folder}") == ["here"]
    _folder(folder / "classes", "axe [tool]", "banana")
    assert labelled(f"folder:{folder / 'classes'}", 4, SIDE, 0.0).names == ["axe [tool]", "banana"]
    assert Stream(f"csv:{folder}", 1, SIDE).first(1).captions == ["here"]


# class names


def test_classes_are_named_by_words(tmp_path, capsys):
    assert class_names_of(["n07753592", "n02764044"]) == ["banana", "ax"]  # WordNet's synsets, the second not among the 1,000
    assert class_names_of(["001.Black_footed_Albatross", "002.Laysan_Albatross"]) == ["black footed albatross", "laysan albatross"]
    assert class_names_of(["Great_White_Shark", "3-D glasses"]) == ["great white shark", "3-d glasses"]
    assert class_names_of([str(i) for i in range(1000)])[954] == "banana"
    assert "2 class names are read as words, such as 'n07753592' as 'banana'" in capsys.readouterr().out
    class_names_of(["17", "n99999999", "see n99999999", "dog"])
    assert "3 class names say nothing" in capsys.readouterr().out
    assert class_names_of(["n02085620-Chihuahua", "n07753592_banana"]) == ["chihuahua", "banana"]
    assert class_names_of(["1. cat", "2-horse", "3 bird"]) == ["cat", "horse", "bird"]
    assert class_names_of(["1 euro", "2 euro"]) == ["1 euro", "2 euro"]
    assert class_names_of(["GoldenRetriever", "Pug"]) == ["golden retriever", "pug"]
    assert class_names_of(["GoldenRetriever", "Great Dane"]) == ["goldenretriever", "great dane"]
    _folder(tmp_path, "n07753592", "n01440764")
    assert label_names(Source.of(f"folder:{tmp_path}")) == ["tench", "banana"]
    assert {Clean.check({"target": name}).target for name in ("n07753592", "Banana", "001.Banana", "banana")} == {"banana"}


@pytest.mark.parametrize("name", ["boeing_737.max", "Chevrolet_Silverado_1500_Hybrid", "a_2500.b"])
def test_a_number_within_a_name_is_part_of_it(name):
    assert class_name(name) == name.replace("_", " ").lower()


# private


def test_local_data_ask_nobody(tmp_path):
    """A proxy that writes down who comes: nobody, for every form of local data."""
    picture(1).save(tmp_path / "1.png")
    write_csv(tmp_path / "pairs.csv", [("1.png", "here")])
    write_parquet(tmp_path / "a.parquet", {"image": [{"bytes": encoded(1), "path": None}], "caption": ["here"]})
    _tar(tmp_path / "0.tar", [{"png": encoded(1), "txt": b"here"}])
    _folder(tmp_path / "classes", "axe", "banana")
    code = f"""
from parlib.external.batches import Skipped, read
from parlib.model.preparation import Preparation
for data in ("csv:{tmp_path}", "parquet:{tmp_path}", "webdataset:{tmp_path}", "folder:{tmp_path}/classes"):
    assert list(read(data, images=Preparation(32), batch=1, skipped=Skipped(), seed=0)), data
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {"PYTHONPATH": str(ROOT)}
        env |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), proxy)
        env["HF_HOME"] = str(tmp_path / "hf")
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        with pytest.raises(TimeoutError):
            server.accept()
    assert not (tmp_path / "hf").exists()  # nor is anything written beside the cache
