"""What further training does to a cleaned model: curves, the line of weights back, and a table; from the records of 07_rebound."""

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from parlib.experiments.examined import CONTROLS
from parlib.experiments.params import Params
from parlib.experiments.rebound import Rebounded, worst_look
from parlib.report.style import ACCURACY, ASR, REMOVED, STYLE, colour, finished, listed, name, number, points, rank, rate, rate_axis

_MEASURES = {"attack_success_rate": ASR, "clean_accuracy": ACCURACY}
# What two models that are compared have in common; a model that is named (cleaned) may have been cleaned in any other setting.
TELLING = ("trigger", "encoder", "attack", "target", "pairs", "coverage", "seed", "rates", "look_at", "retuned")


def label(params: Mapping[str, Any]) -> str:
    """A model in a legend, from the parameters of its record: its method, and BatchNorm where it was frozen while cleaning."""
    frozen = params["method"] not in CONTROLS and params["batch_norm"] == "frozen"
    return f"{params['method']}, frozen" if frozen else params["method"]


def alike(record: dict[str, Any], like: Params) -> bool:
    """Whether a record is of a model that can be compared with one of these parameters: of the same notebook and setting."""
    params = record["params"]
    if record["notebook"] != like.notebook or params["cleaned"]:
        return False
    return all(params[name] == getattr(like, name) for name in TELLING if name in type(like).model_fields)


def models(records: Iterable[dict[str, Any]], like: Params) -> dict[str, dict[str, Any]]:
    """The records of an experiment by label, in the order in which people meet their methods, of models that differ from one with these
    parameters in their cleaning alone.
    """
    attacker = getattr(like, "attacker", "plain")  # records from before it was a parameter are of the plain one
    found = [record for record in records if alike(record, like) and record["params"].get("attacker", "plain") == attacker]
    return {label(record["params"]): record for record in sorted(found, key=lambda record: rank(record["params"]["method"]))}


def with_others(params: Params, own: pd.DataFrame, records: Iterable[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """The table of a run, and those of the records beside it at the scale small, by label in the order in which people meet them."""
    others = models(records, params) if params.scale == "small" else {}
    tables = {key: pd.DataFrame(record["history"]) for key, record in others.items()} | {label(params.model_dump()): own}
    return {key: tables[key] for key in sorted(tables, key=lambda key: rank(key.partition(",")[0]))}


def compared(found: Rebounded, records: Iterable[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """The looks of a run, and of the published runs beside it at the scale small, by label."""
    return with_others(found.result.params, found.course, records)


def curve(course: pd.DataFrame, treatment: str, **wanted: Any) -> pd.DataFrame:
    """The looks of one treatment by step, from the model before it on; empty where there was no such treatment."""
    rows = course[course["treatment"] == treatment]
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return pd.concat([course[course["treatment"] == "before"], rows]) if len(rows) else rows


def area(course: pd.DataFrame, poisons: int) -> float:
    """The mean ASR over the steps of a retuning, by trapezoids between the looks; NaN where it was not done."""
    rows = curve(course, "retune", poisons=poisons)
    if rows.empty:
        return float("nan")
    steps, asr = rows["step"].to_numpy(float), rows["attack_success_rate"].to_numpy(float)
    return float(np.trapezoid(asr, steps) / steps[-1])


def _panels(tables: Mapping[str, pd.DataFrame], treatments: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """The treatments of some kinds, each with what tells it from the others."""
    every = pd.concat(list(tables.values()))
    found: list[tuple[str, dict[str, Any]]] = []
    for treatment in treatments:
        keys = {"benign": ["lr", "batch_norm"], "retune": ["poisons"]}.get(treatment, [])
        rows = every[every["treatment"] == treatment]
        chosen = rows[keys].drop_duplicates().to_dict("records") if keys else [{}] if len(rows) else []
        found += [(treatment, {str(key): value for key, value in one.items()}) for one in chosen]
    return found


def _title(treatment: str, of: Mapping[str, Any]) -> str:
    if treatment == "benign":
        return f"rate {rate(of['lr'])}, BatchNorm {'frozen' if of['batch_norm'] == 'frozen' else 'trains'}"
    return "a head, encoder unfrozen" if treatment == "head" else f"{of['poisons']:.0f} triggered pairs"


def courses(tables: Mapping[str, pd.DataFrame], *, retuning: bool = False) -> Figure | None:
    """ASR and clean accuracy over the steps: a column a treatment, a line a model. retuning: with triggered pairs; else without. None
    where no model was so treated.
    """
    panels = _panels(tables, ("retune",) if retuning else ("benign", "head"))
    if not panels:
        return None
    with plt.rc_context(STYLE):
        size = (1.9 + 2.45 * len(panels), 4.6)
        figure, axes = plt.subplots(2, len(panels), figsize=size, sharex="col", sharey="row", squeeze=False)
        for column, (treatment, of) in zip(axes.T, panels, strict=True):
            column[0].set_title(_title(treatment, of), fontsize=9)
            for ax, (measure, words) in zip(column, _MEASURES.items(), strict=True):
                _draw(ax, {key: curve(table, treatment, **of) for key, table in tables.items()}, measure)
                ax.set(ylabel=words if ax in axes[:, 0] else "", xlabel="step" if ax is column[-1] else "")
        _legend(figure, tables)
    note = f"{_note(tables)} Steps are not to scale."
    return finished(figure, _retuned(tables, panels) if retuning else _worst(tables), note)


def _draw(ax: Axes, curves: Mapping[str, pd.DataFrame], measure: str) -> None:
    """One treatment: the looks stand at equal distances, as they come at ever longer ones."""
    steps = sorted({step for rows in curves.values() for step in rows["step"]})
    for key, rows in curves.items():
        ax.plot([steps.index(step) for step in rows["step"]], rows[measure], "o" + _dash(key), ms=3, lw=1.4, color=_paint(key))
    ax.set_xticks(range(len(steps)), [f"{step:g}" for step in steps], fontsize=7.5)
    if measure == "attack_success_rate":
        rate_axis(ax, label=False)
        ax.axhline(REMOVED, ls=":", color="black", lw=0.8)


def way_back(tables: Mapping[str, pd.DataFrame]) -> Figure | None:
    """ASR and clean accuracy along the straight line of weights to the poisoned model, a line a model; None where none was walked."""
    lines = {key: rows for key, table in tables.items() if len(rows := table[table["treatment"] == "line"])}
    if not lines:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 3))
        for ax, (measure, words) in zip(axes, _MEASURES.items(), strict=True):
            for key, rows in lines.items():
                ax.plot(rows["share"], rows[measure], "o" + _dash(key), ms=3, lw=1.4, color=_paint(key))
            ax.set(xlabel="share of the way to the poisoned model", ylabel=words, ylim=(-0.03, 1.03))
        _legend(figure, lines)
    halves = {key: rows.loc[(rows["share"] - 0.5).abs().idxmin(), "attack_success_rate"] for key, rows in lines.items()}
    said = listed(f"{asr:.2f} ({model_name(key)})" for key, asr in halves.items())
    return finished(figure, f"Half-way back to the poisoned weights the ASR is {said}", _note(lines))


def holds(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a model: its ASR before, with new statistics, at the worst of the treatments without a trigger and where that was, and the
    mean ASR of each retuning beyond the clean base's. Strings.
    """
    rows, base = [], tables.get("base")
    for key, course in tables.items():
        first = course[course["treatment"] == "before"].iloc[0]
        row = {"model": model_name(key), "clean accuracy": number(first["clean_accuracy"]), "ASR": number(first["attack_success_rate"])}
        fresh = curve(course, "refresh")
        row["new statistics"] = number(fresh["attack_success_rate"].iloc[-1]) if len(fresh) else ""
        worst = worst_look(course)
        row["worst within 300 steps"] = number(worst["attack_success_rate"])
        row["at"] = _place(worst)
        for poisons in sorted(course["poisons"].dropna().unique()) if "poisons" in course else []:
            more = area(course, poisons) - (area(base, poisons) if base is not None else 0.0)
            row[f"{poisons:.0f} triggered pairs, beyond the base"] = f"{points(more):+.1f} points"
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _place(look: pd.Series) -> str:
    if look["treatment"] in ("before", "refresh"):
        return {"before": "its end", "refresh": "new statistics"}[look["treatment"]]
    return f"step {look['step']:.0f}, {_title(look['treatment'], look)}"


def _worst(tables: Mapping[str, pd.DataFrame]) -> str:
    cleaned = {key: table for key, table in tables.items() if key not in CONTROLS} or tables
    said = listed(f"{worst_look(table)['attack_success_rate']:.3f} ({model_name(key)})" for key, table in cleaned.items())
    return f"The worst ASR within 300 benign steps: {said}"


def _retuned(tables: Mapping[str, pd.DataFrame], panels: list[tuple[str, dict[str, Any]]]) -> str:
    most = panels[-1][1]["poisons"]
    ends = {key: curve(table, "retune", poisons=most)["attack_success_rate"].iloc[-1] for key, table in tables.items()}
    return f"With {most:.0f} triggered pairs the ASR ends at {listed(f'{asr:.2f} ({model_name(key)})' for key, asr in ends.items())}"


def _note(tables: Mapping[str, pd.DataFrame]) -> str:
    controls = listed(model_name(key) for key in tables if key in CONTROLS)
    said = "500 test scenes, single runs." if len(tables) > 1 else "500 test scenes."
    return said + (f" Controls, treated alike: {controls}." if controls and len(tables) > 1 else "")


def model_name(key: str) -> str:
    method, _, more = key.partition(", ")
    return name(method) + (f", BatchNorm {more}" if more else "")


def _paint(key: str) -> str:
    return colour(key.partition(",")[0])


def _dash(key: str) -> str:
    return "--" if "," in key else "-"


def _legend(figure: Figure, tables: Mapping[str, pd.DataFrame]) -> None:
    shown = [Line2D([], [], ls=_dash(key), marker="o", ms=4, color=_paint(key), label=model_name(key)) for key in tables]
    figure.legend(handles=shown, loc="outside right center")
