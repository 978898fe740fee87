"""One training loop for pretraining, poisoning and every cleaning method.

All randomness is drawn from (seed, epoch) and (seed, step), never from a running state: an interrupted run that goes
on from its last checkpoint ends with the same weights, bit for bit.
"""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from open_clip.modified_resnet import ModifiedResNet
from timm.layers.norm_act import convert_sync_batchnorm

from parlib.cache import atomic_file, seal
from parlib.data.feeds import Batch, Feed, MemoryFeed, generator, rank, world
from parlib.method.methods import METHODS, Backdoor, Recipe, Step
from parlib.method.schedule import SCHEDULES, learning_rate
from parlib.model.clip import Clip, embed_texts
from parlib.model.weights import batch_norms, train_mode
from parlib.progress import progress
from parlib.train.compute import PLAIN, Compute, check_compute
from parlib.train.gradcache import GradCache, average, check_agreement

BATCH_NORM = ("frozen", "train")
_KEEP_EVERY = 20.0  # seconds between resumable checkpoints
_PRECISION = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Watch(Protocol):
    """Scenes to look at while training: metrics of a model, and a digest of what is looked at."""

    @property
    def key(self) -> str: ...

    def look(self, clip: Clip) -> dict[str, float]: ...


def check_recipe(recipe: Recipe, pairs: int) -> None:
    """Raise ValueError on a recipe that can't be followed with so many pairs."""
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


def _train_mode(clip: Clip, batch_norm: str) -> None:
    train_mode(clip)
    for norm in batch_norms(clip) if batch_norm == "frozen" else ():
        norm.eval()


def fit(
    clip: Clip,
    feed: Feed,
    recipe: Recipe,
    *,
    reference: Clip | None = None,
    clean: Feed | None = None,
    backdoor: Backdoor | None = None,
    watch: Watch | None = None,
    checkpoint: Path | None = None,
    compute: Compute = PLAIN,
    title: str = "",
) -> tuple[dict[str, list[float]], float]:
    """Train `clip` in place; return its history and the seconds it took, over all sittings.

    history: per step loss, l_clip, lr and the method's other terms, such as PAR's s_image and s_text; at each look look_step,
    look_clean_accuracy and look_attack_success_rate.

    feed: the pairs. reference: the frozen poisoned model. clean: the pairs before the attack, for methods that look at them. backdoor:
    the one to take out, for methods that must know it. watch: scenes for the looks. checkpoint: a file to resume from and to write,
    atomically, now and then. Where several processes train together, each calls this with its own copy of the model: batches are shared
    out, losses are those of the whole batch, the first one looks and writes.
    Raises ValueError on a recipe that can't be followed and FloatingPointError when the loss is no longer finite.
    """
    check_recipe(recipe, feed.pairs)
    method = METHODS[recipe.method]
    if method.needs_reference and reference is None:
        raise ValueError(f"{recipe.method} needs the frozen poisoned model as its reference")
    if method.needs_clean and clean is None:
        raise ValueError(f"{recipe.method} needs the pairs as they were before the attack")
    if method.stamps and backdoor is None:
        raise ValueError(f"{recipe.method} needs the backdoor that it takes out")
    if method.reword and not feed.rewords:
        raise ValueError(f"{recipe.method} needs reworded captions")
    normed = bool(batch_norms(clip))
    check_compute(compute, recipe.batch, recipe.batch_norm, normed=normed, resnet=isinstance(clip.net.visual, ModifiedResNet))
    clip.net.logit_scale.requires_grad_(method.learns_scale)
    per_epoch = feed.pairs // recipe.batch
    steps = recipe.steps or per_epoch * recipe.epochs
    looks = set(recipe.look_at) or ({round(steps * i / recipe.looks) for i in range(recipe.looks + 1)} if recipe.looks else set())
    losses = _Losses(clip, reference, feed, recipe, compute, clean, backdoor)
    scaler = torch.amp.GradScaler(clip.device.type, enabled=compute.precision == "fp16")
    optimizer, history, first, began = _optimizer(clip.net, recipe), {}, 0, time.monotonic()
    if checkpoint is not None and checkpoint.exists():
        first, before = _resume(checkpoint, clip, (optimizer, scaler), history, losses.memory, feed)
        began -= before
    elif method.begin is not None:
        method.begin(clip, generator("cpu", recipe.seed, "begin"))
    check_agreement(first, "the processes resume from different steps: PAR_CACHE must be a folder that they share")
    kept, pause = time.monotonic(), _KEEP_EVERY
    bar = progress(range(first, steps), title, initial=first, total=steps, unit="steps", shown=rank() == 0)
    for step in bar:
        if checkpoint is not None and rank() == 0 and time.monotonic() - kept > pause:
            started = time.monotonic()
            _keep(checkpoint, clip, (optimizer, scaler), history, losses.memory, feed, step, started - began)
            kept = time.monotonic()
            pause = _KEEP_EVERY * max(1.0, kept - started)  # large models take a while to write
        if step in looks and watch is not None and rank() == 0:
            _look(history, step, clip, watch)
        _train_mode(clip, recipe.batch_norm)
        found = losses.at(step)
        lr = learning_rate(step, steps, recipe.lr, recipe.schedule)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        losses.trainee.backward(scaler.scale(found["loss"]))
        if method.move is not None:
            losses.beyond(scaler)
        average(clip.net.parameters())
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            clip.net.logit_scale.clamp_(0, math.log(100))
            if method.after is not None:
                method.after(clip, reference)
        found = dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))  # one wait for the device
        if not math.isfinite(found["loss"]):
            raise FloatingPointError(f"the loss is {found['loss']} at step {step} of {steps}; a lower lr than {recipe.lr} may help")
        for name, value in (found | {"lr": lr}).items():
            history.setdefault(name, []).append(value)
        bar.set_postfix({name: f"{found[name]:.3g}" for name in ("loss", "s_image", "s_text") if name in found}, refresh=False)
    if steps in looks and watch is not None and rank() == 0:
        _look(history, steps, clip, watch)
    clip.net.eval()
    return history, time.monotonic() - began


class _Losses:
    """What a method finds at each step: pairs of the feed, augmented, through the model and, where it is needed, the frozen reference.

    trainee: the model as the method sees it. memory: what the method keeps from step to step.
    """

    def __init__(
        self,
        clip: Clip,
        reference: Clip | None,
        feed: Feed,
        recipe: Recipe,
        compute: Compute,
        clean: Feed | None = None,
        backdoor: Backdoor | None = None,
    ):
        self.clip, self.feed, self.recipe, self.method, self.memory = clip, feed, recipe, METHODS[recipe.method], {}
        share, precision = recipe.batch // world(), _PRECISION[compute.precision]
        self.trainee = GradCache(_prepared(clip, recipe, compute), share, compute.chunk, precision)
        if clip.text_is_frozen and isinstance(feed, MemoryFeed):
            self.feed = feed = feed.embedded(lambda tokens: embed_texts(clip, tokens))
            clean = clean.embedded(lambda tokens: embed_texts(clip, tokens)) if isinstance(clean, MemoryFeed) else clean
        self.clean, self.backdoor, self.target = clean, backdoor, backdoor and backdoor.target.to(clip.device)
        self.state: Any = None  # of the last step
        self.frozen, self.known_text = None, None
        if self.method.needs_reference and reference is not None:
            reference.net.eval()
            self.frozen = GradCache(reference, share, compute.chunk, precision)
            if self.method.captions and isinstance(feed, MemoryFeed):  # the captions stay, and so do their embeddings
                with torch.autocast(clip.device.type, precision, enabled=precision is not None):
                    self.known_text = embed_texts(reference, feed.tokens).float()

    def at(self, step: int) -> dict[str, torch.Tensor]:
        """The loss of a step and the terms that the history keeps."""
        recipe, given = self.recipe, self.feed.batch(step, self.recipe.batch, self.recipe.seed)
        plain, part = given.pixels.float() / 255, [rank()] if rank() else []
        if self.method.vary is not None and recipe.varied:
            plain = self.method.vary(plain, recipe.varied, generator(self.clip.device, recipe.seed, "vary", step, *part))
        view = plain
        if self.method.augment is not None:
            view = self.method.augment(plain, self.clip.fill, generator(self.clip.device, recipe.seed, "augment", step, *part))
        if self.backdoor is not None:
            random = generator("cpu", recipe.seed, "stamp", step, *part)
            rows = torch.rand(len(view), 1, 1, 1, generator=random) < self.method.stamps
            view = torch.where(rows.to(view.device), self.backdoor.stamp(plain, random), view)
        state = Step(self.trainee, self.frozen, recipe, plain, view, given.tokens, given.reworded)
        if self.frozen is not None and self.method.captions:
            with torch.no_grad():
                state.reference_text = self.frozen.text(given.tokens) if self.known_text is None else self.known_text[given.rows]
        state.epoch, state.pairs, state.memory = step // (self.feed.pairs // recipe.batch), self.feed.pairs, self.memory
        state.target = self.target
        if (clean := self.clean) is not None:
            state.clean = lambda later: _before(clean.batch(step + later, recipe.batch, recipe.seed))
        self.state = state
        return self.method.loss(state)

    def beyond(self, scaler: torch.amp.GradScaler) -> None:
        """Add the gradient of the last step's loss where the method moves the weights, or take it in the place of the first one. The
        weights return, and so do BatchNorm's statistics.
        """
        net = self.clip.net
        kept = {name: value.clone() for name, value in net.state_dict().items()}
        assert self.method.move is not None
        self.method.move(self.state, [weight for weight in net.parameters() if weight.requires_grad])
        if self.method.instead:
            net.zero_grad()
        self.trainee.backward(scaler.scale(self.method.loss(self.state)["loss"]))
        net.load_state_dict(kept)


def _before(given: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixels, tokens) of pairs before the attack."""
    return given.pixels.float() / 255, given.tokens


def _prepared(clip: Clip, recipe: Recipe, compute: Compute) -> Clip:
    """The model as it is trained: the same weights, compiled or with checkpointing where that is asked for, its BatchNorm over all
    processes.
    """
    if compute.checkpointing:
        clip.net.set_grad_checkpointing()
    if world() > 1 and recipe.batch_norm == "train" and clip.device.type == "cuda":
        clip.net = convert_sync_batchnorm(clip.net)  # torch's would take the activations out of timm's BatchNorm layers
    if not compute.compiled:
        return clip
    towers = replace(clip)
    towers.image, towers.text = torch.compile(clip.image), torch.compile(clip.text)
    return towers


def _look(history: dict, step: int, clip: Clip, watch: Watch) -> None:
    for name, value in ({"step": step} | watch.look(clip)).items():
        history.setdefault(f"look_{name}", []).append(value)


def _keep(path: Path, clip: Clip, steppers: tuple[Any, Any], history: dict, memory: dict, feed: Feed, step: int, seconds: float) -> None:
    with atomic_file(path) as temporary:
        optimizer, scaler = (stepper.state_dict() for stepper in steppers)
        state = {"net": clip.net.state_dict(), "optimizer": optimizer, "scaler": scaler, "history": history, "memory": memory}
        torch.save(state | {"feed": feed.kept(), "step": step, "seconds": seconds}, temporary)
        seal(temporary)


def _resume(path: Path, clip: Clip, steppers: tuple[Any, Any], history: dict, memory: dict, feed: Feed) -> tuple[int, float]:
    state = torch.load(path, weights_only=True, map_location=clip.device)
    clip.net.load_state_dict(state["net"], strict=True)
    for stepper, name in zip(steppers, ("optimizer", "scaler"), strict=True):
        stepper.load_state_dict(state[name])
    history.update(state["history"])
    memory.update(state["memory"])
    feed.resume(state.get("feed", {}))  # files of earlier versions have none
    print(f"resumed at step {state['step']}", flush=True)
    return state["step"], state["seconds"]
