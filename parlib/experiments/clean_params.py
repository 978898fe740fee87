"""Parameters of experiment 02, a cleaning."""

from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, field_validator

from parlib.attack.inversion import InvertedTrigger, read_inverted
from parlib.attack.triggers import LEARNED, TRIGGERS, Trigger
from parlib.cache import ROOT
from parlib.data.scenes import class_names, covered
from parlib.data.synthetic import SYNTHETIC
from parlib.experiments.params import Input, Training, checkpoint_input, tuned
from parlib.experiments.poison import Poison
from parlib.experiments.presets import tuned as tuned_values
from parlib.experiments.wording import known, one_of
from parlib.external.batches import check_outside
from parlib.measure.selection import KNOBS
from parlib.method.methods import METHODS, Recipe, cleaners
from parlib.method.wordnet import content, data_files, folder_of
from parlib.model.checkpoints import SOURCES
from parlib.model.clip import has_batch_norm
from parlib.records.store import artifact_file, read

_FILE = ".safetensors"  # of a trigger that 10_inspect kept
ATTACKED = ("encoder", "trigger", "attack", "target", "planted", "attacker", "base_epochs", "seed")


class Clean(Training):
    notebook = "02_clean"
    chooses_input = ("planted", "attacker", "base_epochs")

    poisoned: str = Field("", description="a run of 01_poison, or a checkpoint such as local-dir:PATH; empty: same encoder, trigger, seed")
    data: str = Field(
        "scenes", description="clean pairs: scenes, the name of a synthetic set, or LAYOUT:PATH such as synthclip:data/SynthCLIP"
    )
    pairs: int = Field(
        12000,
        ge=10,
        description="clean pairs; of external data how many an epoch draws, or, with steps or a coverage below 1, how many there are",
    )
    coverage: float = Field(
        1.0, gt=0, le=1, description="share of the classes that the clean pairs show or name; below 1 the target is not among them"
    )
    steps: int = tuned("steps of cleaning, however few the pairs are; None: as many as the epochs have", ge=1)
    tests: list[str] = Field([], description="further triggers to try before and after")
    method: Annotated[str, one_of("method", cleaners)] = Field(
        "par", description="par, finetune, cleanclip, roclip, distil, unlearn, or another cleaner in parlib.method.methods.METHODS"
    )
    tau: float = Field(2.15, ge=0, le=4, description="PAR pushes while S, the squared distance from the poisoned model, is at most this")
    self_weight: float = Field(0.3, ge=0, description="CleanCLIP's weight of its own term, L_self")
    pool: float = Field(0.1, ge=0, le=1, description="RoCLIP's pool of captions, as a share of the pairs")
    varied: float = Field(0.0, ge=0, le=1, description="share of the clean images that distillation flips, crops, recolours and mixes")
    rho: float = Field(1.0, gt=0, description="FT-SAM's radius: how far it moves the weights uphill before each step")
    alpha: float = Field(0.01, ge=0, description="FST's weight of the term that takes the projections away from the poisoned ones")
    inverted: str = Field(
        "", description="what unlearn, invertune and tbar take out: a run of 10_inspect, or a file that it kept; empty: the planted trigger"
    )
    coefficient: float = Field(1.0, gt=0, description="how many times tbar takes away what its training changed")
    interpolation: float = Field(0.0, ge=0, lt=1, description="share of the poisoned model's weights in the result")
    refresh: bool = Field(False, description="at the end BatchNorm's statistics anew, from the clean pairs")
    wordnet: str = Field(
        "", description="WordNet's folder for CleanCLIP's and RoCLIP's captions, such as /usr/share/wordnet; empty: a short list of our own"
    )
    lr: float = tuned("peak learning rate; None: the method's tuned value", gt=0)
    schedule: Literal["paper", "cosine", "warmup_cosine", "super"] = tuned(
        "paper: linear to a tenth, then cosine; cosine; warmup_cosine; super: triangles; None: the method's tuned one"
    )
    batch_norm: Literal["frozen", "train"] = Field("train", description="frozen: running statistics used and kept; or train")
    epochs: int = Field(4, ge=1, description="epochs of cleaning")
    batch: int = tuned("pairs a step; None: the method's tuned value", ge=2)

    @field_validator("tests")
    @classmethod
    def _tests(cls, value: list[str]) -> list[str]:
        named = [name for name in value if not name.endswith(_FILE)]
        if learned := [name for name in named if known("trigger", name, TRIGGERS) in LEARNED]:
            raise ValueError(f"{learned[0]}'s pattern is learned: it can be tested as the trigger of a run that planted it, alone")
        return value

    @field_validator("data")
    @classmethod
    def _data(cls, value: str) -> str:
        if ":" not in value and "/" not in value:
            return known("data", value, ("scenes", *SYNTHETIC))
        check_outside(value)
        return value

    def _resolved(self) -> Self:
        super()._resolved()
        self._check_coverage()
        if self.poisoned.startswith(SOURCES) and ((self.planted, self.attacker) != ("finetuning", "plain") or self.base_epochs):
            told = "planted, attacker and base_epochs tell runs of 01_poison apart"
            raise ValueError(f"{told}; {self.poisoned} is a checkpoint: leave them out")
        if self.poisoned.startswith(SOURCES) and self.trigger in LEARNED and "pattern" not in self.trigger_options:
            raise ValueError(f"{self.trigger}'s pattern is learned: it can be tested as the trigger of a run that planted it, alone")
        self._check_wordnet()
        method = METHODS[self.method]
        if (method.move or method.whole) and (self.compute.processes > 1 or self.compute.chunk or (method.whole and self.compute.compiled)):
            raise ValueError(f"{self.method} trains in one process and in whole batches: leave compute's processes and chunk out")
        found = self._filled()
        if self.method == "superft" and found.schedule != "super":
            raise ValueError(f"superft is fine-tuning with schedule = 'super', not {found.schedule!r}: leave it out, or take finetune")
        if self.refresh and not has_batch_norm(self.encoder):
            raise ValueError(f"refresh is of BatchNorm's statistics; {self.encoder} has none")
        if self.inverted and not METHODS[self.method].stamps:
            able = ", ".join(name for name, method in METHODS.items() if method.stamps)
            raise ValueError(f"inverted is for methods that take out a trigger: {able}")
        self._check_tests()
        found.check_compute(found.batch, found.batch_norm)
        return found

    def _filled(self) -> Self:
        filled = {name: value for name, value in tuned_values(self.method, self.encoder).items() if getattr(self, name) is None}
        filled |= dict.fromkeys(set(KNOBS) - set(METHODS[self.method].options))  # None: no option of this method
        return self.model_copy(update=filled)

    def _check_coverage(self) -> None:
        if self.coverage == 1:
            return
        if self.data in SYNTHETIC:
            raise ValueError(f"coverage = {self.coverage} is for scenes and external data, not for the synthetic set {self.data}")
        if ":" not in self.data:
            covered(class_names(self.classes), self.coverage, self.target)
        elif not self.evaluation:
            raise ValueError(f"coverage = {self.coverage}: name labelled images in evaluation, whose classes are covered or not")

    def _check_wordnet(self) -> None:
        if not self.wordnet:
            return
        if METHODS[self.method].reword is None:
            able = ", ".join(name for name, method in METHODS.items() if method.reword)
            raise ValueError(f"wordnet is for methods that reword captions: {able}")
        try:
            data_files(folder_of(self.wordnet))
        except FileNotFoundError as error:
            raise ValueError(f"wordnet = {self.wordnet!r}: {error}") from None

    def _check_tests(self) -> None:
        """ValueError where a file of a trigger holds none, or one for images of another size; a missing one is said later."""
        with suppress(FileNotFoundError):
            for trigger in (self._found(name) for name in self._kept() if name.endswith(_FILE)):
                trigger(torch.zeros(1, 3, self.side, self.side), torch.Generator())

    def _kept(self) -> list[str]:
        """The triggers that 10_inspect kept, by their files or runs."""
        return [*(name for name in self.tests if name.endswith(_FILE)), *([self.inverted] if self.inverted else [])]

    def _found(self, name: str) -> InvertedTrigger:
        """FileNotFoundError where it is missing, ValueError where it is none, or of another model or target."""
        if name.endswith(_FILE):
            return read_inverted(ROOT / Path(name).expanduser())
        record = read(self.scale, name)
        if record["notebook"] != "10_inspect":
            raise ValueError(f"inverted = {name!r} is no inspection; name a run of 10_inspect, or a file that it kept")
        model = self.poisoned_input()
        inspected = record["identity"]["inputs"]
        same = inspected.get("cleaned", inspected["poisoned"]) == model.sha256
        if not (same and (model.sha256 or record["params"]["poisoned"] == self.poisoned)):  # of what is downloaded the sha is not known
            raise ValueError(
                f"{name} inspected another model than {model.run}; to take out its trigger all the same, name the file that it kept"
            )
        called = [record["metrics"]["candidate"], *record["metrics"].get("candidates", [])]
        if METHODS[self.method].negates and self.target not in called:
            raise ValueError(f"{name} found {called[0]!r}, not target = {self.target!r}, which {self.method} takes away")
        return read_inverted(artifact_file(record, "pattern"))

    def taken_out(self) -> InvertedTrigger | None:
        """The inverted trigger that the method takes out, of several targets all of them, where it can; None: the planted one, or none."""
        found = self._found(self.inverted) if self.inverted else None
        return found.alone(self.target) if found and METHODS[self.method].negates else found

    @property
    def inverted_set(self) -> tuple:
        """What tells one `taken_out` from another."""
        return self.inverted, self.target if METHODS[self.method].negates else ""

    def trials(self) -> list["Clean"]:
        return [self]

    def recipe(self) -> Recipe:
        """How the poisoned model is fine-tuned."""
        given = {item.name: getattr(self, item.name, None) for item in fields(Recipe)}
        given["wordnet"] = str(folder_of(self.wordnet)) if self.wordnet else ""  # the same folder, wherever a process starts
        return Recipe(**{name: value for name, value in given.items() if value is not None})

    def planting(self) -> Poison:
        """The run of 01_poison that a cleaning starts from when none is named: the same encoder, trigger, target and seed."""
        return Poison.check({name: getattr(self, name) for name in ("scale", *ATTACKED)})

    def needs(self) -> list[Any]:
        return [] if self.poisoned else [self.planting()]

    @property
    def attacked_model(self) -> tuple:
        """What tells one attacked model and its trigger from another."""
        named = (getattr(self, name) for name in ("poisoned", "normalised", *ATTACKED))
        return (*named, tuple(sorted(self.trigger_options.items())))

    @property
    def clean_set(self) -> tuple:
        """What tells one set of clean pairs from another."""
        own = (self.attacked_model, self.steps is not None) if ":" in self.data else ()  # external images are prepared for their model
        return self.data, self.pairs, self.coverage, self.target if self.coverage < 1 else "", own

    def poisoned_input(self) -> Input:
        """The model that a cleaning starts from."""
        if self.poisoned.startswith(SOURCES):
            return checkpoint_input(self.poisoned)
        record = self.poisoning()
        return Input(run=record["run"], sha256=record["artifacts"]["weights"]["sha256"])

    def inputs(self) -> dict[str, Input]:
        own = {"poisoned": self.poisoned_input()} | self.wordnet_input() | self.pattern_input()
        return own | self.external(self.data) | self.inverted_input()

    def further_triggers(self) -> list[Trigger]:
        """Those of `tests`: by their names, with their usual options, or as 10_inspect kept them in files."""
        named = {name: self.model_copy(update={"trigger": name, "attacker": "plain"}) for name in self.tests if not name.endswith(_FILE)}
        return [named[name].trigger_with({}) if name in named else self._found(name).alone(self.target) for name in self.tests]

    def inverted_input(self) -> dict[str, Input]:
        """The triggers that 10_inspect kept, by what they stamp."""
        return {name: Input(run=name, sha256=self._found(name).key) for name in self._kept()}

    def wordnet_input(self) -> dict[str, Input]:
        """WordNet's files, where they are named."""
        return {"wordnet": Input(run=self.wordnet, sha256=content(folder_of(self.wordnet)))} if self.wordnet else {}

    def poisoning(self) -> dict[str, Any]:
        """The record of the poisoned model; FileNotFoundError, naming the command that makes it, where it is missing; ValueError where it
        is none, or of another encoder, trigger or target.
        """
        run = self.poisoned or self.planting().id
        record = read(self.scale, run)
        if record["notebook"] != "01_poison":
            raise ValueError(f"{run} is no poisoned model; name a run of 01_poison or a checkpoint: {', '.join(SOURCES)}")
        for name in ("encoder", "trigger", "attack", "target", "classes", *(["base_epochs"] if self.base_epochs else [])):
            if record["params"].get(name, getattr(self, name)) != getattr(self, name):
                raise ValueError(f"{run} was made with {name} = {record['params'][name]!r}, not {getattr(self, name)!r}: say the same here")
        return record

    def data_stages(self) -> list[str]:
        """The stages of the pairs, whatever their coverage."""
        return ["scenes"] if self.data == "scenes" else ["external"] if ":" in self.data else ["scenes", f"synthetic/{self.data}"]

    def stages(self) -> list[str]:
        data = self.data_stages() + (["coverage"] if self.coverage < 1 else [])
        triggers = ["inspect" if name.endswith(_FILE) else f"trigger/{name}" for name in (self.trigger, *self.tests)]
        triggers += ["inspect"] if self.inverted else []
        finish = ["finish"] if METHODS[self.method].negates or self.interpolation or self.refresh else []
        return ["loop", f"method/{self.method}", *finish, *triggers, *data, *self.evaluated()]

    def cost(self) -> int:
        return self.steps * self.batch if self.steps else self.epochs * self.pairs
