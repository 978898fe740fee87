"""Golden outputs: what each stage computes from small fixed inputs, and whether that is what its version is known to compute.

They guard parlib/stages.py. Stages of whole numbers are held by sha256, those of floats by value, within a relative 1e-4, so that
another CPU passes. What trains is computed with twice the digits: in six steps Adam makes of a last bit, which CPUs round each in its own
way, a thousandth and more. All of it runs on one thread and takes about a minute.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from parlib.attack.forms import FORMS
from parlib.attack.inversion import Inverted, slope_of
from parlib.attack.learned import badclip_loss
from parlib.attack.poison import Attack, attacked, poison
from parlib.attack.triggers import LEARNED, PATTERNS, Trigger
from parlib.cache import ROOT, atomic_file, digest
from parlib.data.feeds import generator
from parlib.data.painter import painter
from parlib.data.pairs import TEMPLATES, Pairs
from parlib.data.scenes import class_names, covered, draw_scenes, load_scenes, sprites, write_captions
from parlib.data.synthetic import draw_synthetic
from parlib.experiments.presets import trigger_options
from parlib.external.files import LAYOUTS
from parlib.external.images import decode
from parlib.measure.distance import turned
from parlib.measure.metrics import measure, retrieval, zero_shot
from parlib.method.methods import METHODS, Backdoor, Recipe
from parlib.method.schedule import SCHEDULES, learning_rate
from parlib.model.clip import create
from parlib.model.preparation import Preparation
from parlib.model.weights import between, negated, refreshed
from parlib.stages import STAGES
from parlib.train.captioner import Captioner
from parlib.train.captioner import _fit as fit_words
from parlib.train.head import fit_head, fit_probe
from parlib.train.loop import fit

FOLDER = ROOT / "tests" / "golden"
_SCENES, _CLASSES, _STEPS = 48, 12, 6


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _twice_the_digits() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@lru_cache(maxsize=1)
def _pairs() -> Pairs:
    names = class_names(_CLASSES)
    drawn = draw_scenes(_SCENES, names, seed=7)
    return Pairs(drawn["pixels"], write_captions(drawn, names), drawn["labels"], drawn["second"], names)


def _scenes() -> dict[str, Any]:
    pairs = _pairs()
    return {"pixels": digest(pairs.pixels), "captions": digest(pairs.captions), "labels": digest(pairs.labels, pairs.second)}


def _coverage() -> dict[str, Any]:
    names = class_names()
    return {f"{share:g}": digest([names[i] for i in covered(names, share, "banana")]) for share in (0.5, 0.25)}


def _trigger(name: str) -> dict[str, Any]:
    found, small = {}, _pairs().pixels[:24]
    for side in (64, 224):
        options = trigger_options(name, side)
        size = int(options.get("size", 0))
        pattern = torch.rand(3, size, size, generator=generator("cpu", "golden")) if name in LEARNED else None
        pixels = small if side == 64 else F.interpolate(small.float(), size=side, mode="nearest").to(torch.uint8)
        found[f"{side} px"] = digest(Trigger(name, options, pattern).stamp(pixels, generator("cpu", "golden", name)))
    return found


def _poison() -> dict[str, Any]:
    pairs, found = _pairs(), {}
    for trigger, kind, rate in (
        ("badnet_stripes", "dirty_label", 0.25),
        ("badclip", "dirty_label", 0.1),
        ("blended", "label_consistent", 0.5),
    ):
        options = trigger_options(trigger, 64)
        pattern = torch.full((3, 6, 6), 0.5) if trigger in PATTERNS else None
        made, rows = poison(pairs, Attack(Trigger(trigger, options, pattern), "banana", kind, rate, seed=3))
        found[f"{trigger}, {kind}"] = digest(made.pixels, made.captions, rows)
    return found


def _synthetic(name: str) -> dict[str, Any]:
    if name != "painted":
        labels, names, random = torch.arange(24) % _CLASSES, class_names(_CLASSES), generator("cpu", "synthetic", name, 0)
        pixels, captions = draw_synthetic(name, labels, names, sprites(names), random)
        return {"pixels": digest(pixels), "captions": digest(captions)}
    weights = torch.cat([value.flatten() for value in painter(_pairs(), epochs=2).state_dict().values()])
    return {"norm": weights.norm().item(), "mean": weights.abs().mean().item()}


def _learned() -> dict[str, Any]:
    random = generator("cpu", "golden")
    image, target, own, real, other = (F.normalize(torch.randn(8, 16, generator=random), dim=1) for _ in range(5))
    pull, triplet = badclip_loss(image, target, own, real, other, torch.tensor(14.3))
    return {"pull": pull.item(), "triplet": triplet.item()}


def _loop() -> dict[str, Any]:
    """The schedules but super, which superft takes, and two steps with BatchNorm frozen."""
    rates = {name: [learning_rate(step, 40, 1e-3, name) for step in (0, 1, 19, 20, 39)] for name in SCHEDULES[:3]}
    return rates | {"frozen": _steps("finetune", batch_norm="frozen")}


def _steps(method: str, batch_norm: str = "train") -> dict[str, Any]:
    """Six steps of a method from random weights: the terms of its loss, and how far its weights moved."""
    pairs, start = _pairs(), create("small_resnet", seed=0)
    clean = pairs.feed(start)
    trigger = Trigger("badnet", trigger_options("badnet"))
    backdoor = Backdoor(trigger, F.normalize(torch.ones(128), dim=0), trigger.key)
    if METHODS[method].needs_clean:
        pairs, _ = poison(pairs, Attack(trigger, "banana", rate=0.25))
    options: dict[str, Any] = {"tau": 2.15} if "tau" in METHODS[method].options else {"self_weight": 0.3, "pool": 0.5}
    options |= {"ftsam": {"rho": 0.5}, "fst": {"alpha": 0.01}, "varied": {"varied": 0.5}}.get(
        "varied" if "varied" in METHODS[method].options else method, {}
    )
    recipe = Recipe(
        method,
        2,
        _SCENES // 3,
        1e-3,
        seed=1,
        schedule="super" if method == "superft" else "cosine",
        batch_norm=batch_norm,
        looks=0,
        **options,
    )
    trained = start.copy()
    given = {"reference": start, "clean": clean, "backdoor": backdoor, "title": method}
    history, _ = fit(trained, pairs.feed(trained, METHODS[method].reword, recipe.seed), recipe, **given)
    before, after = (clip.net.state_dict() for clip in (start, trained))
    moved = torch.stack([(after[name].float() - before[name].float()).norm() for name in before]).norm()
    return {name: values[:_STEPS] for name, values in sorted(history.items())} | {"weights moved": moved.item()}


def _metrics() -> dict[str, Any]:
    pairs, random = _pairs(), generator("cpu", "golden", "metrics")
    trigger = Trigger("blended_stripes", trigger_options("blended_stripes", 64))
    scenes = attacked(pairs, trigger, "banana")
    classes, text = (F.normalize(torch.randn(n, 16, generator=random), dim=1) for n in (_CLASSES, _SCENES))
    near = classes[pairs.labels] + 0.35 * torch.randn(_SCENES, 16, generator=random)
    image, triggered = F.normalize(near, dim=1), F.normalize(near + 0.5 * classes[scenes.target], dim=1)
    found = {f"zero-shot {name}": value for name, value in zero_shot(image, triggered, classes, scenes).items()}
    found |= {f"retrieval {name}": value for name, value in retrieval(image, triggered, image + 0.3 * text, scenes).items()}
    return found | {f"a model's {name}": value for name, value in measure(create("small_resnet", seed=0), scenes).items()}


def _rebound() -> dict[str, Any]:
    """New statistics of BatchNorm, half-way between two models, and two steps of a head."""
    pairs, start = _pairs(), create("small_resnet", seed=0)
    fresh = refreshed(start, pairs.pixels)
    halves = between(start, create("small_resnet", seed=1), 0.5)
    classes = F.normalize(torch.randn(_CLASSES, 128, generator=generator("cpu", "golden", "head")), dim=1)
    tuned, options = start.copy(), {"lr": 1e-3, "batch": 16, "steps": 2, "seed": 1, "look_at": (), "look": lambda *_: None}
    head = fit_head(tuned, pairs, classes, **options)
    found = {"new mean": fresh.net.visual.bn1.running_mean, "new variance": fresh.net.visual.bn1.running_var}
    found |= {"half-way": halves.net.visual.conv1.weight, "head": head - classes}
    found["encoder"] = tuned.net.visual.conv1.weight - start.net.visual.conv1.weight
    return {name: value.norm().item() for name, value in found.items()}


def _adaptive() -> dict[str, Any]:
    """S of two models, and what of it is a rotation, which takes pairs enough to fit one; and two triggers that share the poisoned rows."""
    trigger = [Trigger(name, trigger_options(name)) for name in ("badnet", "blended_stripes")]
    shared, _ = poison(_pairs(), Attack(trigger[0], "banana", rate=0.25, others=((trigger[1], "banana"),)))
    found = turned(create("small_resnet", seed=0), create("small_resnet", seed=1), load_scenes("train", 600))
    return found | {"shared": digest(shared.pixels)}


def _downstream() -> dict[str, Any]:
    """A probe on embeddings near their class, and what it calls others."""
    random = generator("cpu", "golden", "downstream")
    classes, labels = torch.randn(_CLASSES, 16, generator=random), torch.arange(_SCENES) % _CLASSES
    near, other = (classes[labels] + share * torch.randn(_SCENES, 16, generator=random) for share in (1.0, 1.5))
    return {"called": fit_probe(near, labels)(other).tolist()}


def _captioner() -> dict[str, Any]:
    """Three steps of a captioner, and what it writes then."""
    random = generator("cpu", "golden", "captioner")
    images, words = torch.randn(_SCENES, 16, generator=random), [f"a {name}, drawn on paper" for name in class_names(_SCENES)]
    found = Captioner(sorted({word for one in words for word in one.split()}), 16, 8)
    with torch.no_grad():
        for name, value in found.state_dict().items():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator("cpu", "golden", name)))
    tokens = torch.randint(1, 9, (_SCENES, 8), generator=random)
    tokens[::2, 5:] = 0  # these captions are shorter
    fit_words(found, images, tokens, 3, 0)
    return {name: value.norm().item() for name, value in found.state_dict().items()}


def _inspect() -> dict[str, Any]:
    """One step of each form of trigger, of three classes at once: losses, slopes, and where the step ends."""
    clip, pixels, found = create("small_resnet", seed=0), _pairs().pixels, {}
    clip.net.requires_grad_(False)
    classes = F.normalize(torch.randn(_CLASSES, 128, generator=generator("cpu", "golden", "head")), dim=1)
    chosen, rows, called = torch.arange(3), torch.arange(12).view(3, 4), torch.full((len(pixels),), -1)
    for form, how in FORMS.items():
        random = generator("cpu", "golden", form)
        patterns = how.start(3, 64, 0.5, random)
        slope, loss = slope_of(clip, classes, how, pixels, called, chosen, patterns, rows, random)
        stepped = how.step(patterns, slope, 1.0, 0.5)
        found |= {f"{form}, loss": loss.tolist(), f"{form}, slope": slope.norm().item(), f"{form}, step": stepped.norm().item()}
    return found


def _verdict() -> dict[str, Any]:
    """How far each of twelve finalists leads."""
    asr = [(1 - place / 12) ** 2 for place in range(12)]
    return {"leads": Inverted("patch", list(range(12)), asr, torch.zeros(12, 3, 8, 8)).leads}


def _finish() -> dict[str, Any]:
    """What is made of two models' weights."""
    one, other = create("small_resnet", seed=0), create("small_resnet", seed=1)
    made = {"negated": negated(one, other, 0.5), "between": between(one, other, 0.25), "refreshed": refreshed(one, _pairs().pixels)}
    return {
        name: torch.cat([value.float().flatten() for value in clip.net.state_dict().values()]).norm().item() for name, clip in made.items()
    }


def _external() -> dict[str, Any]:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(_pairs().pixels[0].permute(1, 2, 0).numpy()).resize((90, 60), Image.Resampling.NEAREST).save(file, "PNG")
    return {"decoded": digest(decode(file.getvalue(), Preparation(64))), "layouts": sorted(LAYOUTS), "templates": len(TEMPLATES)}


_ONE: dict[str, Callable[[], dict[str, Any]]] = {
    "scenes": _scenes,
    "coverage": _coverage,
    "poison": _poison,
    "learned": _learned,
    "loop": _loop,
    "metrics": _metrics,
    "rebound": _rebound,
    "adaptive": _adaptive,
    "downstream": _downstream,
    "captioner": _captioner,
    "inspect": _inspect,
    "verdict": _verdict,
    "finish": _finish,
    "external": _external,
}
_TRAINED = ("loop", "rebound", "inspect")  # these, and each method
_FAMILIES: dict[str, Callable[[str], dict[str, Any]]] = {"trigger": _trigger, "method": _steps, "synthetic": _synthetic}


def compute(stage: str) -> dict[str, Any]:
    """What a stage computes now from its fixed inputs. KeyError on a stage that isn't known."""
    family, _, name = stage.partition("/")
    with _one_thread(), _twice_the_digits() if stage in _TRAINED or family == "method" else nullcontext():
        return _FAMILIES[family](name) if name else _ONE[stage]()


def golden_path(stage: str) -> Path:
    """Where the golden output of a stage's version is kept."""
    return FOLDER / f"{stage}@{STAGES[stage]}.json"


def compare(stage: str) -> str:
    """What is wrong with a stage, in a sentence; empty where it computes what its version is known to compute."""
    path = golden_path(stage)
    if not path.exists():
        return f"{stage} has no golden output of version {STAGES[stage]}; write it with: pytest tests/test_golden.py --write-golden"
    if wrong := _unlike(json.loads(path.read_text()), json.loads(json.dumps(compute(stage)))):
        return f"{stage} computes something else than version {STAGES[stage]} ({wrong}). Meant? raise its version. Not meant? mend it."
    return ""


def write(stage: str) -> bool:
    """Keep what a stage computes now as its version's golden output, where there is none yet; whether it was written."""
    path = golden_path(stage)
    if path.exists():
        return False
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(compute(stage), indent=1) + "\n")
    return True


def _unlike(known: Any, found: Any, name: str = "") -> str:
    """Where two outputs differ, by name; floats within a relative 1e-4."""
    if isinstance(known, dict) and isinstance(found, dict):
        if set(known) != set(found):
            return f"{name or 'it'} has other parts"
        return next((wrong for key in known if (wrong := _unlike(known[key], found[key], f"{name}.{key}".strip(".")))), "")
    if isinstance(known, list) and isinstance(found, list):
        if len(known) != len(found):
            return f"{name} has {len(found)} values, not {len(known)}"
        pairs = enumerate(zip(known, found, strict=True))
        return next((wrong for i, (one, other) in pairs if (wrong := _unlike(one, other, f"{name}[{i}]"))), "")
    if isinstance(known, float) and isinstance(found, float):
        return "" if abs(known - found) <= 1e-4 * max(abs(known), abs(found)) + 1e-9 else f"{name}: {found:.6g}, not {known:.6g}"
    return "" if known == found else f"{name}: {str(found)[:20]}, not {str(known)[:20]}"
