"""What the experiments share that look at a cleaned model afterwards: which model it is, a cleaning's or a control, and where it lies."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from parlib.data.pairs import Pairs
from parlib.experiments.clean_params import Clean
from parlib.experiments.lineage import load_pairs, open_checkpoint
from parlib.experiments.params import Input, Training, checkpoint_input
from parlib.experiments.subject import Subject
from parlib.experiments.wording import one_of
from parlib.method.methods import cleaners
from parlib.model.checkpoints import DOWNLOADED, SOURCES
from parlib.model.clip import Clip, load
from parlib.records.store import artifact_file, command, read

CONTROLS = ("none", "base")  # the poisoned model itself, and the clean base, which was never poisoned
MethodOrControl = Annotated[str, one_of("method", lambda: [*CONTROLS, *cleaners()])]


class Examined(Clean):
    """Parameters of a study of a cleaned model: those of its cleaning, in the regime with few pairs where nothing else is said."""

    trains: ClassVar[bool] = False  # a CLIP, beside the cleaning
    chooses_input = (*Clean.chooses_input, *sorted({*Clean.model_fields} - {*Training.model_fields, "data"}))

    method: MethodOrControl = Field(
        "par", description="the method that cleaned the model; or a control: none, the poisoned model; base, its clean base"
    )
    cleaned: str = Field("", description="a run of 02_clean, or a checkpoint such as local-dir:PATH; empty: the run with these parameters")
    base_epochs: int | None = Field(15, ge=1, description=str(Clean.model_fields["base_epochs"].description))
    pairs: int = Field(720, ge=10, description=str(Clean.model_fields["pairs"].description))
    steps: int | None = Field(360, ge=1, description=str(Clean.model_fields["steps"].description))
    batch: int | None = Field(128, ge=2, description=str(Clean.model_fields["batch"].description))

    def _resolved(self) -> Self:
        if self.cleaned and self.method in CONTROLS:
            raise ValueError(f"method = {self.method!r} is a control, and comes with the poisoned model: leave out {self.cleaned!r}")
        if self.inverted and self.method in CONTROLS:
            raise ValueError(f"method = {self.method!r} is a control, and takes nothing out: leave out inverted = {self.inverted!r}")
        if self.method == "base" and self.poisoned.startswith(SOURCES):
            raise ValueError(f"method = 'base': {self.poisoned} comes without its clean base; name a run of 01_poison")
        if not (self.cleaned or self.method in CONTROLS):
            self.cleaning()  # all that a cleaning checks
        Training._resolved(self)
        return self._filled()

    def _filled(self) -> Self:
        return self if self.method in CONTROLS else super()._filled()

    def cleaning(self) -> Clean:
        """The cleaning whose model is examined."""
        given = {name: getattr(self, name) for name in Clean.model_fields if name not in ("experiment", "label")}
        if self.poisoned.startswith(SOURCES):  # the regime's base is not that of a checkpoint
            given["base_epochs"] = None
        return Clean.check(given)

    def needs(self) -> list[Any]:
        own = [] if self.cleaned or self.method in CONTROLS else [self.cleaning()]
        return super().needs() + own

    def trials(self) -> list[Clean]:
        return []

    def asked(self) -> dict[str, Any]:
        """With the checkpoints that are downloaded: their names alone tell one from another."""
        named = {name: getattr(self, name) for name in ("poisoned", "cleaned")}
        return super().asked() | {name: source for name, source in named.items() if source.startswith(DOWNLOADED)}

    def inputs(self) -> dict[str, Input]:
        cleaning = ("wordnet", self.inverted)  # the cleaned weights stand for them
        found = {name: one for name, one in super().inputs().items() if name not in cleaning}
        if self.cleaned.startswith(SOURCES):
            return found | {"cleaned": checkpoint_input(self.cleaned)}
        if self.method == "none":
            return found
        record, name = self.record()
        return found | {"cleaned": Input(run=record["run"], sha256=record["artifacts"][name]["sha256"])}

    def record(self) -> tuple[dict[str, Any], str]:
        """The record that holds the model, and which of its artifacts it is. FileNotFoundError, naming the command that makes it, where it
        is missing; ValueError where it is no cleaning.
        """
        if self.method == "base":
            return self.poisoning(), "base_weights"
        record = read(self.scale, self.cleaned or self.cleaning().id)
        if record["notebook"] != "02_clean":
            raise ValueError(f"{record['run']} is no cleaned model; name a run of 02_clean or a checkpoint: {', '.join(SOURCES)}")
        if (made := record["params"]["method"]) != self.method:
            raise ValueError(f"{record['run']} was made with method = {made!r}, not {self.method!r}: say the same here")
        made_of, poisoned = record["made_from"]["poisoned"], self.poisoned_input()
        if made_of != poisoned.run:
            raise ValueError(f"{record['run']} is a cleaning of {made_of}: name that as poisoned, or its parameters")
        if record["identity"]["inputs"]["poisoned"] != poisoned.sha256:
            raise ValueError(
                f"{record['run']} cleaned {made_of} as it was before: make it again with: {command(record['run'], self.scale)}"
            )
        return record, "weights"

    def stages(self) -> list[str]:
        return [f"trigger/{self.trigger}", *self.data_stages(), *self.evaluated()]


def model_of(params: Examined, before: Subject) -> Clip:
    """The model that is examined, on the poisoned model's device."""
    if params.method == "none":
        return before.clip
    if params.cleaned.startswith(SOURCES):
        return open_checkpoint(params.cleaned, params)
    record, name = params.record()
    return load(artifact_file(record, name).parent).copy(params.compute.device)


def fresh_pairs(params: Examined, n: int, clip: Clip) -> Pairs:
    """n clean pairs for what comes after a cleaning: others than its scenes, external data drawn anew; synthetic ones are the same."""
    found: Any = load_pairs(params.data, n, params, clip=clip, held=True, seed=1)
    return found
