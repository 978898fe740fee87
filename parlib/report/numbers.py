"""The numbers that prose states, from the published records: of one run, of the rows that a question finds, and as cells of a table.
Templates may call every public function; `there` asks for the records of another kind of machine.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, cast

import numpy as np
import pandas as pd

from parlib.cache import ROOT
from parlib.experiments.registry import check
from parlib.records.store import ELSEWHERE, REFERENCE, read_all, read_file
from parlib.report import inspection, regimes, schedule, style, tables
from parlib.report.rows import table, trials

# The columns that templates ask for most.
_SHORT = {"asr": "attack_success_rate", "ca": "clean_accuracy", "under": "triggered_accuracy", "base_ca": "base_clean_accuracy"}
_SHORT |= {"base_under": "base_triggered_accuracy", "poisoned_ca": "poisoned_clean_accuracy"}
_FORMS = {"f0": ".0f", "f1": ".1f", "f2": ".2f", "f3": ".3f", "f4": ".4f", "n0": ",.0f", "g": "g"}
FILTERS: dict[str, Callable[..., Any]] = {name: lambda value, form=form: format(value, form) for name, form in _FORMS.items()}
FILTERS |= {
    "pct": lambda value: f"{100 * value:.1f} %",
    "pct0": lambda value: f"{100 * value:.0f} %",
    "points": lambda value: f"{style.points(value):.1f}",
    "rate": style.rate,
    "name": style.name,
    "table": tables.markdown,
    "combine": lambda given, **more: given | more,
}


class Figures:
    """The numbers of one published run, as {{ run("...").asr }}: any metric, by its name or its short one; AttributeError on others."""

    def __init__(self, record: dict[str, Any]):
        self.metrics, self.params, self.history = (record[name] for name in ("metrics", "params", "history"))
        self.seconds, self.minutes, self.timings = record["seconds"], record["seconds"] / 60, record.get("timings", {})

    def __getattr__(self, name: str) -> Any:
        if name != "metrics" and (metric := _SHORT.get(name, name)) in self.metrics:
            return self.metrics[metric]
        raise AttributeError(name)

    @property
    def hits(self) -> int:
        """How many of the n triggered images are called the target."""
        return round(self.asr * self.attack_success_rate_n)

    def crossed(self, tower: str) -> int:
        """The first step at which S of a tower is above tau."""
        return next(i for i, value in enumerate(self.history[f"s_{tower}"]) if value > self.params["tau"])


@cache
def published(there: bool = False) -> list[dict[str, Any]]:
    return read_all(ELSEWHERE if there else REFERENCE)


@cache
def rows(there: bool = False) -> pd.DataFrame:
    """The published table, some columns by short names too, with `cost` and `gain` in clean accuracy, `chosen`, and those of `_course`."""
    found = table(published(there))
    found = found.assign(**{short: found[name] for short, name in _SHORT.items()}, minutes=found["seconds"] / 60)
    found = found.assign(cost=found["poisoned_ca"] - found["ca"], gain=found["ca"] - found["base_ca"])
    searched = trials(found)
    found["chosen"] = found["run"].isin(searched.loc[searched["chosen"], "run"])
    course = {run: values for record in published(there) for run, values in _course(record)}
    found = found.join(pd.DataFrame.from_dict(course, orient="index"), on="run")
    return found.copy()  # in one piece, as rows are taken from it a thousand times


@cache
def _searched(experiment: str, there: bool = False) -> pd.DataFrame:
    return regimes.trials(rows(there), experiment)


@cache
def _costs(there: bool = False) -> pd.DataFrame:
    return regimes.costs(_searched("regimes", there))


@cache
def _inspected() -> pd.DataFrame:
    return inspection.inspected(published())


def forget() -> None:
    """Read the records anew when they are asked for next."""
    for known in (published, rows, _searched, _costs, _inspected):
        known.cache_clear()


def with_published(own: pd.DataFrame) -> pd.DataFrame:
    """A table's rows, and the published ones of other runs."""
    there = rows()[list(own)].reset_index(drop=True)
    return pd.concat([own, there]).drop_duplicates("run", ignore_index=True) if len(own) else there  # an empty one's columns have no types


def _course(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """S of a sweep's trials; of a cleaning the share of its steps until S is above tau (`crossed_`), and its first `look`'s accuracy."""
    history, looks = record["history"], record["history"].get("look_clean_accuracy", [])
    if "timings" in record:
        for i in range(len(history["tau"])):
            yield f"{record['run']}:{i}", {name: history[name][i] for name in history if name.startswith("s_")}
    if record["notebook"] == "02_clean":
        found = {"look": looks[1]} if len(looks) > 1 else {}
        for tower in ("image", "text"):
            if any(value > record["params"]["tau"] for value in history.get(f"s_{tower}", [])):
                found[f"crossed_{tower}"] = (Figures(record).crossed(tower) + 1) / len(history[f"s_{tower}"])
        yield record["run"], found


def run(name: str, there: bool = False) -> Figures:
    """The numbers of a run, by its id."""
    return Figures(read_file((ELSEWHERE if there else REFERENCE) / f"{name}.json"))


def reproduced() -> list[str]:
    """The ids of the runs of `make reproduce`, in their order."""
    return [record["run"] for record in published() if record["experiment"] == "scarce"]


def _having(found: pd.DataFrame, wanted: dict[str, Any]) -> pd.DataFrame:
    """The rows with these values, or one of a list, in these columns."""
    masks = [found[name].isin(value if isinstance(value, list) else [value]) for name, value in wanted.items()]
    return found[np.logical_and.reduce(masks)] if masks else found


def where(**wanted: Any) -> pd.DataFrame:
    """The rows with these values, or one of a list, in these columns; sweep: of a sweep's trials, else of none. ValueError without rows."""
    sweep = wanted.pop("sweep", "")
    found = rows()[rows()["run"].str.startswith(f"{sweep}:") if sweep else ~rows()["run"].str.contains(":")]
    found = _having(found, wanted)
    if found.empty:
        raise ValueError(f"no published row has {wanted | ({'sweep': sweep} if sweep else {})}")
    return found


def has(**wanted: Any) -> bool:
    """Whether there are rows with these values."""
    return len(_having(rows(), wanted)) > 0


def where_trials(experiment: str, there: bool = False, **wanted: Any) -> pd.DataFrame:
    """The trials of an experiment's sweeps with these values, of the small ResNet where no encoder is named, by rate and tau."""
    wanted = {"experiment": experiment, "encoder": "small_resnet"} | wanted
    return _having(rows(there)[rows(there)["run"].str.contains(":")], wanted).sort_values(["lr", "tau"])


def one(column: str, **wanted: Any) -> float:
    """The mean over the rows that `where` finds."""
    return where(**wanted)[column].mean()


def regime(method: str, pairs: int, coverage: float = 1.0, experiment: str = "regimes", there: bool = False, **wanted: Any) -> Any:
    """What a method costs in a regime, a row of `regimes.costs`, over its trials or those with one tau; None where it was not searched."""
    asked = {"method": method, "pairs": pairs, "coverage": coverage, "experiment": experiment}
    wanted = {"encoder": "small_resnet", "planted": "finetuning"} | wanted | asked
    found = _having(_searched(experiment, there), wanted)
    return regimes.costs(found).iloc[0] if len(found) else None


def regime_costs(filled: bool = False, **wanted: Any) -> pd.DataFrame:
    """What each method costs in each regime, with these values in these columns, as `regimes.costs` says, or as `regimes.filled` does."""
    return _having(regimes.filled(_costs(), _costs(there=True)) if filled else _costs(), wanted)


def moved_elsewhere() -> float:
    """The most, in points, by which a cleaning's cost was another on the other kind of machine."""
    both = where(notebook="02_clean").merge(rows(there=True), on="run", suffixes=("", "_there"))
    return 100 * (both["cost"] - both["cost_there"]).abs().max()


def moved_by_seeds() -> float:
    """The most, in points, by which the cost of a cleaning with 720 pairs differs between three seeds, at one setting of a method."""
    found = where(experiment=["scarce", "regimes_triggers", "regimes_seeds"], notebook="02_clean", trigger="badnet_stripes")
    costs = found[~found["inverted"].fillna("").str.contains("from_pairs")]
    spans = costs.groupby(["method", "lr"])["cost"].agg(["min", "max", "size"])
    return 100 * (spans["max"] - spans["min"])[spans["size"] >= 3].max()


def detector() -> Figures | None:
    """What the calibration of 10 found; None where it was not run."""
    found = [record for record in published() if record["notebook"] == "10_inspect" and record["params"]["name"]]
    return Figures(found[0]) if found else None


def inspections(**wanted: Any) -> pd.DataFrame:
    """The models that 10 inspected, with these values in these columns of `calibration_rows`."""
    return _having(_inspected(), wanted)


def distilled_unfound() -> pd.DataFrame:
    """The distilled models of those triggers that no inspection finds."""
    planted, usual = inspections(kind="planted", attacker="plain"), cast(Any, check("10_inspect", {}))
    unfound = planted.loc[planted["lead"] <= usual.threshold, "trigger"]
    return where(experiment="regimes_triggers", method="distil", seed=0, trigger=list(unfound))


def unlearned() -> str:
    """The cleanings that took out an inverted trigger, a row a trigger, as Markdown; empty where there is none."""
    found = inspection.unlearned(rows(), inspections())
    return tables.markdown(found) if len(found) else ""


def spread(column: str, **wanted: Any) -> str:
    """The mean ± the sample standard deviation over the rows that `where` finds."""
    values = where(**wanted)[column]
    return style.number(values.mean(), std=values.std(ddof=1))


def span(column: str, form: str = "f3", by: str = "", **wanted: Any) -> str:
    """From the least to the most of the rows that `where` finds, of their means `by` a column where one is named."""
    found = where(**wanted)
    values = found.groupby(by)[column].mean() if by else found[column]
    return ends(values, form)


def ends(values: Iterable[float], form: str) -> str:
    """From the least to the most: "0.001 to 0.004"."""
    return " to ".join(dict.fromkeys(FILTERS[form](end) for end in (min(values), max(values))))


def cell(**wanted: Any) -> str:
    """ASR (clean accuracy), means, for a table: bold where it is what a search chose, empty where there is no such row."""
    try:
        found = where(**wanted)
    except ValueError:
        return ""
    said = f"{found['asr'].mean():.3f} ({found['ca'].mean():.3f})"
    return f"**{said}**" if wanted.get("experiment") == "search" and found["chosen"].any() else said


def grid(corner: str, axis: str, values: list[float], lines: dict[str, dict[str, Any]], **same: Any) -> str:
    """A Markdown table of cells: a column a value of an axis, a row a label and what its runs have."""
    heads = [style.rate(value) if axis == "lr" else f"{axis} {value:g}" for value in values]
    made = [[label, *(cell(**{axis: value}, **line, **same) for value in values)] for label, line in lines.items()]
    return tables.markdown(pd.DataFrame(made, columns=[corner, *heads]))


def trainings(there: bool = False) -> pd.DataFrame:
    """Every training behind the published records once, by the `weights` that name it: its `hours`. Inspections train nothing."""
    trained = [one for one in published(there) if one["notebook"] == "07_rebound" or "timings" in one or "weights" in one["artifacts"]]
    found = schedule.tasks(trained)
    return pd.DataFrame({"weights": list(found), "hours": [task.seconds / 3600 for task in found.values()]})


def longest_chain() -> float:
    """Hours of the longest chain of published trainings of which each waits for the one before: no number of workers is faster."""
    return max(schedule.chains(schedule.tasks(published())).values()) / 3600


def on_workers() -> str:
    """How long all published trainings take on 1 to 32 workers, as Markdown."""
    found = pd.DataFrame(schedule.summary(schedule.tasks(published())))
    found["hours"], found["times"] = found["hours"].map("{:.1f}".format), found["times"].map("{:.1f}".format)
    return tables.markdown(found.rename(columns={"times": "times as fast as one"}))


def superseded() -> pd.DataFrame:
    """The trainings that were published once and then replaced, from git's history: their `seconds` and `hours`."""
    found = pd.DataFrame(json.loads((ROOT / "docs" / "templates" / "superseded.json").read_text())["runs"])
    return found.assign(hours=found["seconds"] / 3600)


def overview(experiments: list[str], columns: list[str] | None = None, encoder: str = "", **options: Any) -> str:
    """A row an attack, as `tables.overview` makes it, with some of its columns; of one encoder where it is named."""
    found = tables.overview(rows()[rows()["encoder"] == encoder] if encoder else rows(), experiments, **options)
    return tables.markdown(found[columns] if columns else found)
