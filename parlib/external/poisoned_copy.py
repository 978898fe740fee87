"""A poisoned copy of external pairs, written as it is read, with a manifest of every row that was changed, to check it by."""

import io
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from parlib.attack.poison import Attack
from parlib.cache import atomic_folder, cache_dir, damaged, digest, file_sha256, lock, read_json, write_json
from parlib.data.feeds import generator
from parlib.data.pairs import names_class
from parlib.external.batches import Skipped
from parlib.external.content import content
from parlib.external.files import Source
from parlib.external.images import image_name, opened
from parlib.external.rows import stream
from parlib.external.stream import Stream
from parlib.external.words import first_caption, lacking
from parlib.records.identity import identity

MANIFEST, SUMMARY, SKIPPED = "manifest.jsonl", "summary.json", "skipped.jsonl"
_SHARD = 5000  # rows of a parquet file: several files can be shared out to processes
_CHUNK = 200  # rows written at once


def poison_stream(pairs: Stream, attack: Attack) -> tuple[Stream, torch.Tensor]:
    """`attack.poison.poison` for external pairs: the copy, written once to the cache as parquet, and its changed rows."""
    trigger = attack.trigger
    asked = {"trigger": trigger.name, "options": dict(trigger.options), "target": attack.target, "kind": attack.kind}
    asked |= {"rate": attack.rate, "seed": attack.seed, "pairs": pairs.count, "images": asdict(pairs.images)}
    source = Source.of(pairs.data)
    inputs = {"data": content(pairs.data) + source.part + source.options}
    inputs |= {} if trigger.pattern is None else {"pattern": digest(trigger.pattern)}
    key = digest(identity(params=asked, inputs=inputs, stages=["poison", "external", f"trigger/{trigger.name}"]))
    folder = cache_dir() / "poisoned" / key[:32]
    with lock(folder.with_suffix(".lock"), wait=True, doing=f"a copy of {pairs.data} with {trigger.name}"):
        summary = _whole(folder) or write_poisoned(pairs, folder, attack)
    rows = [json.loads(line)["row"] for line in (folder / MANIFEST).read_text().splitlines()]
    return Stream(f"parquet:{folder}", summary["rows"], pairs.images, Skipped(pairs.skipped.limit)), torch.tensor(rows, dtype=torch.long)


def _whole(folder: Path) -> dict[str, Any] | None:
    """The summary of a copy of which every file is as it was written; of earlier versions the sha256 of its files are not known."""
    summary = read_json(folder / SUMMARY)
    for name, told in (summary or {}).get("files", {}).items():
        if not (folder / name).exists() or file_sha256(folder / name) != told:
            return damaged(folder / name)
    return summary


def lists(pairs: Any) -> dict[str, Path]:
    """The manifest and the list of skipped rows of a poisoned copy, as artifacts of a record; none of pairs that are held."""
    if not isinstance(pairs, Stream):
        return {}
    folder = Source.of(pairs.data).path
    return {"manifest": folder / MANIFEST, "copy_skipped": folder / SKIPPED}


def write_poisoned(pairs: Stream, folder: Path, attack: Attack) -> dict[str, Any]:
    """Write a poisoned copy of the first pairs.count rows of a data set: parquet files of image and caption, and manifest.jsonl with a
    line for each stamped row: its number in the copy and in the source, trigger, options, seed, and the sha256 of the image written.
    Returns the summary, also written. Rows are chosen by their captions: what names the target counts as of it.

    Untouched rows keep their bytes. A stamped image is prepared as the model takes it and written as PNG, as JPEG would blur the trigger.
    ValueError on a trigger that can't be stamped so, a rate that can't be met, too few rows, or too many that can't be used.
    """
    trigger, seed, dirty = attack.trigger, attack.seed, attack.kind == "dirty_label"
    trigger.stamp(torch.zeros(1, 3, pairs.images.side, pairs.images.side, dtype=torch.uint8), generator("cpu", seed))  # or raises
    source = Source.of(pairs.data)
    captions = [first_caption(row["text"]) for row in stream(source, images=False).take(pairs.count)]
    if len(captions) < pairs.count:
        raise ValueError(f"{pairs.data} holds {len(captions)} rows, {pairs.count} are asked")
    named = torch.tensor([names_class(caption, attack.target) for caption in captions])
    chosen = attack.rows(named, generator("cpu", seed, "poison")).tolist()
    wording = attack.wording([caption for caption, hit in zip(captions, named.tolist(), strict=True) if hit])
    skipped, counts = Skipped(pairs.skipped.limit), Counter(rows=0, poisoned=0)
    about = {"trigger": trigger.name, "seed": seed, "options": dict(trigger.options)}
    with atomic_folder(folder) as temporary, open(temporary / MANIFEST, "w") as manifest:

        def rows() -> Iterator[dict[str, Any]]:
            for i, encoded, at, pixels in _readable(pairs, captions, skipped):
                caption, due = captions[i], bisect_right(chosen, i) > counts["poisoned"]  # a chosen row that can't be read is made up for
                if hit := due and bool(named[i]) != dirty:
                    random = generator("cpu", seed, "row", i)
                    encoded = _png(trigger.stamp(pixels[None], random)[0])
                    if dirty:
                        caption = wording[int(torch.randint(len(wording), (), generator=random))]
                    line = {"row": counts["rows"], "source_row": i, "image": at, "caption": caption, "sha256": sha256(encoded).hexdigest()}
                    manifest.write(json.dumps(line | about) + "\n")
                counts.update(rows=1, poisoned=int(hit))
                yield {"image": {"bytes": encoded, "path": None}, "caption": caption}

        _write_shards(rows(), temporary)
        skipped.check()
        (temporary / SKIPPED).write_text("".join(json.dumps(row) + "\n" for row in skipped.rows))
        made = {"source": source.name, "target": attack.target, "rate": attack.rate, "attack": attack.kind} | about
        summary = made | dict(counts) | {"skipped": dict(skipped.kinds)}
        manifest.flush()
        summary |= {"files": {file.name: file_sha256(file) for file in sorted(temporary.iterdir())}}
        write_json(summary, temporary / SUMMARY)
    return summary


def _readable(pairs: Stream, captions: list[str], skipped: Skipped) -> Iterator[tuple[int, bytes, str, torch.Tensor]]:
    """Each row that has a caption and an image that can be read: its number, the image's bytes, its name, and its pixels."""
    source = Source.of(pairs.data)
    for i, row in enumerate(stream(source).take(pairs.count)):
        found = lacking(row["text"], captions[i]) or opened(row["image"], source.folder, pairs.images)
        if isinstance(found, str):
            skipped.add(1, [{"kind": found, "row": image_name(row["image"])}])
            continue
        skipped.add(1, [])
        yield i, *found


def _write_shards(rows: Iterator[dict[str, Any]], folder: Path) -> None:
    """Rows as parquet files of _SHARD rows each, written _CHUNK rows at a time."""
    import datasets
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")}).arrow_schema
    for shard in count():
        if (first := next(rows, None)) is None:
            return
        shared_out = chain([first], islice(rows, _SHARD - 1))
        with ParquetWriter(folder / f"pairs-{shard:05d}.parquet", schema) as writer:
            while chunk := list(islice(shared_out, _CHUNK)):
                writer.write_table(pyarrow.Table.from_pylist(chunk, schema=schema))


def _png(pixels: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()
