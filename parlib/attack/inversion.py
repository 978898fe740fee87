"""Triggers inverted from a model: for every class the pattern that makes images of others be called it. A planted target needs far less
than any other class, so it stands out (Neural Cleanse, Wang et al. 2019; for CLIP InverTune, arXiv 2506.12411, and arXiv 2604.09101).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from parlib.attack.forms import FORMS, Form
from parlib.attack.triggers import Trigger, rand
from parlib.cache import atomic_file, cache_dir, digest, read_tensors, write_tensors
from parlib.data.feeds import generator
from parlib.model.clip import Clip, embed_images
from parlib.progress import progress
from parlib.records.identity import identity

# What is searched, in rounds: which share of the classes is left, images a class and step, and steps. All of them meet the first; the best
# quarter, and then the best dozen of that, go on. For 200 classes that makes 16,000 images forth and back a form.
_FINALISTS = 12
_ROUNDS = ((1.0, 8, 5), (0.25, 8, 10), (0.0, 16, 20))
_ALONE = ((1.0, 16, 40),)  # of one class, to find the smallest trigger that calls it
_TOGETHER = 256  # images at once: bounds memory
_MOMENTUM = 0.9
_SMOOTH = 0.7  # of the losses by which classes are compared
_FEWEST = 10  # held-out images that an ASR is measured on
_NOTHING = 1e3  # the loss of a class that all images are called already


@dataclass(frozen=True)
class Inverted:
    """The finalists of a form, strongest first. classes: their indices; asr: (K,) the share of held-out images, of those that were not
    called so before, that the class's pattern makes the model call it, 0 where fewer than ten were not; patterns: (K, ...). seconds: of
    the search.
    """

    form: str
    classes: list[int]
    asr: list[float]
    patterns: torch.Tensor
    seconds: float = 0.0

    @property
    def leads(self) -> list[float]:
        """How far each class is ahead of the median of the others, in -1..1. Not of the next one, as there may be two targets."""
        return [asr - median((self.asr[:place] + self.asr[place + 1 :]) or [0.0]) for place, asr in enumerate(self.asr)]

    @property
    def lead(self) -> float:
        return self.leads[0]

    def trigger(self, place: int = 0, calls: str = "") -> "InvertedTrigger":
        """A finalist's, by its place, to stamp with; calls: the name of its class."""
        return InvertedTrigger("inverted", {}, self.patterns[place], form=self.form, calls=calls)


@dataclass(frozen=True)
class InvertedTrigger(Trigger):
    """A trigger that was inverted from a model, of a form; pattern: one pattern of it; calls: the class that it makes a model say, empty
    where that is not known. It stamps as any other does. further: those of other targets in the same model: each image gets one of all of
    them, by chance.
    """

    form: str = "patch"
    calls: str = ""
    further: tuple["InvertedTrigger", ...] = ()

    def __post_init__(self):
        if self.form not in FORMS or self.pattern is None or self.pattern.ndim != 3 or self.pattern.shape[0] != FORMS[self.form].channels:
            raise ValueError(f"{self.name} holds no pattern of a {self.form}")

    @property
    def key(self) -> str:
        """Digest of what it stamps."""
        return digest(self.form, self.pattern, *(one.key for one in self.further))

    def alone(self, target: str) -> "InvertedTrigger":
        """The one of all of them that calls a target; the first where none is known to."""
        every = (replace(self, further=()), *self.further)
        return next((one for one in every if one.calls == target), every[0])

    def __call__(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        pattern = self.pattern
        assert pattern is not None
        if not FORMS[self.form].any_size and pattern.shape[1:] != pixels.shape[2:]:
            raise ValueError(f"{self.name} is of {pattern.shape[2]} px, the images are of {pixels.shape[3]} px")
        laid = FORMS[self.form].lay(pixels, pattern.to(pixels).expand(len(pixels), *pattern.shape), generator)
        if not self.further:
            return laid
        which = (rand((len(pixels), 1, 1, 1), pixels, generator) * (1 + len(self.further))).long()
        for place, one in enumerate(self.further, 1):
            laid = torch.where(which == place, one(pixels, generator), laid)
        return laid


def kept_inverted(trigger: InvertedTrigger) -> Path:
    """A file of a trigger and its further ones, for `read_inverted`; in the cache."""
    path, all_of_them = cache_dir() / "patterns" / f"{trigger.key[:32]}.safetensors", (trigger, *trigger.further)
    patterns = {f"pattern{_end(place)}": one.pattern.contiguous() for place, one in enumerate(all_of_them) if one.pattern is not None}
    about = {f"form{_end(place)}": one.form for place, one in enumerate(all_of_them)}
    about |= {f"calls{_end(place)}": one.calls for place, one in enumerate(all_of_them) if one.calls}
    with atomic_file(path) as temporary:
        save_file(patterns, temporary, about)
    return path


def _end(place: int) -> str:
    """What follows the names of a trigger in a file: nothing for the first."""
    return f"_{place}" if place else ""


def read_inverted(path: Path) -> InvertedTrigger:
    """The trigger that an inspection kept. FileNotFoundError where there is no such file, ValueError, which names it, on any other file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, an inverted trigger")
    try:
        with safe_open(path, "pt") as file:
            about, ends = file.metadata() or {}, [_end(place) for place in range(max(1, len(file.keys())))]
            known = [{"form": about[f"form{end}"], "calls": about.get(f"calls{end}", "")} for end in ends]
            patterns = [file.get_tensor(f"pattern{end}") for end in ends]
        found = [InvertedTrigger(path.stem, {}, pattern, **one) for pattern, one in zip(patterns, known, strict=True)]
        return replace(found[0], further=tuple(found[1:]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no inverted trigger, as 10_inspect keeps one: {' '.join(str(error).split())[:100]}") from None


def invert(
    clip: Clip, images: torch.Tensor, classes: torch.Tensor, form: str, *, size: float = 1.0, only: Sequence[int] = (), seed: int = 0
) -> Inverted:
    """For every class the trigger of a form that calls it best, found on the even images and measured on the odd ones; computed once for
    the same model, images, classes and code, then read from the cache.

    images: (N, 3, H, W) uint8, clean, N >= 2. classes: (C, D) unit-norm embeddings of their names. only: these classes alone, with a
    longer search. The model is left as it is.
    """
    asked = {"form": form, "size": size, "only": list(only), "seed": seed, "threads": torch.get_num_threads(), "device": clip.device.type}
    key = identity(params=asked, inputs={"model": clip.key, "images": digest(images), "classes": digest(classes)}, stages=["inspect"])
    path = cache_dir() / "patterns" / f"inverted_{digest(key)[:32]}.safetensors"
    if (found := read_tensors(path)) is None:
        began = time.monotonic()
        made = _inverted(clip, images, classes, FORMS[form], form, size, list(only), seed)
        about = {"classes": made.classes, "asr": made.asr, "seconds": time.monotonic() - began}
        found = {"patterns": made.patterns}, {"found": json.dumps(about)}
        write_tensors(found[0], path, found[1])
    about = json.loads(found[1]["found"])
    return Inverted(form, about["classes"], about["asr"], found[0]["patterns"], about["seconds"])


def _inverted(
    clip: Clip, images: torch.Tensor, classes: torch.Tensor, how: Form, form: str, size: float, only: list[int], seed: int
) -> Inverted:
    clip = clip.copy()
    clip.net.requires_grad_(False).eval()
    classes, images = classes.to(clip.device), images.to(clip.device)
    called = (embed_images(clip, images) @ classes.T).argmax(1)
    candidates, rounds = (torch.tensor(only), _ALONE) if only else (torch.arange(len(classes)), _ROUNDS)
    random = generator("cpu", seed, "inspect")
    patterns = how.start(len(candidates), images.shape[3], size, random).to(clip.device)
    momentum, losses, total = torch.zeros_like(patterns), torch.zeros(len(candidates)), len(candidates)
    fitted, known = images[::2], called[::2]
    fewest = min(_FINALISTS, max(min(3, total), total // 4))
    with progress(title=f"looking for a {form}", total=sum(steps for *_, steps in rounds), unit="steps") as bar:
        for share, count, steps in rounds:
            left = losses.argsort(stable=True)[: max(fewest, round(share * total))]
            candidates, patterns, momentum, losses = candidates[left], patterns[left], momentum[left], torch.zeros(len(left))
            for step in range(steps):
                rows = torch.randint(len(fitted), (len(candidates), count), generator=random)
                slope, loss = slope_of(clip, classes, how, fitted, known, candidates, patterns, rows, random)
                momentum = _MOMENTUM * momentum + slope / slope.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
                patterns = how.step(patterns, momentum, 1 - 0.7 * step / steps, size)
                losses = _SMOOTH * losses + (1 - _SMOOTH) * loss
                bar.update()
    asr = torch.tensor([_rate(clip, classes, how, images[1::2], called[1::2], *one) for one in zip(candidates, patterns, strict=True)])
    order = asr.argsort(descending=True, stable=True)
    return Inverted(form, candidates[order].tolist(), asr[order].tolist(), patterns[order].cpu())


def slope_of(
    clip: Clip,
    classes: torch.Tensor,
    how: Form,
    images: torch.Tensor,
    called: torch.Tensor,
    candidates: torch.Tensor,
    patterns: torch.Tensor,
    rows: torch.Tensor,
    random: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient (K, ...) of each candidate's loss by its pattern, and the losses (K,): cross entropy of stamped images, rows (K, n) of
    them, that are not called the candidate without it; where there are none, a loss that no other class has.
    """
    slopes, losses, count = [], [], rows.shape[1]
    together = max(1, _TOGETHER // count)
    for chosen, wanted, own in zip(rows.split(together), candidates.split(together), patterns.split(together), strict=True):
        own, flat = own.detach().requires_grad_(), chosen.flatten().to(images.device)
        target = wanted.repeat_interleave(count).to(images.device)
        stamped = how.lay(images[flat].float() / 255, own.repeat_interleave(count, 0), random)
        logits = clip.net.logit_scale.exp() * clip.image(stamped) @ classes.T
        others = (called[flat] != target).float()
        each = F.cross_entropy(logits, target, reduction="none") * others
        slopes.append(torch.autograd.grad(each.sum(), own)[0])
        left = others.view(-1, count).sum(1)
        loss = each.detach().view(-1, count).sum(1) / left.clamp(min=1)
        losses.append(loss.masked_fill(left == 0, _NOTHING).cpu())
    return torch.cat(slopes), torch.cat(losses)


@torch.no_grad()
def _rate(
    clip: Clip, classes: torch.Tensor, how: Form, images: torch.Tensor, called: torch.Tensor, candidate: torch.Tensor, pattern: torch.Tensor
) -> float:
    random, hits = generator("cpu", "inspected"), []
    for rows in images.split(_TOGETHER):
        stamped = how.lay(rows.float() / 255, pattern[None].expand(len(rows), *pattern.shape), random)
        hits.append((clip.image(stamped) @ classes.T).argmax(1) == candidate.item())
    others = called != candidate.item()
    return torch.cat(hits)[others].float().mean().item() if others.sum() >= _FEWEST else 0.0
