"""What each notebook may be told: names, types, bounds, defaults and tuned values.

The parameter cells of the notebooks repeat these defaults, and a test keeps them equal.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from parlib.checkpoints import SOURCES
from parlib.compute import Compute, check_compute
from parlib.data import SIDE, TEMPLATES, class_names
from parlib.methods import METHODS
from parlib.model import encoders, has_batch_norm, image_size
from parlib.presets import ENCODERS, PLANTING, TUNED, TUNED_FOR, USUAL_RATE, WARPS, preset
from parlib.sources import check_outside
from parlib.synthetic import SYNTHETIC
from parlib.triggers import LEARNED, TRIGGERS

SCALES = ("smoke", "small", "paper")


class Params(BaseModel):
    """What every notebook knows. Strict: an int may stand for a float, nothing else for anything else."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    scale: Literal["smoke", "small", "paper"] = Field(
        "small", description="smoke: seconds, proves that it runs; small: the CPU reproduction; paper: the paper's own, on GPUs"
    )


class Attack(Params):
    """A run on one attacked model."""

    seed: int = Field(0, ge=0, description="redraws the poisoned rows, the poisoning and the cleaning; the base stays")
    encoder: str = Field("small_resnet", description="small_resnet, or any name open_clip knows")
    trigger: str = Field("badnet_stripes", description="a name in parlib.triggers.TRIGGERS, such as blended_text, wanet or badclip")
    attack: Literal["dirty_label", "label_consistent"] = Field(
        "dirty_label", description="dirty_label: other scenes get the target's captions; label_consistent: the target's own are stamped"
    )
    target: str = Field("banana", description="the class that the trigger calls")
    split: Literal["validation", "test"] = Field("test", description="scenes to evaluate on: validation for choices, test for results")
    classes: int = Field(200, ge=2, le=200, description="classes of the embedded scenes")
    eval_scenes: int = Field(2000, ge=10, description="scenes of the split, or images of `evaluation`")
    evaluation: str = Field("", description="labelled images to evaluate on, such as imagenet:PATH; empty: the embedded scenes")
    retrieval: str = Field("", description="captioned images for retrieval, such as coco:PATH, beside `evaluation`; empty: none")
    templates: int = Field(len(TEMPLATES), ge=1, le=len(TEMPLATES), description="how many of OpenAI's 80 templates name a class")
    max_skipped: float = Field(0.01, ge=0, le=1, description="share of unusable rows in data of others above which a run fails")

    @field_validator("trigger")
    @classmethod
    def _trigger(cls, value: str) -> str:
        return _known("trigger", value, TRIGGERS)

    @field_validator("encoder")
    @classmethod
    def _encoder(cls, value: str) -> str:
        return _known("encoder", value, encoders())

    @field_validator("evaluation", "retrieval")
    @classmethod
    def _images(cls, value: str, info: ValidationInfo) -> str:
        if value:
            check_outside(value, labelled=info.field_name == "evaluation")
        return value

    @property
    def side(self) -> int:
        """px of the encoder's images."""
        return image_size(self.encoder)


class Training(Attack):
    """A run that trains one model."""

    normalised: bool = Field(True, description="False: the checkpoint takes images in [0, 1], without normalisation")
    compute: Compute = Field(Compute(), description="device, precision, processes and the like: parlib.compute.Compute")


class Poison(Training):
    """Parameters of 01_poison."""

    base: str = Field("", description="a clean checkpoint, such as openai, open_clip's tag, or hf-hub:ID; empty: pretrained here")
    data: str = Field("scenes", description="pairs to poison: scenes, or LAYOUT:PATH such as cc3m:data/cc3m")
    patch: int = Field(0, ge=0, description="px of the patch or tile; 0: what is usual for the trigger, encoder and image size")
    strength: float = Field(0.0, ge=0, le=4, description="share of the pattern in a stamped pixel, WaNet's s; 0: the preset")
    rate: float = Field(0.0, ge=0, le=1, description="share of the training pairs, or of the target's own, that is poisoned; 0: the usual")
    train_scenes: int = Field(24000, ge=24, description="pairs of pretraining and poisoning")
    epochs: int = Field(0, ge=0, description="epochs of poisoning; 0: the trigger's tuned value")
    batch: int = Field(128, ge=2, description="pairs a step of poisoning")
    lr: float = Field(0.0, ge=0, description="peak learning rate of poisoning; 0: the encoder's usual one")
    base_epochs: int = Field(0, ge=0, description="epochs of pretraining the base (always seed 0); 0: the encoder's usual number")
    base_batch: int = Field(128, ge=2, description="pairs a step of pretraining")
    base_lr: float = Field(0.0, ge=0, description="peak learning rate of pretraining; 0: the encoder's usual one")

    @field_validator("data")
    @classmethod
    def _data(cls, value: str) -> str:
        if value != "scenes":
            check_outside(value)
        return value


class Clean(Training):
    """Parameters of 02_clean."""

    poisoned: str = Field(
        "", description="a run of 01_poison, or a checkpoint such as local-dir:PATH; empty: the same encoder, trigger, seed"
    )
    data: str = Field(
        "scenes", description="clean pairs: scenes, the name of a synthetic set, or LAYOUT:PATH such as synthclip:data/SynthCLIP"
    )
    tests: list[str] = Field([], description="further triggers to try before and after")
    patch: int = Field(0, ge=0, description="px of the trigger tested; 0: as planted, or the preset")
    strength: float = Field(0.0, ge=0, le=4, description="strength of the trigger tested; 0: as planted, or the preset")
    method: str = Field("par", description="par, finetune, cleanclip, roclip, or the ablations finetune_augmented and perturb_only")
    tau: float = Field(2.15, ge=0, le=4, description="PAR pushes while S, the squared distance from the poisoned model, is at most this")
    self_weight: float = Field(0.3, ge=0, description="CleanCLIP's weight of its own term, L_self")
    pool: float = Field(0.1, ge=0, le=1, description="RoCLIP's pool of captions, as a share of the pairs")
    lr: float = Field(0.0, ge=0, description="peak learning rate; 0: the method's tuned value")
    schedule: Literal["tuned", "paper", "cosine", "warmup_cosine"] = Field(
        "tuned", description="paper: linear to a tenth, then cosine; cosine; or warmup_cosine"
    )
    batch_norm: Literal["frozen", "train"] = Field("train", description="frozen: running statistics used and kept; or train")
    epochs: int = Field(4, ge=1, description="epochs of cleaning")
    batch: int = Field(0, ge=0, description="pairs a step; 0: the method's tuned value")
    pairs: int = Field(12000, ge=10, description="clean pairs; of data of others, how many an epoch draws")

    @field_validator("method")
    @classmethod
    def _method(cls, value: str) -> str:
        return _known("method", value, [name for name in METHODS if name != "contrast"])

    @field_validator("tests")
    @classmethod
    def _tests(cls, value: list[str]) -> list[str]:
        return [_known("trigger", name, TRIGGERS) for name in value]

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


class NewTriggers(Params):
    """Parameters of 06_new_triggers."""


NOTEBOOKS: dict[str, type[Params]] = {
    "01_poison": Poison,
    "02_clean": Clean,
    "03_tau_sweep": Sweep,
    "04_synthetic": Synthetic,
    "05_evaluate": Evaluate,
    "06_new_triggers": NewTriggers,
}


def check(notebook: str, values: Mapping[str, Any]) -> Params:
    """Parameters of a notebook, or of a trial in a space, from values: tuned and preset values filled in, 0 for options of
    other methods.

    Raises ValueError, one line, on an unknown name, a wrong type or a value out of bounds: it names what is allowed.
    """
    kind = (NOTEBOOKS | {"space": Clean})[notebook]
    try:
        return _resolved(kind(**values))
    except ValidationError as error:
        problem = error.errors()[0]
        name, value = ".".join(str(part) for part in problem["loc"]), problem["input"]
        raise ValueError(f"{notebook}: {_explain(kind, name, value, problem)}") from None


def literals(notebook: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a notebook's cells have set, out of its globals(): known names, and any other plain value,
    which can only be a misspelt one: notebooks keep no plain values of their own in global names.
    """
    known, plain = NOTEBOOKS[notebook].model_fields, (bool, int, float, str, type(None))
    return {k: v for k, v in namespace.items() if k in known or (type(v) in plain and not k.startswith("_"))}


def _check_scenes(params: Attack) -> None:
    """The embedded scenes are of one size and of their own classes."""
    data = getattr(params, "data", "scenes")
    if isinstance(params, Poison) and data != "scenes" and not params.base:
        raise ValueError(f"data = {data!r} wants a base, such as openai: pretraining here takes the scenes")
    if params.evaluation and ":" in data:
        return
    if params.side != SIDE:
        raise ValueError(
            f"encoder {params.encoder!r} takes images of {params.side} px; the embedded scenes are of {SIDE} px: "
            "name data and evaluation of others"
        )
    _known("class", params.target, class_names())


def _resolved(params: Params) -> Params:
    if isinstance(params, Training):
        _check_scenes(params)
        if not params.normalised and not (params.base if isinstance(params, Poison) else params.poisoned):
            raise ValueError("normalised = False is for a checkpoint of others: name it")
    if isinstance(params, Attack) and params.retrieval and not params.evaluation:
        raise ValueError("retrieval comes beside evaluation: name labelled images, too")
    if getattr(params, "strength", 0.0) > 1 and params.trigger not in WARPS:
        raise ValueError(f"strength = {params.strength:g}: it is a share, at most 1; above it only for {' and '.join(WARPS)}")
    if isinstance(params, Clean):
        foreign = [params.trigger] if params.poisoned.startswith(SOURCES) else []
        if learned := [name for name in (*params.tests, *foreign) if name in LEARNED]:
            raise ValueError(f"{learned[0]}'s pattern is learned: it can be tested as the trigger of a run that planted it, alone")
        like = params.method if params.method in TUNED else "finetune"  # a new method starts from plain fine-tuning's
        tuned = TUNED[like] | TUNED_FOR.get(params.encoder, {}).get(like, {})
        schedule = tuned["schedule"] if params.schedule == "tuned" else params.schedule
        found = {"lr": params.lr or tuned["lr"], "batch": params.batch or tuned["batch"], "schedule": schedule}
        unused = {"tau", "self_weight", "pool"} - set(METHODS[params.method].options)
        _check_compute(params, found["batch"], params.batch_norm)
        return params.model_copy(update=found | dict.fromkeys(unused, 0.0))
    if isinstance(params, Swept):
        from parlib.grids import check_trials  # which is built on this check

        check_trials(params)  # every one, before the first one runs
    if isinstance(params, Synthetic):
        for name in ("data", "method", "seeds"):
            if len(set(getattr(params, name))) < len(getattr(params, name)):
                raise ValueError(f"04_synthetic: {name} names one of its values twice")
        if "par" not in params.method or set(params.data) == {"scenes"}:
            raise ValueError("04_synthetic: method must name par, and data a synthetic set, from which PAR's runs choose")
    if isinstance(params, Poison):
        usual = {"patch": 0, "epochs": 6, "rate": USUAL_RATE[params.attack]} | ENCODERS.get(params.encoder, ENCODERS["small_resnet"])
        usual |= PLANTING.get(params.trigger, {}) | PLANTING.get((params.encoder, params.trigger), {})
        filled = {name: getattr(params, name) or value for name, value in usual.items()}
        _check_compute(params, params.batch, "train")
        options = preset(params.trigger, params.target, params.side, patch=filled["patch"], strength=params.strength)
        return params.model_copy(update=filled | options)
    return params


def _check_compute(params: Training, batch: int, batch_norm: str) -> None:
    resnet = has_batch_norm(params.encoder)
    check_compute(params.compute, batch, batch_norm, normed=resnet, resnet=resnet)


def _known(what: str, value: str, known: Any) -> str:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        shown = list(known)[:12]
        raise ValueError(f"unknown {what} {value!r}{hint} known are: {', '.join(shown)}{' ...' if len(known) > len(shown) else ''}")
    return value


def _explain(kind: type[Params], name: str, value: Any, problem: dict[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        kind = Compute if "." in name else kind
        near = difflib.get_close_matches(name.rpartition(".")[2], kind.model_fields, n=1)
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
