"""How fast the core is, on this machine: `make bench`. Times are measured and judged by the reader, not asserted; with --write-figures they
go to docs/speed.json, from which docs/paper-scale.md states them. What users would run instead is written here from its description, and
takes turns with ours in one run.
"""

import ast
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nbformat
import open_clip
import pytest
import torch
import torch.nn.functional as F
from jupyter_client.manager import start_new_kernel
from miniatures import photographs, write_csv
from PIL import Image

from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.cli.notebooks import notebook_path
from parlib.data.feeds import MemoryFeed
from parlib.data.pairs import TEMPLATES
from parlib.data.scenes import load_scenes
from parlib.experiments.presets import trigger_options
from parlib.external.batches import Skipped, read
from parlib.measure.metrics import EvalSet, classifier, measure
from parlib.method.eda import reword
from parlib.method.losses import clip_loss
from parlib.method.methods import Recipe
from parlib.model.clip import Clip, create, embed_images
from parlib.model.preparation import Preparation
from parlib.train.loop import fit

BATCH, PAIRS, STEPS = 128, 720, 360  # a cleaning of make reproduce


def _seconds(*ways: Callable[[], object], rounds: int = 2) -> list[float]:
    """What each takes, the least of some rounds in which they take turns."""
    taken: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for seconds, way in zip(taken, ways, strict=True):
            began = time.monotonic()
            way()
            seconds.append(time.monotonic() - began)
    return [min(seconds) for seconds in taken]


@pytest.fixture(scope="module")
def model() -> Clip:
    return create("small_resnet", seed=0)


@pytest.fixture(scope="module")
def scenes() -> EvalSet:
    return attacked(load_scenes("validation", 2000, 200), Trigger("badnet_stripes", trigger_options("badnet_stripes")), "banana")


def test_a_cleaning_beside_bare_compute(model, figures):
    """A step of PAR and of CleanCLIP, and of what PAR can't do without: both models' forward passes, one backward pass, AdamW. The ratio is
    that of a whole cleaning: what comes before its first step, such as the poisoned model's embeddings of all captions, is in it.
    """
    few, many = 5, 45
    feed = load_scenes("clean", PAIRS, 200).feed(model, reword)

    def ours(method: str, steps: int) -> Callable[[], object]:
        recipe = Recipe(method, 1, BATCH, 1e-3, 0, batch_norm="train", tau=2.15, self_weight=0.3, looks=0, steps=steps)
        return lambda: fit(model.copy(), feed, recipe, reference=model)

    def bare(steps: int) -> Callable[[], None]:
        return lambda: _bare(model.copy(), model, feed, steps)

    ways = [way for make in (bare, lambda n: ours("par", n), lambda n: ours("cleanclip", n)) for way in (make(few), make(many))]
    taken = _seconds(*ways)
    steps = {name: (taken[2 * i + 1] - taken[2 * i]) / (many - few) for i, name in enumerate(("bare", "par", "cleanclip"))}
    figures |= {f"{name}_ms": round(1000 * seconds) for name, seconds in steps.items()}
    before = taken[2] - few * steps["par"]
    figures["par_over_bare"] = round((before + STEPS * steps["par"]) / (STEPS * steps["bare"]), 2)
    figures["cleanclip_over_par"] = round(steps["cleanclip"] / steps["par"], 2)


def _bare(clip: Clip, reference: Clip, feed: MemoryFeed, steps: int) -> None:
    optimizer = torch.optim.AdamW(clip.net.parameters(), fused=True)
    clip.net.train()
    for step in range(steps):
        rows = slice(step % 5 * BATCH, (step % 5 + 1) * BATCH)
        pixels, tokens = feed.pixels[rows].float() / 255, feed.tokens[rows]
        with torch.no_grad():
            reference.image(pixels)
        optimizer.zero_grad()
        clip_loss(clip.image(pixels), clip.text(tokens), clip.net.logit_scale.exp()).backward()
        optimizer.step()


def test_a_look_beside_the_released_one(model, scenes, figures):
    """The looks of a training: 500 scenes with and without the trigger. The released evaluation embeds the prompts class by class."""
    few = replace(scenes, **{name: getattr(scenes, name)[:500] for name in ("pixels", "triggered", "captions", "labels", "shows_target")})

    def released() -> torch.Tensor:
        with torch.no_grad():
            prompts = ([template.format(name=name) for template in TEMPLATES] for name in few.names)
            classes = torch.stack([F.normalize(model.text(model.tokenizer(given)).mean(0), dim=0) for given in prompts])
        for pixels in (few.pixels, few.triggered):
            (embed_images(model, pixels) @ classes.T).argmax(1)
        return classes

    assert torch.allclose(released(), classifier(model, few.names), atol=1e-5)
    theirs, ours = _seconds(released, lambda: few.look(model))
    figures |= {"ours_seconds": round(ours, 1), "released_seconds": round(theirs, 1), "released_over_ours": round(theirs / ours, 1)}


def test_evaluation(model, scenes, figures):
    """2,000 scenes without and with the trigger, 200 classes in 80 templates, retrieval."""
    figures["seconds"] = round(_seconds(lambda: measure(model, scenes))[0], 1)


class _Released(torch.utils.data.Dataset):
    """The released loader: a pair's image is opened, decoded and prepared once to be seen as it is, and again to be augmented."""

    def __init__(self, files: list[Path]):
        self.files, self.prepare = files, open_clip.image_transform(224, is_train=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        plain, augmented = (self.prepare(Image.open(self.files[i]).convert("RGB")) for _ in range(2))
        return plain, augmented


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_beside_the_released_one(tmp_path, figures, workers):
    """2,000 JPEGs of 224 px, named in a csv."""
    count = 2000
    for tar in photographs(tmp_path, count).glob("*.tar"):
        with tarfile.open(tar) as archive:
            archive.extractall(tmp_path, filter="data")
    names = [f"{i:09d}.jpg" for i in range(count)]
    write_csv(tmp_path / "pairs.csv", [(name, f"caption {i}") for i, name in enumerate(names)])

    def ours() -> None:
        how = {"images": Preparation(224), "batch": 128, "skipped": Skipped(), "seed": 0, "workers": workers}
        assert sum(len(texts) for _, texts in read(f"csv:{tmp_path}", **how)) == count

    def released() -> None:
        loader = torch.utils.data.DataLoader(_Released([tmp_path / name for name in names]), batch_size=128, num_workers=workers)
        assert sum(len(plain) for plain, _ in loader) == count

    mine, theirs = _seconds(ours, released)
    figures |= {"ours_a_second": round(count / mine), "released_a_second": round(count / theirs), "ratio": round(theirs / mine, 1)}


def test_a_large_model_beside_the_loader(figures):
    """One PAR step of RN50 at 224 px, batch 16: images a second, to be compared with the loader's."""
    clip = create("RN50", seed=0)
    feed = MemoryFeed(torch.randint(0, 255, (16, 3, 224, 224), dtype=torch.uint8), clip.tokenizer(["a caption"] * 16))
    recipe = Recipe("par", 1, 16, 1e-5, 0, tau=2.15, looks=0)
    figures["images_a_second"] = round(16 / _seconds(lambda: fit(clip, feed, recipe, reference=clip.copy()))[0], 1)


_READ = """
import re, sys
from pathlib import Path
from parlib.external.stream import Stream
from parlib.model.clip import create
from parlib.model.preparation import Preparation
clip, count = create("small_resnet"), int(sys.argv[2])
feed = Stream(f"cc3m:{sys.argv[1]}", count, Preparation(224)).feed(clip)
for step in range(count // 100):
    feed.batch(step, 100, 0)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path, figures):
    """Peak MiB (VmHWM: getrusage would count the parent's) of a process that streams 1,000 and 20,000 pairs of 224 px; the latter would
    be 2,871 MiB decoded.
    """
    for count in (1000, 20_000):
        (tmp_path / str(count)).mkdir()
        folder = photographs(tmp_path / str(count), count, shards=8)
        done = subprocess.run([sys.executable, "-c", _READ, str(folder), str(count)], capture_output=True, text=True, check=True)
        figures[f"pairs_{count}"] = int(re.findall(r"\d+", done.stdout)[-1])
    assert figures["pairs_20000"] < figures["pairs_1000"] + 200


_OWNERS = ("torch", "torch._dynamo", "torchvision", "transformers", "timm", "open_clip", "pandas", "matplotlib", "parlib")


def test_the_start_of_a_notebook(figures):
    """Seconds until notebook 02 begins its work: its kernel, its imports, by the package that first asked for them, and its scenes."""
    cells = nbformat.read(notebook_path("02_clean"), 4).cells
    imports = next(cell.source for cell in cells if cell.cell_type == "code")
    assert all(isinstance(one, ast.ImportFrom) for one in ast.parse(imports).body)
    began = time.monotonic()
    manager, client = start_new_kernel()
    figures["kernel"] = round(time.monotonic() - began, 1)
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    command = [sys.executable, "-X", "importtime", "-c", imports]
    subprocess.run(command, capture_output=True, check=True)  # what was on disk alone is in memory now
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    load_scenes("clean", 12_000)
    (scenes,) = _seconds(lambda: (load_scenes("clean", 12_000), load_scenes("test", 2000)))
    shares = _shares(told)
    figures |= {name: round(seconds, 1) for name, seconds in shares.most_common()} | {"scenes": round(scenes, 1)}
    figures["whole"] = round(figures["kernel"] + shares.total() + scenes, 1)


def _shares(told: str) -> Counter[str]:
    """Seconds of imports, from what python -X importtime printed, by the nearest owner that asked for them."""
    owners: dict[int, str] = {}
    found: Counter[str] = Counter()
    for line in reversed(told.splitlines()):  # children stand before their parents
        if match := re.match(r"import time: +(\d+) \| +\d+ \|( *)(\S+)$", line):
            depth, name = len(match[2]), match[3]
            top = name.split(".")[0]
            owners[depth] = name if name in _OWNERS else top if top == "parlib" else owners.get(depth - 2, "others")
            found[owners[depth]] += int(match[1]) / 1e6
    return found
