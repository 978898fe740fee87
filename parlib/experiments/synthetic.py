"""Experiment 04: clean with synthetic pairs alone, made in different ways."""

from dataclasses import dataclass
from typing import Any, Literal, Self

import pandas as pd
from pydantic import Field

from parlib.data.pairs import Pairs
from parlib.data.scenes import SIDE, load_scenes
from parlib.data.synthetic import SYNTHETIC
from parlib.experiments.clean_params import Clean
from parlib.experiments.lineage import load_pairs
from parlib.experiments.params import tuned
from parlib.experiments.result import Result
from parlib.experiments.sweep import columns, recorded, table_of
from parlib.experiments.trials import Cleanings, Material, Sweep, gather
from parlib.experiments.tune import failures, run_trials
from parlib.external.stream import Stream
from parlib.measure.distance import frechet, vendi
from parlib.measure.selection import choose
from parlib.model.clip import Clip, embed_images, load
from parlib.records.store import artifact_file


class Synthetic(Cleanings):
    notebook = "04_synthetic"

    split: Literal["validation"] = Field("validation", description="the choice is made on validation; its runs are on the test scenes")
    data: list[str] = Field(["scenes", *SYNTHETIC], min_length=1, description="scenes: the real pairs; external data: LAYOUT:PATH")
    method: list[str] = Field(["par", "cleanclip"], min_length=1, description="par must be among them")
    batch: int = tuned("pairs a step; None: the method's tuned value", ge=2)
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="seeds of the recommended data's runs on the test scenes")

    def _resolved(self) -> Self:
        super()._resolved()
        for name in ("data", "method", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{self.notebook}: {name} names one of its values twice")
        if "par" not in self.method or set(self.data) == {"scenes"}:
            raise ValueError(f"{self.notebook}: method must name par, and data a synthetic set, from which PAR's runs choose")
        self.trials()  # every one, before the first one runs
        return self

    def grid(self) -> Sweep:
        """The sweep: each data set with each method."""
        return self._sweep(space=[{"data": self.data, "method": self.method, "batch": [self.batch]}])

    def confirmation(self, data: str) -> Sweep:
        """The sweep that cleans with one data set by PAR, on the test scenes, over seeds."""
        return self._sweep(split="test", space=[{"data": [data], "method": ["par"], "batch": [self.batch], "seed": self.seeds}])

    def _sweep(self, **values: Any) -> Sweep:
        return Sweep.check({name: getattr(self, name) for name in Cleanings.model_fields} | values)

    def trials(self) -> list[Clean]:
        return self.grid().trials() + [trial for data in self.data for trial in self.confirmation(data).trials()]

    def cost(self) -> int:
        return self.grid().cost() + self.confirmation(self.data[0]).cost()


@dataclass(frozen=True)
class FromSynthetic:
    """The trials on the validation scenes, those of the recommended set on the test scenes, and how far each set lies from the scenes."""

    result: Result
    trials: pd.DataFrame
    tests: pd.DataFrame
    gaps: pd.DataFrame

    @property
    def recommended(self) -> str:
        return self.tests["data"].iloc[0]

    @property
    def means(self) -> pd.DataFrame:
        """Mean and standard deviation over the seeds, on the test scenes."""
        names = ["clean_accuracy", "poisoned_clean_accuracy", "attack_success_rate", "triggered_accuracy"]
        return self.tests[names].agg(["mean", "std"])


def synthetic(params: Synthetic) -> FromSynthetic:
    """Clean with each set by each method, choose a set among PAR's runs, and clean with it again over seeds. A run whose record is there,
    of today's versions, is read from it.

    Raises RuntimeError, naming them, when trials have failed, once all others are in the cache.
    """
    if (found := recorded(params)) is not None:
        return _read(found)
    grid = params.grid()
    material = gather(grid.trials())
    base = load(artifact_file(params.attacks()[0].poisoning(), "base_weights").parent)
    gaps = distances(base, material, params.classes)
    trials, seconds = run_trials(grid, grid.trials(), material)
    failures(trials)
    chosen = trials[(trials["method"] == "par") & (trials["data"] != "scenes") & (trials["error"] == "")]
    again = params.confirmation(trials.loc[choose(chosen), "data"])
    tests, more = run_trials(again, again.trials(), gather(again.trials()))
    failures(tests)
    every = pd.concat([trials, tests])
    measures = gaps.set_index("data")
    result = Result(
        params,
        metrics={},
        n=params.eval_scenes,
        seconds=seconds + more,
        history=columns(every.drop(columns="seconds")),
        timings={"seconds": columns(every)["seconds"]},
        tables={"gaps": gaps, "trials": every.drop(columns="seconds")},
    )
    found = FromSynthetic(result, trials, tests, gaps)
    result.metrics |= {"recommended": found.recommended} | found.means.loc["mean"].to_dict()
    result.metrics |= found.means.loc["std"].add_suffix("_std").to_dict()
    result.metrics |= measures["gap"].add_prefix("gap_").to_dict() | measures["diversity"].add_prefix("diversity_").to_dict()
    return found


def _read(result: Result) -> FromSynthetic:
    every, metrics = table_of(result), result.metrics
    sets = list(dict.fromkeys(every["data"]))
    rows = [
        {"data": name, "pairs": every["pairs"].iloc[0], "gap": metrics[f"gap_{name}"], "diversity": metrics[f"diversity_{name}"]}
        for name in sets
    ]
    return FromSynthetic(result, every[every["split"] == "validation"], every[every["split"] == "test"], pd.DataFrame(rows))


def sets(params: Synthetic) -> dict[str, Pairs | Stream]:
    return {data: load_pairs(data, params.pairs, params) for data in params.data}


def distances(clip: Clip, material: Material, classes: int, count: int = 4000) -> pd.DataFrame:
    """How far each set of pairs lies from scenes of the training split (Fréchet distance), and how varied it is (Vendi score), in a
    model's image embedding: a row a set, by the first `count` pairs. For models of other sizes than the scenes', from the first set.
    """
    (_, n, *_), first = next(iter(material.pairs.items()))
    real = load_scenes("train", min(count, 120 * classes), classes) if clip.side == SIDE else first.first(min(count, n))
    known, rows = embed_images(clip, real.pixels), []
    for (data, n), found in {(data, n): found for (data, n, *_), found in material.pairs.items()}.items():
        image = embed_images(clip, found.first(min(count, n)).pixels)
        rows.append({"data": data, "pairs": n, "gap": frechet(image, known), "diversity": vendi(image)})
    return pd.DataFrame(rows)
