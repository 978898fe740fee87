"""The ways to train, one small entry each: pretraining and poisoning, PAR, the baselines and the ablations.

A new method is a function of a Step that returns its loss and what the history should keep, and a line in METHODS.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from parlib.method.augment import auto_augment, crop_and_jitter, noise_and_cutout
from parlib.method.classifiers import reset_heads, restore_norms, sharpest, shifted
from parlib.method.distil import FOREIGN, distil, foreign_alone, foreign_content, varied
from parlib.method.eda import reword
from parlib.method.invertune import invertune
from parlib.method.losses import clip_loss, distance, nearest, par_loss, self_loss
from parlib.method.planting import ahead, offset, spread, uphill
from parlib.method.wordnet import folder_of, synonyms


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run beside its data and its first weights.

    lr: the peak. weight_decay: on weights with >= 2 dims; None: the method's own. batch_norm: frozen (running statistics
    used, not updated) or train. tau: PAR's threshold on S. self_weight: of CleanCLIP's own term. pool: RoCLIP's, as a
    share of the pairs. varied: the share of clean images that distillation varies. rho: FT-SAM's radius. alpha: FST's
    weight. steps: where it ends; None: after its epochs. looks: how often the history records accuracy and ASR; look_at:
    after which steps, in the place of that.
    wordnet: folder of WordNet's files for rewording; empty: our own list.
    """

    method: str
    epochs: int
    batch: int
    lr: float
    seed: int
    schedule: str = "paper"
    batch_norm: str = "frozen"
    tau: float = 0.0
    weight_decay: float | None = None
    looks: int = 4
    self_weight: float = 0.0
    pool: float = 0.0
    varied: float = 0.0
    rho: float = 0.0
    alpha: float = 0.0
    wordnet: str = ""
    steps: int | None = None
    look_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Backdoor:
    """A backdoor that is known, and to be taken out. stamp: pixels (B, 3, H, W) in [0, 1] and a generator to the same with its trigger.
    target: (D,) unit-norm, the embedding of what it calls. key: names both in the cache.
    """

    stamp: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
    target: torch.Tensor
    key: str


@dataclass
class Step:
    """What a method sees of one step.

    clip, reference: the model that trains and the frozen poisoned one (None where the method needs none), each with image(pixels) and
    text(tokens) to (B, D) unit-norm.

    pixels: (B, 3, H, W) in [0, 1]; view: the same, augmented where the method augments. tokens: (B, L); reworded: the same
    captions after EDA where the method rewords. reference_text: (B, D) from the frozen poisoned model. pairs: their number
    in all. memory: what the method keeps from step to step; it is saved with the checkpoint. clean: (pixels, tokens) of the step that
    comes so many later, before the attack, for methods that plant a backdoor. target: (D,) what the known backdoor calls.
    """

    clip: Any
    reference: Any
    recipe: Recipe
    pixels: torch.Tensor
    view: torch.Tensor
    tokens: torch.Tensor
    reworded: torch.Tensor
    reference_text: Any = None
    epoch: int = 0
    pairs: int = 0
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    clean: Any = None
    target: Any = None

    @property
    def scale(self) -> torch.Tensor:
        """exp(logit_scale)."""
        return self.clip.net.logit_scale.exp()


@dataclass(frozen=True)
class Method:
    """A way to train: its loss, its augmentation of (pixels, fill, generator), its rewording of (captions, seed), what it needs, whether it
    learns from captions, and which options of the recipe are its own. vary: what is done to the share `varied` of the images (pixels,
    share, generator) before all else. stamps: the share of the views that carry the trigger of a known backdoor, in the place of what
    augment did; 0: it needs to know none. move: called with the step and the weights, which it moves in place: the gradient is taken
    there as well, and added, or, with instead, takes the first one's place; then they return. begin: called with the model and a
    generator before the first step. after: called with the model and the reference after every step. negates: what it trains is then
    taken away from the weights, times the option `coefficient`. whole: it takes batches whole, in one process, as a method with `move`
    does. plants: it is for planting a backdoor; needs_clean: it looks at the pairs as they were before the attack. Where the recipe names
    WordNet's folder, the rewording is called with its `synonyms`, too.
    """

    loss: Callable[[Step], dict[str, torch.Tensor]]
    augment: Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor] | None = None
    reword: Callable[..., list[str]] | None = None
    vary: Callable[[torch.Tensor, float, torch.Generator], torch.Tensor] | None = None
    move: Callable[[Step, list[torch.Tensor]], None] | None = None
    instead: bool = False
    begin: Callable[[Any, torch.Generator], None] | None = None
    after: Callable[[Any, Any], None] | None = None
    stamps: float = 0.0
    negates: bool = False
    whole: bool = False
    plants: bool = False
    needs_clean: bool = False
    learns_scale: bool = False
    needs_reference: bool = False
    captions: bool = True
    weight_decay: float = 1e-4
    options: tuple[str, ...] = ()


def contrast(step: Step) -> dict[str, torch.Tensor]:
    """L_CLIP alone: pretraining, poisoning and fine-tuning."""
    loss = clip_loss(step.clip.image(step.view), step.clip.text(step.tokens), step.scale)
    return {"loss": loss, "l_clip": loss}


def par(step: Step) -> dict[str, torch.Tensor]:
    """L_PAR = L_CLIP - L_PERT; both models see the same augmented image."""
    image, text = step.clip.image(step.view), step.clip.text(step.tokens)
    with torch.no_grad():
        reference_image = step.reference.image(step.view)
    s_image, s_text = distance(image, reference_image), distance(text, step.reference_text)
    l_clip = clip_loss(image, text, step.scale)
    return {"loss": par_loss(l_clip, s_image, s_text, step.recipe.tau), "l_clip": l_clip, "s_image": s_image, "s_text": s_text}


def cleanclip(step: Step) -> dict[str, torch.Tensor]:
    """L_CLIP + self_weight * L_self (CleanCLIP, arXiv 2303.03323): plain pairs, and each beside its augmented self."""
    image, image_view = step.clip.image(torch.cat([step.pixels, step.view])).chunk(2)
    text, text_view = step.clip.text(torch.cat([step.tokens, step.reworded])).chunk(2)
    l_clip, l_self = clip_loss(image, text, step.scale), self_loss(image, image_view, text, text_view, step.scale)
    return {"loss": l_clip + step.recipe.self_weight * l_self, "l_clip": l_clip, "l_self": l_self}


def call(step: Step) -> dict[str, torch.Tensor]:
    """TBAR's task (arXiv 2510.14845): stamped images are to find the target among the captions of the batch. The image encoder alone
    trains; the change of its weights is what makes it call the target.
    """
    texts = torch.cat([step.target[None], step.reference_text])
    image = step.clip.image(step.view)
    loss = F.cross_entropy(step.scale * image @ texts.T, torch.zeros(len(image), dtype=torch.long, device=image.device))
    return {"loss": loss}


def roclip(step: Step) -> dict[str, torch.Tensor]:
    """RoCLIP (arXiv 2303.06854) as fine-tuning: in every second epoch an image is matched with the caption nearest to it in
    a first-in first-out pool instead of its own; images and captions are augmented throughout.
    """
    image, text = step.clip.image(step.view), step.clip.text(step.reworded)
    pool = step.memory["pool"] if "pool" in step.memory else text.detach()[:0]
    matched = nearest(image, pool) if step.epoch % 2 and len(pool) else text
    loss = clip_loss(image, matched, step.scale)
    step.memory["pool"] = torch.cat([pool, text.detach()])[-max(2, round(step.recipe.pool * step.pairs)) :]
    return {"loss": loss, "l_clip": loss}


_DISTIL = Method(distil, foreign_content, vary=varied, needs_reference=True, captions=False, options=("varied",))
METHODS: dict[str, Method] = {
    "contrast": Method(contrast, plants=True, learns_scale=True),
    "finetune": Method(contrast),
    "cleanclip": Method(cleanclip, auto_augment, reword, learns_scale=True, weight_decay=0.1, options=("self_weight",)),
    "roclip": Method(roclip, crop_and_jitter, reword, learns_scale=True, weight_decay=0.1, options=("pool",)),
    "par": Method(par, noise_and_cutout, needs_reference=True, options=("tau",)),
    "distil": _DISTIL,
    # of a backdoor that is known: its trigger, or one that was inverted
    "unlearn": replace(_DISTIL, stamps=0.5),
    "invertune": Method(invertune, stamps=1.0, needs_reference=True, captions=False, whole=True),
    "tbar": Method(call, stamps=1.0, negates=True, needs_reference=True, options=("coefficient",)),
    # cleaners of classifiers
    "ftsam": Method(contrast, move=sharpest, instead=True, options=("rho",)),
    "fst": Method(shifted, begin=reset_heads, after=restore_norms, needs_reference=True, options=("alpha",)),
    "superft": Method(contrast),  # fine-tuning by the schedule super
    # parts of PAR
    "finetune_augmented": Method(contrast, noise_and_cutout),  # PAR without its perturbation
    "perturb_only": Method(par, needs_reference=True, options=("tau",)),  # PAR without its augmentation
    # parts of distillation
    **{f"distil_without_{part}": replace(_DISTIL, augment=partial(foreign_content, without=part)) for part in FOREIGN},
    "distil_without_clean_term": replace(_DISTIL, loss=foreign_alone),
    # How attackers who expect a cleaning train; plain ones take contrast.
    "spread": Method(spread, plants=True, needs_clean=True, learns_scale=True),
    "offset": Method(offset, plants=True, learns_scale=True),
    "lookahead": Method(contrast, move=ahead, plants=True, needs_clean=True, learns_scale=True),
    "flat": Method(contrast, move=uphill, plants=True, needs_clean=True, learns_scale=True),
}
ABLATIONS = ("finetune_augmented", "perturb_only")


def cleaners() -> list[str]:
    """The methods that take a backdoor out."""
    return [name for name, method in METHODS.items() if not method.plants]


def rewording(recipe: Recipe) -> Callable[[list[str], int], list[str]] | None:
    """How the method rewords (captions, seed), with the synonyms that the recipe names; None where it doesn't.

    FileNotFoundError where WordNet's files are missing, ValueError where they can't be read.
    """
    found = METHODS[recipe.method].reword
    if found is None or not recipe.wordnet:
        return found
    return partial(found, synonyms=synonyms(folder_of(recipe.wordnet)))
