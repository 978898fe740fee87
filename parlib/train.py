"""One training loop for pretraining, poisoning and every cleaning method.

All randomness is drawn from (seed, epoch) and (seed, step), never from a running state: an interrupted run that goes
on from its last checkpoint ends with the same weights, bit for bit.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from parlib.cache import atomic_file, atomic_folder, cache_dir, code_fingerprint, digest, file_sha256, lock, versions
from parlib.methods import METHODS, Recipe, Step
from parlib.model import WEIGHTS, Clip, embed_texts, load, save

SCHEDULES = ("paper", "cosine", "warmup_cosine")
BATCH_NORM = ("frozen", "train")
_KEEP_EVERY = 20.0  # seconds between resumable checkpoints


class Watch(Protocol):
    """Scenes to look at while training: metrics of a model, and a digest of what is looked at."""

    key: str

    def look(self, clip: Clip) -> dict[str, float]: ...


@dataclass(frozen=True)
class Told:
    """A watch that passes what it sees on to `tell`, where there is one; in keys it counts as the watch inside."""

    watch: Watch
    tell: Callable[[dict[str, float]], None] | None

    @property
    def key(self) -> str:
        """The key of the watch inside."""
        return self.watch.key

    def look(self, clip: Clip) -> dict[str, float]:
        """What the watch inside sees."""
        seen = self.watch.look(clip)
        if self.tell is not None:
            self.tell(seen)
        return seen


def generator(device: torch.device, *path: int | str) -> torch.Generator:
    """A generator that depends on its path alone, e.g. (seed, "augment", step)."""
    seed = int.from_bytes(hashlib.sha256(repr(path).encode()).digest()[:7], "big")
    return torch.Generator(device).manual_seed(seed)


def learning_rate(step: int, steps: int, peak: float, schedule: str) -> float:
    """The rate of a step in 0..steps-1.

    paper: linear from peak to peak / 10 over the first half, then cosine to about 0 (the released code: 3e-5, 3e-6,
    1e-9). cosine: from peak to about 0. warmup_cosine: the same after a linear rise over the first 5 %.
    """
    floor = peak / 30_000  # 1e-9 where the peak is 3e-5
    done, half, rise = step / steps, 0.5, 0.05
    if schedule == "paper" and done < half:
        return peak * (1 - 0.9 * done / half)
    if schedule == "paper":
        return floor + (peak / 10 - floor) * (1 + math.cos(math.pi * (done - half) / half)) / 2
    if schedule == "warmup_cosine" and done < rise:
        return peak * (step + 1) / (rise * steps + 1)
    start = rise if schedule == "warmup_cosine" else 0.0
    return floor + (peak - floor) * (1 + math.cos(math.pi * (done - start) / (1 - start))) / 2


def _check(recipe: Recipe, pairs: int) -> None:
    for value, known, what in (
        (recipe.method, tuple(METHODS), "method"),
        (recipe.schedule, SCHEDULES, "schedule"),
        (recipe.batch_norm, BATCH_NORM, "batch_norm"),
    ):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}; known are: {', '.join(known)}")
    if not 1 < recipe.batch <= pairs:
        raise ValueError(f"a batch of {recipe.batch} can't be drawn from {pairs} pairs")


def _optimizer(net: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, betas (0.9, 0.98), eps 1e-8, decay on weights with >= 2 dims only."""
    trained = [p for p in net.parameters() if p.requires_grad]
    decay = METHODS[recipe.method].weight_decay if recipe.weight_decay is None else recipe.weight_decay
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-8, fused=True)


def _train_mode(net: torch.nn.Module, batch_norm: str) -> None:
    net.train()
    if batch_norm == "frozen":
        for module in net.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()


def fit(
    clip: Clip,
    pixels: torch.Tensor,
    tokens: torch.Tensor,
    recipe: Recipe,
    *,
    reworded: torch.Tensor | None = None,
    reference: Clip | None = None,
    watch: Watch | None = None,
    checkpoint: Path | None = None,
    title: str = "",
) -> tuple[dict[str, list[float]], float]:
    """Train `clip` in place; return its history and the seconds it took, over all sittings.

    history: per step loss, l_clip, lr and the method's other terms, such as PAR's s_image and s_text; at each look look_step,
    look_clean_accuracy and look_attack_success_rate.

    pixels: (N, 3, H, W) uint8; tokens: (N, L); both stay on their device. reworded: (N, L), the captions after EDA, for
    methods that want them. reference: the frozen poisoned model.
    watch: scenes for the looks. checkpoint: a file to resume from and to write now and then.
    Raises ValueError on a recipe that can't be followed and FloatingPointError when the loss is no longer finite.
    """
    _check(recipe, len(pixels))
    method, device = METHODS[recipe.method], clip.device
    if method.needs_reference and reference is None:
        raise ValueError(f"{recipe.method} needs the frozen poisoned model as its reference")
    if method.reword and reworded is None:
        raise ValueError(f"{recipe.method} needs reworded captions")
    clip.net.logit_scale.requires_grad_(method.learns_scale)
    per_epoch = len(pixels) // recipe.batch
    steps = per_epoch * recipe.epochs
    looks = {round(steps * i / recipe.looks) for i in range(recipe.looks + 1)} if recipe.looks else set()
    reference_text = embed_texts(reference, tokens) if method.needs_reference else None
    optimizer, history, memory, first, began = _optimizer(clip.net, recipe), {}, {}, 0, time.monotonic()
    if checkpoint is not None and checkpoint.exists():
        first, before = _resume(checkpoint, clip, optimizer, history, memory)
        began -= before
    kept, order = time.monotonic(), None
    bar = tqdm(range(first, steps), title, initial=first, total=steps, file=sys.stdout, mininterval=5, ascii=True, leave=False)
    for step in bar:
        if order is None or step % per_epoch == 0:
            order = torch.randperm(len(pixels), generator=generator("cpu", recipe.seed, "order", step // per_epoch)).to(device)
        if checkpoint is not None and time.monotonic() - kept > _KEEP_EVERY:
            _keep(checkpoint, clip, optimizer, history, memory, step, time.monotonic() - began)
            kept = time.monotonic()
        if step in looks and watch is not None:
            _look(history, step, clip, watch)
        _train_mode(clip.net, recipe.batch_norm)
        rows = order[step % per_epoch * recipe.batch :][: recipe.batch]
        plain = view = pixels[rows].float() / 255
        if method.augment is not None:
            view = method.augment(plain, clip.fill, generator(device, recipe.seed, "augment", step))
        state = Step(clip, reference, recipe, plain, view, tokens[rows], (tokens if reworded is None else reworded)[rows])
        state.reference_text = None if reference_text is None else reference_text[rows]
        state.epoch, state.pairs, state.memory = step // per_epoch, len(pixels), memory
        found = method.loss(state)
        lr = learning_rate(step, steps, recipe.lr, recipe.schedule)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        with torch.no_grad():
            clip.net.logit_scale.clamp_(0, math.log(100))
        found = dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))  # one wait for the device
        if not math.isfinite(found["loss"]):
            raise FloatingPointError(f"the loss is {found['loss']} at step {step} of {steps}; a lower lr than {recipe.lr} may help")
        for name, value in (found | {"lr": lr}).items():
            history.setdefault(name, []).append(value)
    if steps in looks and watch is not None:
        _look(history, steps, clip, watch)
    clip.net.eval()
    return history, time.monotonic() - began


def _look(history: dict, step: int, clip: Clip, watch: Watch) -> None:
    for name, value in ({"step": step} | watch.look(clip)).items():
        history.setdefault(f"look_{name}", []).append(value)


def _keep(path: Path, clip: Clip, optimizer: torch.optim.Optimizer, history: dict, memory: dict, step: int, seconds: float) -> None:
    with atomic_file(path) as temporary:
        state = {"net": clip.net.state_dict(), "optimizer": optimizer.state_dict(), "history": history, "memory": memory}
        torch.save(state | {"step": step, "seconds": seconds}, temporary)


def _resume(path: Path, clip: Clip, optimizer: torch.optim.Optimizer, history: dict, memory: dict) -> tuple[int, float]:
    state = torch.load(path, weights_only=True, map_location=clip.device)
    clip.net.load_state_dict(state["net"], strict=True)
    optimizer.load_state_dict(state["optimizer"])
    history.update(state["history"])
    memory.update(state["memory"])
    print(f"resumed at step {state['step']}", flush=True)
    return state["step"], state["seconds"]


@dataclass(frozen=True)
class Trained:
    """A trained model, where its files are, and how it got there."""

    clip: Clip
    weights: Path
    sha256: str
    history: dict[str, list[float]]
    seconds: float


def train(
    clip: Clip,
    pixels: torch.Tensor,
    captions: list[str],
    recipe: Recipe,
    *,
    reference: Clip | None = None,
    watch: Watch | None = None,
    title: str = "",
) -> Trained:
    """`fit` through the content-addressed cache: the same weights, data, recipe and code are trained once.

    `clip` itself is left as it is. An interrupted call goes on where it was.
    """
    _check(recipe, len(pixels))
    reword = METHODS[recipe.method].reword
    tokens = clip.tokenizer(captions).to(clip.device)
    reworded = clip.tokenizer(reword(captions, recipe.seed)).to(clip.device) if reword else None
    key = training_key(clip, pixels, tokens, recipe, reworded=reworded, reference=reference, watch=watch)
    folder, unfinished = cache_dir() / "models" / key[:32], cache_dir() / "unfinished" / f"{key[:32]}.pt"
    with lock(unfinished.with_suffix(".lock"), wait=True, doing=title or recipe.method):
        _retell(watch, folder, unfinished)
        if not _whole(folder):
            clip = clip.copy()
            history, seconds = fit(
                clip, pixels, tokens, recipe, reworded=reworded, reference=reference, watch=watch, checkpoint=unfinished, title=title
            )
            with atomic_folder(folder) as temporary:
                sha256 = save(clip, temporary)
                report = {"sha256": sha256, "recipe": asdict(recipe), "seconds": seconds, "history": history}
                (temporary / "training.json").write_text(json.dumps(report))
            unfinished.unlink(missing_ok=True)
    report = json.loads((folder / "training.json").read_text())
    return Trained(load(f"local-dir:{folder}"), folder / WEIGHTS, report["sha256"], report["history"], report["seconds"])


def _retell(watch: Watch | None, folder: Path, unfinished: Path) -> None:
    """Tell a watch what earlier sittings of a training saw."""
    if not isinstance(watch, Told) or watch.tell is None:
        return
    history = {}
    if _whole(folder):
        history = json.loads((folder / "training.json").read_text())["history"]
    elif unfinished.exists():
        history = torch.load(unfinished, weights_only=True, map_location="cpu")["history"]
    names = [name for name in history if name.startswith("look_") and name != "look_step"]
    for values in zip(*(history[name] for name in names), strict=True):
        watch.tell({name.removeprefix("look_"): value for name, value in zip(names, values, strict=True)})


def training_key(
    clip: Clip,
    pixels: torch.Tensor,
    tokens: torch.Tensor,
    recipe: Recipe,
    *,
    reworded: torch.Tensor | None,
    reference: Clip | None,
    watch: Watch | None,
) -> str:
    """What names a training run in the cache: the start, the data, the recipe, and the code that it reaches."""
    method, start = METHODS[recipe.method], sorted(clip.net.state_dict().items())
    frozen = [value for _, value in sorted(reference.net.state_dict().items())] if reference and method.needs_reference else []
    watch = watch.watch if isinstance(watch, Told) else watch
    looked = f"{type(watch).__module__.removeprefix('parlib.')}.{type(watch).__name__}"
    return digest(
        asdict(recipe),
        clip.config,
        [name for name, _ in start],
        *[value for _, value in start],
        *frozen,
        pixels,
        tokens,
        *([] if reworded is None else [reworded]),
        [method.learns_scale, method.needs_reference, method.weight_decay],
        watch.key if watch else "",
        code_fingerprint("train.fit", *method.code, *([looked] if watch else [])),
        versions(),
        [clip.device.type, torch.get_num_threads()],
    )


def _whole(folder: Path) -> bool:
    """Whether a cached model is there as it was trained; a damaged one is trained again."""
    report, weights = folder / "training.json", folder / WEIGHTS
    if not report.exists() or not weights.exists():
        return False
    whole = file_sha256(weights) == json.loads(report.read_text())["sha256"]
    if not whole:
        print(f"{weights} is not the file that was trained: training it again", flush=True)
    return whole
