"""What a cleaning did, or a sweep, from its record: as a terminal shows it at the end, and as a model card does."""

from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import StrictUndefined, Template

from parlib.cache import ROOT
from parlib.experiments.clean_params import ATTACKED
from parlib.measure.detection import PLANTED
from parlib.measure.metrics import interval
from parlib.measure.selection import blind, choose, kept, kept_seen
from parlib.measure.tradeoff import ended, varied
from parlib.records.store import REFERENCE, differences, located, outputs, read_file, same_machine
from parlib.report.comparison import POINTS
from parlib.report.regimes import least_cost
from parlib.report.style import REMOVED, name, points_lost
from parlib.report.sweeps import setting
from parlib.report.tables import markdown, readable, trial_table

_GIVEN = ("poisoned", "normalised", *ATTACKED, "patch", "strength", "data", "pairs", "coverage")  # of a cleaning; the rest is chosen
_RATES = ("clean_accuracy", "attack_success_rate", "triggered_accuracy")


def outcome(record: dict[str, Any]) -> pd.DataFrame:
    """Accuracy and ASR under each trigger that was tried, before and after, with 95 % intervals, and the class that most images move to
    under it; of a run without such tests its own.
    """
    metrics, n = record["metrics"], record["n"]
    others = int(metrics.get("attack_success_rate_n", n))  # images that don't show the target
    path = located(record["artifacts"]["tests"]) if "tests" in record["artifacts"] else None
    if path is not None and path.exists():
        tests = pd.read_csv(path)
    else:
        tests = pd.DataFrame([{"trigger": record["params"]["trigger"], "model": "after"} | {rate: metrics[rate] for rate in _RATES}])
    found = tests[["trigger", "model"]].copy()
    for rate, of in zip(_RATES, (n, others, others), strict=True):
        found[rate] = tests[rate]
        ends = [interval(round(value * of), of) for value in tests[rate]]
        found[[f"{rate}_ci_low", f"{rate}_ci_high"]] = pd.DataFrame(ends, index=found.index)
    return readable(found.join(tests[[column for column in ("moves_to", "moved") if column in tests]]))


def remarks(record: dict[str, Any]) -> list[str]:
    """On how many images the rates stand, how far the encoders have moved, and whether PAR's push ever stopped."""
    metrics, n = record["metrics"], record["n"]
    said = [f"Rates are of {n:,} images, ASRs of the {metrics.get('attack_success_rate_n', n):,} that don't show the target."]
    if "s_image" in metrics:
        said.append(
            f"S, how far a model is from the one before (0 to 4): images {metrics['s_image']:.2f}, captions {metrics['s_text']:.2f}."
        )
    return said + never_passed(record["history"], record["params"].get("tau"))


def never_passed(history: dict[str, list[float]], tau: float | None) -> list[str]:
    """The encoders whose S never passed tau, so that PAR pushed to the end."""
    return [
        f"S of the {tower} encoder ended at {s[-1]:.2f} and never passed tau = {tau:g}: the push never stopped."
        for tower in ("image", "text")
        if tau is not None and (s := history.get(f"s_{tower}")) and max(s) <= tau
    ]


def choices(trials: pd.DataFrame) -> list[str]:
    """Which of a sweep's trials to take, with the trigger and without it, for each method, attacked model and set of clean pairs, at what
    cost.
    """
    axes, trials = varied(trials), ended(trials)
    if trials.empty:
        return ["No trial ran to its end."]
    said = [
        f"Two rules. With the trigger: the cheapest removal, an ASR of {REMOVED:g} or below. Without it: the highest rate within {POINTS}, "
        "of equal ones the largest option."
    ]
    if (before := trials["poisoned_asr"].min()) < PLANTED:
        said.append(f"The ASR was {before:.3f} before the cleanings. Below {PLANTED:g} a removal says little.")
    for (method, *_), runs in trials.groupby(["method", *(axis for axis in _GIVEN if axis in trials)], sort=False, dropna=False):
        for rule, (trial, remark) in (("with the trigger", _removing(runs)), ("without it", _borne(runs))):
            words = ", ".join(filter(None, (setting(axis, trial[axis]) for axis in axes))) or "the only trial"
            seen = pd.notna(trial.get("clean_accuracy_seen"))
            line = f"{name(method)}, {rule}: {words}; an ASR of {trial['attack_success_rate']:.3f} at {points_lost(trial):.1f} points"
            line += f", {points_lost(trial, '_seen'):.1f} on the classes that the pairs show." if seen else "."
            said.append(line + remark)
    return said


def _removing(runs: pd.DataFrame) -> tuple[pd.Series, str]:
    """The cheapest trial that removes the backdoor; where none does, the one that `selection.choose` takes. And what to say of it."""
    best = least_cost(runs.assign(cost=runs["poisoned_clean_accuracy"] - runs["clean_accuracy"]))
    if best is not None:
        return best, _at_highest(best, runs)
    trial, why = runs.loc[choose(runs)], f"lowest ASR within {POINTS}" if kept(runs).any() else "highest accuracy minus ASR"
    return trial, f" No trial removes the backdoor: this one has the {why}.{_at_highest(trial, runs)}"


def _borne(runs: pd.DataFrame) -> tuple[pd.Series, str]:
    """The trial that the blind rule takes, and what to say of it."""
    trial = runs.loc[blind(runs)]
    if kept_seen(runs).any():
        return trial, _at_highest(trial, runs)
    return trial, " No trial is within: this one has the highest accuracy on the classes that the pairs show."


def _at_highest(trial: pd.Series, runs: pd.DataFrame) -> str:
    highest = runs["lr"].nunique() > 1 and trial["lr"] == runs["lr"].max()
    return " That is the highest rate: add higher ones." if highest else ""


def closing_words(record: dict[str, Any]) -> str:
    """What a terminal shows of a cleaning: its table, what to know of it, where its notebook is, and how to export its model; of a sweep
    its trials and which of them to take.
    """
    params, run = record["params"], record["run"]
    if "space" in params:
        trials = pd.DataFrame(record["history"])
        table, said, further = trial_table(trials, ["method", *varied(trials)]), choices(trials), []
    else:
        table, said = outcome(record), remarks(record)
        further = [f"export the model with: python -m parlib.cli.export --scale {params['scale']} {run}"]
    lines = [f"\n{run}:", table.to_string(index=False), *said]
    if (notebook := outputs(params["scale"]) / f"{run}.ipynb").exists():
        lines.append(f"notebook: {notebook.relative_to(ROOT)}")
    return "\n".join([*lines, *further])


def against_published(record: dict[str, Any]) -> str:
    """How a record's rates differ from the published ones of the same run, in words."""
    path = REFERENCE / f"{record['run']}.json"
    if not path.exists():
        return "is not among the published runs"
    published = read_file(path)
    if not (apart := differences(record, published)):
        return "against outputs/reference: no difference"
    said = ", ".join(f"{rate} {by:+.4f}" for rate, by in apart.items())
    return f"against outputs/reference: {said}" + ("" if same_machine(record, published) else " (on another kind of machine)")


def card(record: dict[str, Any]) -> str:
    """A model card in Markdown: what was done to the model, with which parameters, what was measured under every trigger that was tried,
    what to know of it, and how to load the model.
    """
    text = Path(__file__).with_name("card.txt").read_text()
    template = Template(text, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    return template.render(record=record, triggers=markdown(outcome(record)), remarks=remarks(record))
