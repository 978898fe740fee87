"""What every experiment may be told, and what follows from it: names, types, bounds and defaults; its id, inputs, stages and identity.

The parameter cells of the notebooks repeat these defaults, and a test keeps them equal. None stands for a tuned or usual value.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from parlib.attack.adaptive import ATTACKERS
from parlib.attack.triggers import EVERYWHERE, LEARNED, PATTERNS, TRIGGERS, Trigger, options_of
from parlib.cache import ROOT, digest, file_sha256
from parlib.data.pairs import TEMPLATES
from parlib.data.scenes import SIDE, class_names
from parlib.experiments.presets import scale_values, trigger_options
from parlib.experiments.wording import explain, known, one_of, shown
from parlib.external.batches import check_outside
from parlib.external.content import content
from parlib.external.patterns import read_pattern
from parlib.external.words import class_name
from parlib.model.checkpoints import checkpoint_sha256
from parlib.model.clip import check_installed, encoders, has_batch_norm, image_size, is_resnet
from parlib.records.identity import identity
from parlib.train.compute import Compute, check_compute

_NOT_IN_IDENTITY = ("scale", "experiment", "label", "ray_address")  # where a run is kept, which table shows it, where it is computed
# These stand in a run id in words, other parameters as name and value.
_WORDS = ("name", "method", "trigger", "attack", "attacker", "encoder", "seed")
_LONGEST = 150  # characters of a run id


class Input(BaseModel):
    """What a run builds on: run is the id of another run, or a source such as local-dir:PATH; sha256 of its content."""

    run: str
    sha256: str


def tuned(description: str, **bounds: Any) -> Any:
    """A field whose None stands for the tuned or usual value, which `check` fills in."""
    return Field(None, description=description, **bounds)


class Params(BaseModel):
    """What every notebook knows. Strict: an int may stand for a float, nothing else for anything else."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    notebook: ClassVar[str]
    chooses_input: ClassVar[tuple[str, ...]] = ()  # parameters that decide no more than which run is an input

    scale: Literal["smoke", "small", "paper"] = Field(
        "small", description="smoke: seconds, proves that it runs; small: the CPU reproduction; paper: the paper's own, on GPUs"
    )
    experiment: str = Field("", description="the question that a run answers, which decides the table that shows it; empty: your own")

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> Self:
        """Parameters from values, resolved. What is not named takes the scale's value, what is None the tuned one.

        Raises ValueError, one line, on an unknown name, a wrong type or a value out of bounds: it names what is allowed.
        """
        return cls._made(values)._resolved()

    @classmethod
    def _made(cls, values: Mapping[str, Any]) -> Self:
        usual, given = cls.defaults(), {name: value for name, value in values.items() if value is not None}
        of = [str(given.get(axis, usual.get(axis))) for axis in ("method", "encoder")]
        of_scale = scale_values(cls.notebook, str(values.get("scale", "small")), *of)
        try:
            return cls(**{name: value for name, value in of_scale.items() if name in cls.model_fields} | given)
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(str(part) for part in problem["loc"])
            raise ValueError(f"{cls.notebook}: {explain(cls, name, problem['input'], problem)}") from None

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every parameter's default, as a notebook writes it."""
        return {name: {} if name == "compute" else field.default for name, field in cls.model_fields.items()}

    def _resolved(self) -> Self:
        return self._filled()

    def _filled(self) -> Self:
        """With the tuned and usual values in the place of None, and no check of what goes with what."""
        return self

    @property
    def id(self) -> str:
        """The run id: the notebook and what differs from the scale's usual values, such as 02_clean/par_blended_text_s1_tau3."""
        return self.notebook

    def trials(self) -> list[Any]:
        """Every cleaning that a run makes, once, in order."""
        return []

    def needs(self) -> list["Params"]:
        """The runs of 01_poison that a run starts from, with the parameters that they would have."""
        return []

    def inputs(self) -> dict[str, Input]:
        """What a run builds on, by name. FileNotFoundError, naming the command that makes it, where it is missing."""
        return {}

    def stages(self) -> list[str]:
        """The computations that decide a run's result, as named in parlib.stages."""
        return []

    def cost(self) -> int:
        """Pairs that a run sees in its training."""
        return 0

    def asked(self) -> dict[str, Any]:
        """The parameters that differ from their defaults and decide a result; None is an option that the run does not use."""
        left_out: dict[str, Any] = dict.fromkeys((*_NOT_IN_IDENTITY, *self.chooses_input), True) | {"compute": {"ray_address"}}
        found = self.model_dump(exclude=left_out, exclude_defaults=True, exclude_none=True)
        return {name: value for name, value in found.items() if value != {}}

    def identity(self) -> dict[str, Any]:
        """What a run's result is; FileNotFoundError where what it builds on is missing."""
        inputs = {name: found.sha256 for name, found in self.inputs().items()}
        return identity(params=self.asked(), inputs=inputs, stages=self.stages())


class Attacked(Params):
    """A run on one attacked model."""

    seed: int = Field(0, ge=0, description="redraws the poisoned rows, the poisoning and the cleaning; the base stays")
    encoder: str = Field("small_resnet", description="small_resnet, small_vit, or any name open_clip knows")
    trigger: Annotated[str, one_of("trigger", TRIGGERS.keys)] = Field(
        "badnet_stripes", description="a name in parlib.attack.triggers.TRIGGERS, such as blended_text, wanet or badclip"
    )
    attack: Literal["dirty_label", "label_consistent"] = Field(
        "dirty_label", description="dirty_label: other scenes get the target's captions; label_consistent: the target's own are stamped"
    )
    target: Annotated[str, AfterValidator(class_name)] = Field("banana", description="the class that the trigger calls")
    planted: Literal["finetuning", "pretraining"] = Field("finetuning", description="when the backdoor is planted")
    attacker: Annotated[str, one_of("attacker", ATTACKERS.keys)] = Field(
        "plain", description="how: plain, or one who expects a cleaning, a name in parlib.attack.adaptive.ATTACKERS"
    )
    base_epochs: int = tuned("epochs of pretraining the base (always seed 0); None: the encoder's usual number", ge=1)
    split: Literal["validation", "test"] = Field("test", description="scenes to evaluate on: validation for choices, test for results")
    classes: int = Field(200, ge=2, le=200, description="classes of the embedded scenes")
    eval_scenes: int = Field(2000, ge=10, description="scenes of the split, or images of `evaluation`")
    evaluation: str = Field("", description="labelled images to evaluate on, such as imagenet:PATH; empty: the embedded scenes")
    retrieval: str = Field("", description="captioned images for retrieval, such as coco:PATH, beside `evaluation`; empty: none")
    resize: Literal["own", "squash"] = Field(
        "own", description="external images to a square: own: as the model's own preparation; squash: whatever their shape, as the paper"
    )
    templates: int = Field(len(TEMPLATES), ge=1, le=len(TEMPLATES), description="how many of OpenAI's 80 templates name a class")
    max_skipped: float = Field(0.01, ge=0, le=1, description="share of unusable rows in external data above which a run fails")

    @field_validator("encoder")
    @classmethod
    def _encoder(cls, value: str) -> str:
        check_installed(known("encoder", value, encoders()))
        return value

    @field_validator("evaluation", "retrieval")
    @classmethod
    def _images(cls, value: str, info: ValidationInfo) -> str:
        if value:
            check_outside(value, labelled=info.field_name == "evaluation")
        return value

    def _resolved(self) -> Self:
        if self.retrieval and not self.evaluation:
            raise ValueError("retrieval comes beside evaluation: name labelled images, too")
        return self

    @property
    def side(self) -> int:
        return image_size(self.encoder)

    @property
    def id(self) -> str:
        given = self.model_dump()
        words = [str(given[name]) for name in ("name", "method", "trigger") if isinstance(given.get(name), str)]
        words += [self.attack] if self.attack != "dirty_label" else []
        words += [self.attacker] if self.attacker != "plain" else []
        words += [self.encoder] if self.encoder != "small_resnet" else []
        words.append(f"s{self.seed}")
        usual = self._usual(given)
        for name, value in given.items():
            if name == "compute":
                value, usual[name] = (Compute(**one).decisive() for one in (value, usual[name]))
            if value == usual[name] or name in _NOT_IN_IDENTITY:
                continue
            parts = value.items() if name == "trigger_options" else [(name, value)]
            words += [key + shown(one) for key, one in parts if name != "trigger_options" or one != usual[name].get(key)]
        found = "_".join(words)
        cut = found if len(found) <= _LONGEST else f"{found[: _LONGEST - 9]}_{digest(found)[:8]}"
        return f"{self.notebook}/{cut}"

    def _usual(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of the run of this notebook, scale and words with nothing else said."""
        named = {name: given[name] for name in ("scale", *_WORDS) if isinstance(given.get(name), str | int)}
        return type(self)._made(named)._filled().model_dump()

    def external(self, *data: str) -> dict[str, Input]:
        """External data that a run reads, by their name."""
        named = sorted({name for name in (*data, self.evaluation, self.retrieval) if ":" in name})
        return {name: Input(run=name, sha256=content(name)) for name in named}

    def evaluated(self) -> list[str]:
        """The stages of what a run evaluates on."""
        return ["metrics", "external"] if self.evaluation else ["metrics", "scenes"]


class Training(Attacked):
    """A run that trains one model."""

    trigger_options: dict[str, int | float | str] = Field(
        {}, description='options of the trigger, such as {"size": 8} or {"opacity": 0.1}; those left out are the usual ones'
    )
    normalised: bool = Field(True, description="False: the checkpoint takes images in [0, 1], without normalisation")
    label: str = Field(
        "",
        pattern="^([a-z][a-z0-9-]*)?$",
        max_length=60,
        description="a name for the run id, such as mine-2: lower-case letters, digits and hyphens; empty: what differs from the usual",
    )
    compute: Compute = Field(Compute(), description="device, precision, processes and the like: parlib.train.compute.Compute")

    @property
    def id(self) -> str:
        return f"{self.notebook}/{self.label}" if self.label else super().id  # no other id is without an underscore

    def _resolved(self) -> Self:
        super()._resolved()
        if not (self.normalised or getattr(self, "base", "") or getattr(self, "poisoned", "")):
            raise ValueError("normalised = False is for a checkpoint of your own: name it")
        self._check_options()
        if self.on_scenes:  # they are of one size and of their own classes
            if self.side != SIDE:
                raise ValueError(
                    f"encoder {self.encoder!r} takes images of {self.side} px; the embedded scenes are of {SIDE} px: "
                    "name external data and evaluation"
                )
            known("class", self.target, class_names())
        return self

    @property
    def on_scenes(self) -> bool:
        """Whether a run sees embedded scenes, to train on or to be evaluated on."""
        return not (self.evaluation and ":" in getattr(self, "data", "scenes"))

    def _check_options(self) -> None:
        """ValueError on an option that the trigger does not take, and on a value with which it can't stamp an image."""
        given, path = self.trigger_options, self.pattern_path()
        allowed = [*options_of(self.trigger), *(["pattern"] if self.trigger in PATTERNS and self.trigger != "resistant" else [])]
        for name, value in given.items():
            known(f"option of {self.trigger}", name, allowed)
            if isinstance(value, str) != (name == "pattern"):
                raise ValueError(f"{self.trigger}'s {name} = {value!r}: it must be {'a path' if name == 'pattern' else 'a number'}")
        if given and (path.is_file() if path else self.trigger not in LEARNED):
            try:
                self.trigger_with(given)(torch.zeros(1, 3, self.side, self.side), torch.Generator())
            except (TypeError, RuntimeError) as error:
                raise ValueError(f"{self.trigger} can't be stamped with {given}: {' '.join(str(error).split())[:100]}") from None

    def trigger_with(self, options: Mapping[str, Any], pattern: Any = None) -> Trigger:
        """The trigger, with the usual options where they are not given; a pattern that is a path is read."""
        given = dict(options)
        if path := given.pop("pattern", None):
            pattern = read_pattern(ROOT / Path(str(path)).expanduser(), self.trigger, self.side)
            given |= {name: pattern.shape[1] for name in ("size", "offsets") if name in options_of(self.trigger)}
        columns = ATTACKERS[self.attacker].places.get("", EVERYWHERE)
        return Trigger(self.trigger, trigger_options(self.trigger, self.side) | given, pattern, columns)

    def pattern_input(self) -> dict[str, Input]:
        """The file of a published pattern, where the options name one."""
        if not (path := self.pattern_path()):
            return {}
        return {"pattern": Input(run=str(self.trigger_options["pattern"]), sha256=file_sha256(path))}

    def pattern_path(self) -> Path | None:
        """Where the file of a published pattern is; None where the options name none."""
        named = self.trigger_options.get("pattern")
        return ROOT / Path(str(named)).expanduser() if named else None

    def check_compute(self, batch: int, batch_norm: str) -> None:
        """ValueError where a batch can't be computed as `compute` says."""
        check_compute(self.compute, batch, batch_norm, normed=has_batch_norm(self.encoder), resnet=is_resnet(self.encoder))


def checkpoint_input(source: str) -> Input:
    """A checkpoint as an input; of what is downloaded no sha256 is known."""
    return Input(run=source, sha256=checkpoint_sha256(source))
