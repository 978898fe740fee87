"""Triggers whose pattern is optimised against models, once: BadCLIP's patch, and one of an attacker who expects PAR."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
import torch.nn.functional as F

from parlib.attack.poison import Attack, poison
from parlib.attack.triggers import LEARNED, Trigger, badclip
from parlib.cache import cache_dir, digest, read_tensors, write_tensors
from parlib.data.feeds import generator
from parlib.data.pairs import Pairs, class_index
from parlib.method.methods import Recipe
from parlib.model.clip import Clip, embed_images, embed_texts
from parlib.progress import progress
from parlib.records.identity import identity
from parlib.train.cached import train
from parlib.train.compute import Compute

# (images, epochs, lr) by image size: at 224 px the released code's; a patch of 6 px on a small model needs less.
_BUDGET = {64: (4000, 10, 1e-2), 224: (10_000, 50, 1e-3)}
_BATCH = 64
_TRIPLET = 500.0  # weight of the triplet term, with margin 1: the released code's


@dataclass(frozen=True)
class Learned:
    """A learned pattern (3, patch, patch) in [0, 1], its file, and the loss of every step on the way."""

    pattern: torch.Tensor
    path: Path
    history: dict[str, list[float]]


def badclip_loss(
    image: torch.Tensor, target: torch.Tensor, own: torch.Tensor, real: torch.Tensor, other: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """BadCLIP's two terms, each () : InfoNCE of triggered images with captions of the target against the batch's own captions, and the
    triplet that pulls them to real images of the target and away from clean ones, max(0, d(real) - d(other) + 1).

    image: (B, D) of the triggered images; target, own: (B, D) captions; real, other: (B, D) images; all unit-norm.
    """
    logits = scale * torch.cat([(image * target).sum(1, keepdim=True), image @ own.T], dim=1)
    pull = F.cross_entropy(logits, torch.zeros(len(image), dtype=torch.long, device=image.device))
    return pull, F.triplet_margin_loss(image, real, other, margin=1.0)


def learn(clip: Clip, pairs: Pairs, trigger: Trigger, target: str, seed: int = 0) -> Learned | None:
    """The pattern of a trigger in LEARNED, optimised against a model that is left as it is; None for any other trigger. pairs: what the
    attacker has; ValueError where none shows the target.
    """
    if trigger.name not in LEARNED:
        return None
    index, size = class_index(target, pairs.names), int(trigger.options["size"])
    if not _shown(pairs, index).any():
        raise ValueError(f"no pair shows {target!r}: {trigger.name} needs real images of its target")
    asked = {"trigger": trigger.name, "size": size, "target": index, "seed": seed, "threads": torch.get_num_threads()}
    stages = ["learned", *(["poison", "trigger/badclip", "loop", "method/contrast", "method/par"] if trigger.name == "resistant" else [])]
    if len(pairs.names) == 1:  # external pairs, which show what their captions name
        asked |= {"target": target}
    inputs = {"model": clip.key, "pairs": digest(pairs.pixels, pairs.captions)}
    path = cache_dir() / "patterns" / f"{digest(identity(params=asked, inputs=inputs, stages=stages))[:32]}.safetensors"
    if (found := read_tensors(path)) is None:
        pattern, history = _optimise([clip], pairs, index, size=size, seed=seed)
        if trigger.name == "resistant":
            cleaned = _cleaned(clip, pairs, index, pattern, seed)
            pattern, history = _optimise([clip, cleaned], pairs, index, size=size, seed=seed)
        found = {"pattern": pattern}, {"history": json.dumps(history)}
        write_tensors(found[0], path, found[1])
    tensors, about = found
    return Learned(tensors["pattern"], path, json.loads(about["history"]))


def budget(side: int) -> tuple[int, int, float]:
    """Images, epochs and lr of `learn`, by the images' side in px."""
    return _BUDGET[64 if side <= 64 else 224]


def _shown(pairs: Pairs, target: int) -> torch.Tensor:
    """(N,) bool: the target is the main object; without labels, it is in the caption."""
    return torch.where(pairs.labels < 0, pairs.shows(target), pairs.labels == target)


def _cleaned(clip: Clip, pairs: Pairs, target: int, pattern: torch.Tensor, seed: int) -> Clip:
    """What the attacker expects of the defender: BadCLIP's patch planted, and PAR's cleaning of that, on the attacker's own pairs."""
    trigger = Trigger("badclip", {"size": pattern.shape[1]}, pattern)
    stamped, _ = poison(pairs, Attack(trigger, pairs.names[target], rate=0.08, seed=seed))
    batch = min(128, len(pairs))
    planting = Recipe("contrast", 4, batch, 3e-3, seed, schedule="warmup_cosine", batch_norm="train", looks=0)
    compute = Compute(device="cuda" if clip.device.type == "cuda" else "cpu")
    poisoned = train(clip, stamped, planting, compute=compute, title="poisoning, as the attacker expects it").clip
    cleaning = Recipe("par", 2, batch, 4e-3, seed, schedule="cosine", batch_norm="train", tau=2.15, looks=0)
    title = "cleaning, as the attacker expects it"
    return train(poisoned, pairs, cleaning, reference=poisoned, compute=compute, title=title).clip


def _frozen(clip: Clip, pairs: Pairs, others: torch.Tensor, shown: torch.Tensor) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`badclip_loss` of stamped images under a frozen model, of whose clean images and captions the embeddings are computed once."""
    clip = clip.copy()
    clip.net.requires_grad_(False)
    own, named = (embed_texts(clip, clip.tokenizer([pairs.captions[row] for row in rows.tolist()])) for rows in (others, shown))
    clean, real = embed_images(clip, pairs.pixels[others]), embed_images(clip, pairs.pixels[shown])

    def terms(stamped: torch.Tensor, rows: torch.Tensor, negatives: torch.Tensor, chosen: torch.Tensor):
        image, scale = clip.image(stamped.to(clip.device)), clip.net.logit_scale.exp()
        return badclip_loss(image, named[chosen[0]], own[rows], real[chosen[1]], clean[negatives], scale)

    return terms


def _optimise(clips: list[Clip], pairs: Pairs, target: int, *, size: int, seed: int) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """Adam on the patch alone; the loss is the mean over the models."""
    images, epochs, lr = budget(pairs.pixels.shape[3])
    others, shown = (~pairs.shows(target)).nonzero()[:images, 0], _shown(pairs, target).nonzero()[:, 0]
    models = [_frozen(clip, pairs, others, shown) for clip in clips]
    random, batch = generator("cpu", seed, "learned"), min(_BATCH, len(others))
    pattern = torch.rand(3, size, size, generator=random).requires_grad_()
    optimizer, history = torch.optim.Adam([pattern], lr=lr), {"loss": [], "l_text": [], "l_image": []}
    steps = len(others) // batch * epochs
    for _ in progress(range(steps), "learning the patch", unit="steps"):
        rows, negatives = torch.randperm(len(others), generator=random)[:batch], torch.randperm(len(others), generator=random)[:batch]
        chosen = torch.randint(len(shown), (2, batch), generator=random)
        stamped = badclip(pairs.pixels[others[rows]].float() / 255, random, size=size, pattern=pattern)
        terms = [model(stamped, rows, negatives, chosen) for model in models]
        l_text, l_image = (reduce(torch.add, term) / len(terms) for term in zip(*terms, strict=True))
        loss = l_text + _TRIPLET * l_image
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            pattern.clamp_(0, 1)
        for name, value in zip(history, (loss, l_text, l_image), strict=True):
            history[name].append(value.item())
    return pattern.detach(), history
