"""A poisoned copy of pairs of others, written as it is read, with a manifest of every row that was changed, so that it can be handed
over and checked.
"""

import io
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from parlib.cache import atomic_folder, cache_dir, code_fingerprint, digest, lock, versions
from parlib.data import TEMPLATES, Pairs, draw_rows
from parlib.feeds import generator
from parlib.sources import LAYOUTS, Skipped, decode, encoded_bytes, first_caption, listed, split_name, table
from parlib.streams import Stream
from parlib.triggers import LEARNED, stamp

MANIFEST, SUMMARY, SKIPPED = "manifest.jsonl", "summary.json", "skipped.jsonl"
_SHARD = 5000  # rows of a parquet file: several files can be shared out to processes
_CHUNK = 200  # rows written at once


def chosen_rows(captions: list[str], target: str, rate: float, seed: int, attack: str = "dirty_label") -> list[int]:
    """`draw_rows` by the captions, from the seed: what names the target counts as of it."""
    named = torch.tensor([target.lower() in caption.lower() for caption in captions])
    return draw_rows(named, rate, attack, generator("cpu", seed, "poison")).tolist()


def poison_stream(pairs: Stream, **options: Any) -> tuple[Stream, torch.Tensor]:
    """`poison.poison` for pairs of others: the copy, written once to the cache as parquet, and its changed rows."""
    pattern = options.get("pattern")
    named = {name: value for name, value in options.items() if name != "pattern"}
    code = code_fingerprint("poison_stream.write_poisoned", f"triggers.{options['trigger']}")
    key = digest(named, *([] if pattern is None else [pattern]), listed(pairs.data), pairs.count, pairs.side, code, versions())
    folder = cache_dir() / "poisoned" / key[:32]
    with lock(folder.with_suffix(".lock"), wait=True, doing=f"a copy of {pairs.data} with {options['trigger']}"):
        if not (folder / SUMMARY).exists():
            write_poisoned(pairs, folder, **options)
    summary = json.loads((folder / SUMMARY).read_text())
    rows = [json.loads(line)["row"] for line in (folder / MANIFEST).read_text().splitlines()]
    return Stream(f"parquet:{folder}", summary["rows"], pairs.side, Skipped(pairs.skipped.limit)), torch.tensor(rows)


def papers(pairs: Pairs | Stream) -> dict[str, Path]:
    """The manifest and the list of skipped rows of a poisoned copy, as artifacts of a record; none of pairs that are held."""
    if not isinstance(pairs, Stream):
        return {}
    _, folder = split_name(pairs.data)
    return {"manifest": folder / MANIFEST, "copy_skipped": folder / SKIPPED}


def write_poisoned(
    pairs: Stream,
    folder: Path,
    *,
    trigger: str,
    patch: int,
    strength: float,
    target: str,
    rate: float,
    seed: int,
    attack: str = "dirty_label",
    pattern: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Write a poisoned copy of the first pairs.count rows of a data set: parquet files of image and caption, and manifest.jsonl with a
    line for each stamped row: its number in the copy and in the source, trigger, parameters, seed, and the sha256 of the image
    written. Returns the summary, also written.

    Untouched rows keep their bytes. A stamped image is squashed to pairs.side px and written as PNG, as JPEG would blur the trigger.
    Raises ValueError on a trigger that can't be stamped so, a rate that can't be met, too few rows, or too many that can't be used.
    """
    options = {"patch": patch, "strength": strength}
    drawn = options | ({"pattern": pattern} if trigger in LEARNED else {})
    stamp(torch.zeros(1, 3, pairs.side, pairs.side, dtype=torch.uint8), trigger, generator("cpu", seed), **drawn)  # or raises
    name, path = split_name(pairs.data)
    captions = [first_caption(row["text"]) or "" for row in table(name, path).take(pairs.count).select_columns(["text"])]
    if len(captions) < pairs.count:
        raise ValueError(f"{pairs.data} holds {len(captions)} rows, {pairs.count} are asked")
    chosen = chosen_rows(captions, target, rate, seed, attack)
    names_target = [target.lower() in caption.lower() for caption in captions]
    natural = [caption for caption, named in zip(captions, names_target, strict=True) if named]
    wording = natural if trigger in LEARNED else [template.format(name=target) for template in TEMPLATES]
    skipped, counts = Skipped(pairs.skipped.limit), Counter(rows=0, poisoned=0)
    with atomic_folder(folder) as temporary, open(temporary / MANIFEST, "w") as manifest, _Shards(temporary) as shards:
        for i, encoded, at in _readable(pairs, captions, skipped):
            caption, due = captions[i], bisect_right(chosen, i) > counts["poisoned"]  # a chosen row that can't be read is made up for
            if hit := due and names_target[i] != (attack == "dirty_label"):
                random = generator("cpu", seed, "row", i)
                encoded = _png(stamp(decode(encoded, pairs.side)[None], trigger, random, **drawn)[0])
                if attack == "dirty_label":
                    caption = wording[torch.randint(len(wording), (), generator=random).item()]
                line = {"row": counts["rows"], "source_row": i, "image": at, "caption": caption, "sha256": sha256(encoded).hexdigest()}
                manifest.write(json.dumps(line | {"trigger": trigger, "seed": seed} | options) + "\n")
            shards.write({"image": {"bytes": encoded, "path": None}, "caption": caption})
            counts.update(rows=1, poisoned=int(hit))
        shards.flush()
        skipped.check()
        skipped.write(temporary / SKIPPED)
        made = {"source": name, "trigger": trigger, "target": target, "rate": rate, "seed": seed, "attack": attack} | options
        summary = made | dict(counts) | {"skipped": dict(skipped.kinds)}
        (temporary / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _readable(pairs: Stream, captions: list[str], skipped: Skipped) -> Iterator[tuple[int, bytes, str]]:
    """Each row that has a caption and an image that can be read: its number, the image's bytes and its name."""
    name, path = split_name(pairs.data)
    for i, row in enumerate(table(name, path).take(pairs.count)):
        kind = "" if captions[i].strip() else "empty caption"
        try:
            encoded, at = encoded_bytes(row["image"], path / LAYOUTS[name].folder)
            Image.open(io.BytesIO(encoded)).load()
        except FileNotFoundError:
            kind = kind or "missing file"
        except Exception:  # as in sources: all mean that this row can't be used
            kind = kind or "unreadable image"
        skipped.add(1, [(kind, str(row["image"])[:200])] if kind else [])
        if not kind:
            yield i, encoded, at


class _Shards:
    """Rows as parquet files of _SHARD rows each, written _CHUNK rows at a time."""

    def __init__(self, folder: Path):
        import datasets

        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        self.folder, self.schema, self.rows, self.written, self.stack = folder, features.arrow_schema, [], 0, ExitStack()

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *raised: object) -> None:
        self.stack.close()

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == _CHUNK:
            self.flush()

    def flush(self) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        if not self.rows:
            return
        if self.written % _SHARD == 0:
            self.stack.close()
            path = self.folder / f"pairs-{self.written // _SHARD:05d}.parquet"
            self.writer = self.stack.enter_context(ParquetWriter(path, self.schema))
        self.writer.write_table(pyarrow.Table.from_pylist(self.rows, schema=self.schema))
        self.written += len(self.rows)
        self.rows = []


def _png(pixels: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()
