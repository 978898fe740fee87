"""How fast the core is, on this machine: `make bench`. Times are printed and judged by the reader, not asserted.

The cleaning step beside the bare model's compute, the loader beside the model's step, zero-shot evaluation, and memory by the number
of pairs.
"""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.data.feeds import MemoryFeed
from parlib.data.scenes import load_scenes
from parlib.experiments.presets import trigger_options
from parlib.external.batches import Skipped, read
from parlib.measure.metrics import measure
from parlib.method.losses import clip_loss
from parlib.method.methods import Recipe
from parlib.model.clip import Clip, create
from parlib.model.preparation import Preparation
from parlib.train.loop import fit

BATCH, STEPS = 128, 20


@pytest.fixture(scope="module")
def held() -> tuple[Clip, MemoryFeed]:
    clip, scenes = create("small_resnet", seed=0), load_scenes("clean", BATCH * STEPS, 200)
    return clip, scenes.feed(clip)


def _bare(clip: Clip, reference: Clip, feed: MemoryFeed) -> None:
    """What PAR's step can't do without: both models' forward passes, one backward pass, AdamW."""
    optimizer = torch.optim.AdamW(clip.net.parameters(), fused=True)
    clip.net.train()
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        pixels, tokens = feed.pixels[rows].float() / 255, feed.tokens[rows]
        with torch.no_grad():
            reference.image(pixels)
        optimizer.zero_grad()
        clip_loss(clip.image(pixels), clip.text(tokens), clip.net.logit_scale.exp()).backward()
        optimizer.step()


def test_bare_model(benchmark, held):
    clip, feed = held
    benchmark.pedantic(lambda: _bare(clip.copy(), clip, feed), rounds=3, warmup_rounds=1)


def test_cleaning(benchmark, held):
    """20 steps of PAR, and the poisoned model's embeddings of all captions, which are computed once in a training."""
    clip, feed = held
    recipe = Recipe("par", 1, BATCH, 1e-3, 0, batch_norm="train", tau=2.15, looks=0)
    benchmark.pedantic(lambda: fit(clip.copy(), feed, recipe, reference=clip), rounds=3, warmup_rounds=1)


def test_zero_shot_evaluation(benchmark, held):
    """2,000 scenes without and with the trigger, 200 classes in 80 templates, retrieval."""
    clip, _ = held
    scenes = attacked(load_scenes("validation", 2000, 200), Trigger("badnet_stripes", trigger_options("badnet_stripes")), "banana")
    benchmark.pedantic(lambda: measure(clip, scenes), rounds=2, warmup_rounds=1)


def _tars(folder: Path, count: int, shards: int = 4) -> Path:
    """CC3M's schema: JPEGs of 224 px of smooth noise, about 20 kB each."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(16):
        small = Image.fromarray(random.integers(0, 255, (28, 28, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((224, 224), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard, count, shards):
                for end, content in (("jpg", pictures[i % 16]), ("txt", f"caption {i}".encode())):
                    info = tarfile.TarInfo(f"{i:09d}.{end}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(benchmark, tmp_path, workers):
    """2,000 images of 224 px from tars."""
    folder = _tars(tmp_path, 2000)

    def whole() -> int:
        return sum(
            len(texts)
            for _, texts in read(f"cc3m:{folder}", images=Preparation(224), batch=128, skipped=Skipped(), seed=0, workers=workers)
        )

    assert benchmark.pedantic(whole, rounds=2, warmup_rounds=1) == 2000
    benchmark.extra_info["images a second"] = round(2000 / benchmark.stats.stats.mean)


def test_step_beside_the_loader(benchmark):
    """One PAR step of RN50 at 224 px, batch 16: images a second, to be compared with the loader's."""
    clip = create("RN50", seed=0)
    feed = MemoryFeed(torch.randint(0, 255, (16, 3, 224, 224), dtype=torch.uint8), clip.tokenizer(["a caption"] * 16))
    recipe = Recipe("par", 1, 16, 1e-5, 0, tau=2.15, looks=0)
    benchmark.pedantic(lambda: fit(clip, feed, recipe, reference=clip.copy()), rounds=2, warmup_rounds=0)
    benchmark.extra_info["images a second"] = round(16 / benchmark.stats.stats.mean, 1)


_READ = """
import re, sys
from pathlib import Path
from parlib.external.stream import Stream
from parlib.model.clip import create
clip, count = create("small_resnet"), int(sys.argv[2])
feed = Stream(f"cc3m:{sys.argv[1]}", count, 224).feed(clip)
for step in range(count // 100):
    feed.batch(step, 100, 0)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path):
    """Peak MiB (VmHWM: getrusage would count the parent's) of a process that streams 1,000 and 20,000 pairs of 224 px; the latter would
    be 2,871 MiB decoded.
    """
    peaks = {}
    for count in (1000, 20_000):
        (tmp_path / str(count)).mkdir()
        folder = _tars(tmp_path / str(count), count, shards=8)
        done = subprocess.run([sys.executable, "-c", _READ, str(folder), str(count)], capture_output=True, text=True, check=True)
        peaks[count] = int(done.stdout.splitlines()[-1])
    print(json.dumps(peaks))
    assert peaks[20_000] < peaks[1000] + 200
