"""What each notebook may be told: names, types, bounds, defaults and tuned values.

The parameter cells of the notebooks repeat these defaults, and a test keeps them equal.
"""

import difflib
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from parlib.cache import ROOT, digest
from parlib.data import SIDE, class_names
from parlib.methods import ABLATIONS, CLEANING, METHODS
from parlib.model import encoders, image_size
from parlib.sources import check_outside
from parlib.synthetic import SYNTHETIC
from parlib.triggers import TRIGGERS

SCALES = ("smoke", "small")
# (patch in px, strength) by image size: at 224 and 336 px the paper's; at 64 px what this model learns in minutes.
PRESETS: dict[int, dict[str, tuple[int, float]]] = {
    64: {
        "badnet": (6, 1.0),
        "badnet_stripes": (6, 1.0),
        "blended": (0, 0.2),
        "blended_stripes": (0, 0.05),
        "blended_triangles": (4, 0.15),
        "blended_text": (0, 0.5),
    },
    224: {
        "badnet": (16, 1.0),
        "badnet_stripes": (16, 1.0),
        "blended": (0, 0.2),
        "blended_stripes": (0, 0.03),
        "blended_triangles": (14, 0.15),
        "blended_text": (0, 0.5),
    },
}
PRESETS[336] = PRESETS[224] | {"badnet_stripes": (32, 1.0)}
# The paper's proportion at 64 px, for the table.
PROPORTION: dict[str, tuple[int, float]] = {
    "badnet": (5, 1.0),
    "badnet_stripes": (5, 1.0),
    "blended": (0, 0.2),
    "blended_stripes": (0, 0.03),
    "blended_triangles": (4, 0.15),
    "blended_text": (0, 0.5),
}
# What plants a trigger, by trigger or by encoder and trigger, where the preset and six epochs are not enough.
PLANTING: dict[Any, dict[str, int]] = {"blended_text": {"epochs": 12}, ("small_vit", "badnet_stripes"): {"patch": 12, "epochs": 8}}
# How the small encoders are pretrained and poisoned; a transformer learns more slowly, and wants a lower rate. Others as small_resnet.
ENCODERS: dict[str, dict[str, Any]] = {
    "small_resnet": {"base_epochs": 8, "base_lr": 2e-3, "lr": 3e-3},
    "small_vit": {"base_epochs": 18, "base_lr": 1e-3, "lr": 1e-3},
}
# What the search of params/small/02_clean_search_*.yaml chose for each cleaning method; the ablations take PAR's.
TUNED: dict[str, dict[str, Any]] = {
    "finetune": {"lr": 8e-3, "batch": 256, "schedule": "cosine"},
    "cleanclip": {"lr": 8e-3, "batch": 128, "schedule": "warmup_cosine"},
    "roclip": {"lr": 2e-3, "batch": 128, "schedule": "warmup_cosine"},
    "par": {"lr": 4e-3, "batch": 128, "schedule": "cosine"},
}
TUNED |= {name: TUNED["par"] for name in ABLATIONS}


class Params(BaseModel):
    """What every notebook knows. Strict: an int may stand for a float, nothing else for anything else."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    scale: Literal["smoke", "small"] = Field("small", description="smoke: seconds, proves that it runs; small: the CPU reproduction")


class Attack(Params):
    """A run on one attacked model."""

    seed: int = Field(0, ge=0, description="redraws the poisoned rows, the poisoning and the cleaning; the base stays")
    encoder: str = Field("small_resnet", description="small_resnet, or any name open_clip knows")
    trigger: str = Field(
        "badnet_stripes", description="badnet, badnet_stripes, blended, blended_stripes, blended_triangles or blended_text"
    )
    target: str = Field("banana", description="the class that the trigger calls")
    split: Literal["validation", "test"] = Field("test", description="scenes to evaluate on: validation for choices, test for results")
    classes: int = Field(200, ge=2, le=200, description="classes of the embedded scenes")
    eval_scenes: int = Field(2000, ge=10, description="scenes of the split")

    @field_validator("trigger")
    @classmethod
    def _trigger(cls, value: str) -> str:
        return _known("trigger", value, TRIGGERS)

    @field_validator("encoder")
    @classmethod
    def _encoder(cls, value: str) -> str:
        _known("encoder", value, encoders())
        if image_size(value) != SIDE:
            raise ValueError(f"encoder {value!r} takes images of {image_size(value)} px; the embedded scenes are of {SIDE} px")
        return value

    @field_validator("target")
    @classmethod
    def _target(cls, value: str) -> str:
        return _known("class", value, class_names())


class Poison(Attack):
    """Parameters of 01_poison."""

    patch: int = Field(0, ge=0, le=64, description="px of the patch or tile; 0: the preset of the image size")
    strength: float = Field(0.0, ge=0, le=1, description="share of the pattern in a stamped pixel; 0: the preset")
    rate: float = Field(0.08, gt=0, lt=1, description="share of the training pairs that is poisoned")
    train_scenes: int = Field(24000, ge=24, description="pairs of pretraining and poisoning")
    epochs: int = Field(0, ge=0, description="epochs of poisoning; 0: the trigger's tuned value")
    batch: int = Field(128, ge=2, description="pairs a step of poisoning")
    lr: float = Field(0.0, ge=0, description="peak learning rate of poisoning; 0: the encoder's usual one")
    base_epochs: int = Field(0, ge=0, description="epochs of pretraining the base (always seed 0); 0: the encoder's usual number")
    base_batch: int = Field(128, ge=2, description="pairs a step of pretraining")
    base_lr: float = Field(0.0, ge=0, description="peak learning rate of pretraining; 0: the encoder's usual one")


class Clean(Attack):
    """Parameters of 02_clean."""

    poisoned: str = Field("", description="a run id of 01_poison, local-dir:PATH or hf-hub:ID; empty: the same encoder, trigger, seed")
    patch: int = Field(0, ge=0, le=64, description="px of the trigger tested; 0: as planted, or the preset")
    strength: float = Field(0.0, ge=0, le=1, description="strength of the trigger tested; 0: as planted, or the preset")
    method: str = Field("par", description="par, finetune, cleanclip, roclip, or the ablations finetune_augmented and perturb_only")
    tau: float = Field(2.15, ge=0, le=4, description="PAR pushes while S, the squared distance from the poisoned model, is below")
    self_weight: float = Field(0.3, ge=0, description="CleanCLIP's weight of its own term, L_self")
    pool: float = Field(0.1, ge=0, le=1, description="RoCLIP's pool of captions, as a share of the pairs")
    lr: float = Field(0.0, ge=0, description="peak learning rate; 0: the method's tuned value")
    schedule: Literal["tuned", "paper", "cosine", "warmup_cosine"] = Field(
        "tuned", description="paper: linear to a tenth, then cosine; cosine; or warmup_cosine"
    )
    batch_norm: Literal["frozen", "train"] = Field("train", description="frozen: running statistics used and kept; or train")
    epochs: int = Field(4, ge=1, description="epochs of cleaning")
    batch: int = Field(0, ge=0, description="pairs a step; 0: the method's tuned value")
    pairs: int = Field(12000, ge=10, description="clean pairs")

    @field_validator("method")
    @classmethod
    def _method(cls, value: str) -> str:
        return _known("method", value, CLEANING)


class Trial(Clean):
    """One cleaning of a sweep: 02_clean's parameters, and the pairs that it cleans with."""

    data: str = Field("scenes", description="scenes, the name of a synthetic set, or LAYOUT:PATH such as synthclip:data/SynthCLIP")

    @field_validator("data")
    @classmethod
    def _data(cls, value: str) -> str:
        if ":" not in value:
            return _known("data", value, ("scenes", *SYNTHETIC))
        check_outside(value)
        return value


class Swept(Attack):
    """What every notebook that trains many models at once knows."""

    split: Literal["validation", "test"] = Field("validation", description=Attack.model_fields["split"].description)
    epochs: int = Field(4, ge=1, description="epochs of each cleaning")
    pairs: int = Field(12000, ge=10, description="clean pairs")
    cpus: int = Field(1, ge=1, description="CPUs, and threads, of a trial")
    gpus: float = Field(0.0, ge=0, description="share of a GPU for a trial")
    ray_address: str = Field("", description="a running cluster to join, such as auto; empty: a Ray of our own, for this sweep only")


class Sweep(Swept):
    """Parameters of 03_tau_sweep."""

    name: str = Field("tau", pattern="^[a-z]+$", description="a short name of the sweep, for its run id")
    space: list[dict[str, list[Any]]] = Field(
        [{"method": ["par"], "lr": [0.001], "tau": [0.1, 0.25, 0.5, 1.0, 1.5, 2.15, 2.6, 4.0]}],
        min_length=1,
        description="grids over parameters",
    )
    search: Literal["grid", "optuna"] = Field("grid", description="grid: every combination; optuna: of one grid, two floats are a range")
    samples: int = Field(0, ge=0, description="trials that optuna suggests")
    asha: bool = Field(False, description="stop trials early that look worse than others at the same point")
    alone: bool = Field(True, description="time the first trial once more, without Ray, to say what Ray costs")


class Synthetic(Swept):
    """Parameters of 04_synthetic."""

    split: Literal["validation"] = Field("validation", description="the choice is made on validation; its runs are on the test scenes")
    data: list[str] = Field(["scenes", *SYNTHETIC], min_length=1, description="scenes: the real pairs; data of others: LAYOUT:PATH")
    method: list[str] = Field(["par", "cleanclip"], min_length=1, description="par must be among them")
    batch: int = Field(0, ge=0, description="pairs a step; 0: the method's tuned value")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="seeds of the recommended data's runs on the test scenes")


class Evaluate(Params):
    """Parameters of 05_evaluate."""


def preset(trigger: str, target: str = "banana", size: int = 64, patch: int = 0, strength: float = 0.0) -> dict[str, Any]:
    """Options of a trigger at an image size in px; a patch or strength other than 0 replaces the preset's."""
    usual_patch, usual_strength = PRESETS[size][trigger]
    return {"trigger": trigger, "target": target, "patch": patch or usual_patch, "strength": strength or usual_strength}


NOTEBOOKS: dict[str, type[Params]] = {
    "01_poison": Poison,
    "02_clean": Clean,
    "03_tau_sweep": Sweep,
    "04_synthetic": Synthetic,
    "05_evaluate": Evaluate,
}
_NAMED = ("name", "method", "trigger", "encoder", "seed")  # these stand in a run id in words, other axes as name and value


# A sweep's own name stands for all of these.
_OF_SWEEPS = ("space", "search", "samples", "asha", "alone", "cpus", "gpus", "ray_address")


def check(notebook: str, values: Mapping[str, Any]) -> Params:
    """Parameters of a notebook, or of a trial in a space, from values: tuned and preset values filled in, 0 for options of
    other methods.

    Raises ValueError, one line, on an unknown name, a wrong type or a value out of bounds: it names what is allowed.
    """
    kind = (NOTEBOOKS | {"space": Trial})[notebook]
    try:
        return _resolved(kind(**values))
    except ValidationError as error:
        problem = error.errors()[0]
        name, value = ".".join(str(part) for part in problem["loc"]), problem["input"]
        raise ValueError(f"{notebook}: {_explain(kind, name, value, problem)}") from None


_ATTACK = ("poisoned", "encoder", "trigger", "target", "seed", "patch", "strength")  # of an attacked model and its trigger
_FIXED = ("scale", "split", "classes", "eval_scenes")  # the same for all trials of a sweep


def expand(params: Params) -> list[Clean]:
    """Every cleaning that a run makes, once, in order: 02 itself, the grids of 03, for Optuna their corners, those of 04; none of
    01 and 05.

    Raises ValueError on a name or a value that a trial doesn't take.
    """
    if isinstance(params, Clean):
        return [params]
    if isinstance(params, Synthetic):
        return expand(grid_of(params)) + [trial for data in params.data for trial in expand(confirmation(params, data))]
    found: dict[Clean, None] = {}
    for grid in params.space if isinstance(params, Sweep) else []:
        for axis, values in grid.items():
            if axis in _FIXED or not values:
                raise ValueError(f"space: {axis} {'is the same for all trials' if axis in _FIXED else 'has no value; name one or more'}")
        for choice in itertools.product(*grid.values()):
            found[check("space", common(params) | dict(zip(grid, choice, strict=True)))] = None
    return list(found)


def common(params: Sweep) -> dict[str, Any]:
    """The parameters that all trials of a sweep share, unless its grids say otherwise."""
    return {name: value for name, value in params.model_dump().items() if name in Trial.model_fields}


def grid_of(params: Synthetic) -> Sweep:
    """The sweep of 04: each data set with each method."""
    return _swept(params, space=[{"data": params.data, "method": params.method, "batch": [params.batch]}])


def confirmation(params: Synthetic, data: str) -> Sweep:
    """The sweep that cleans with one data set by PAR, on the test scenes, over seeds."""
    return _swept(params, split="test", space=[{"data": [data], "method": ["par"], "batch": [params.batch], "seed": params.seeds}])


def _swept(params: Synthetic, **values: Any) -> Sweep:
    return check("03_tau_sweep", {name: getattr(params, name) for name in Swept.model_fields} | values)


def attack_of(params: Clean) -> tuple:
    """What tells one attacked model and its trigger from another."""
    return tuple(getattr(params, name) for name in _ATTACK)


def distinct_attacks(params: Params) -> list[Clean]:
    """One cleaning of a run for each attacked model that it starts from."""
    found: dict[tuple, Clean] = {}
    for trial in expand(params):
        found.setdefault(attack_of(trial), trial)
    return list(found.values())


def literals(notebook: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a notebook's cells have set, out of its globals(): known names, and any other plain value,
    which can only be a misspelt one: notebooks keep no plain values of their own in global names.
    """
    known, plain = NOTEBOOKS[notebook].model_fields, (bool, int, float, str, type(None))
    return {k: v for k, v in namespace.items() if k in known or (type(v) in plain and not k.startswith("_"))}


def scale_defaults(notebook: str, scale: str) -> dict[str, Any]:
    """The single values of params/<scale>/<notebook>.yaml: what the scale takes instead of the defaults."""
    path = ROOT / "params" / scale / f"{notebook}.yaml"
    values = yaml.safe_load(path.read_text()) if path.exists() else None
    return {name: value for name, value in (values or {}).items() if not isinstance(value, list)}


def run_id(notebook: str, params: Params) -> str:
    """The notebook and the axes that differ from the scale's defaults: 02_clean/par_blended_text_s1_tau3."""
    if not isinstance(params, Attack):
        return notebook
    given = params.model_dump()
    named = {name: given[name] for name in _NAMED if isinstance(given.get(name), str | int)}
    usual = check(notebook, scale_defaults(notebook, params.scale) | named | {"scale": params.scale}).model_dump()
    words = [named[name] for name in ("name", "method", "trigger") if name in named]
    words += [str(given["encoder"])] if given.get("encoder", "small_resnet") != "small_resnet" else []
    words.append(f"s{params.seed}")
    renamed = given.get("name") != NOTEBOOKS[notebook].model_fields.get("name", Field(None)).default
    for name, value in given.items():
        if value != usual[name] and not (renamed and name in _OF_SWEEPS):
            shown = f"{value:g}" if isinstance(value, float) else "-".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(name + (shown if shown.replace(".", "").replace("-", "").isalnum() else digest(shown)[:8]))
    return f"{notebook}/{'_'.join(words)}"


def _resolved(params: Params) -> Params:
    if isinstance(params, Clean):
        tuned = TUNED.get(params.method, TUNED["finetune"])  # a new method starts from plain fine-tuning's
        schedule = tuned["schedule"] if params.schedule == "tuned" else params.schedule
        found = {"lr": params.lr or tuned["lr"], "batch": params.batch or tuned["batch"], "schedule": schedule}
        unused = {"tau", "self_weight", "pool"} - set(METHODS[params.method].options)
        return params.model_copy(update=found | dict.fromkeys(unused, 0.0))
    if isinstance(params, Swept):
        expand(params)  # every trial is checked before the first one runs
    if isinstance(params, Sweep):
        _check_search(params)
    if isinstance(params, Synthetic):
        for name in ("data", "method", "seeds"):
            if len(set(getattr(params, name))) < len(getattr(params, name)):
                raise ValueError(f"04_synthetic: {name} names one of its values twice")
        if "par" not in params.method or set(params.data) == {"scenes"}:
            raise ValueError("04_synthetic: method must name par, and data a synthetic set, from which PAR's runs choose")
    if isinstance(params, Poison):
        usual = {"patch": 0, "epochs": 6} | ENCODERS.get(params.encoder, ENCODERS["small_resnet"])
        usual |= PLANTING.get(params.trigger, {}) | PLANTING.get((params.encoder, params.trigger), {})
        filled = {name: getattr(params, name) or value for name, value in usual.items()}
        return params.model_copy(update=filled | preset(params.trigger, params.target, patch=filled["patch"], strength=params.strength))
    return params


def _check_search(params: Sweep) -> None:
    suggested = params.search == "optuna"
    if suggested and (fixed := [name for name in _ATTACK if any(len(grid.get(name, [])) > 1 for grid in params.space)]):
        raise ValueError(f"03_tau_sweep: optuna searches the settings of a cleaning, not {fixed[0]}; name one value")
    if suggested != (params.samples > 0) or (suggested and len(params.space) > 1):
        raise ValueError("03_tau_sweep: search = 'optuna' takes one grid and samples > 0; search = 'grid' tries all and takes samples = 0")


def _known(what: str, value: str, known: Any) -> str:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        shown = list(known)[:12]
        raise ValueError(f"unknown {what} {value!r}{hint} known are: {', '.join(shown)}{' ...' if len(known) > len(shown) else ''}")
    return value


def _explain(kind: type[Params], name: str, value: Any, problem: dict[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, kind.model_fields, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        return f"unknown parameter {name!r}{hint} allowed are: {', '.join(kind.model_fields)}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    field = kind.model_fields[name.partition(".")[0]]
    wanted = getattr(field.annotation, "__name__", str(field.annotation))
    hint = " (in YAML write 1.0e-5, not 1e-5)" if isinstance(value, str) and wanted == "float" else ""
    hint += " (a list of values is for python -m parlib.run)" if isinstance(value, list) else ""
    shown = repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
    return f"{name} = {shown}: {problem['msg'].lower()}{hint}; {name.partition('.')[0]} is {field.description}"
