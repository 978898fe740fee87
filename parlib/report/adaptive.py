"""Which attacker beats which method: a figure, a table and what they say; from the records of 08_adaptive."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from parlib.attack.adaptive import ATTACKERS
from parlib.experiments.adaptive import Adapted
from parlib.experiments.examined import CONTROLS
from parlib.experiments.params import Params
from parlib.report import style
from parlib.report.rebound import alike, models
from parlib.report.style import (
    ACCURACY,
    ASR,
    REMOVED,
    STYLE,
    colour,
    finished,
    in_order,
    left_over,
    listed,
    name,
    number,
    points_lost,
    rank,
)

_PRETRAINING = "plants it in pretraining"


def idea(params: Mapping[str, Any]) -> str:
    """An attacker in words, from the parameters of a record."""
    does = ATTACKERS[params["attacker"]].idea
    if params["planted"] == "finetuning":
        return does
    return _PRETRAINING if params["attacker"] == "plain" else f"{does}, in pretraining"


def label(params: Mapping[str, Any]) -> str:
    """The same behind the attacker's name, but for the plain one."""
    return idea(params) if params["attacker"] == "plain" else f"{params['attacker'].replace('_', '-')}: {idea(params)}"


def _named(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"attacker": label(params), "method": params["method"], "rounds": params["rounds"]}


def results(records: Iterable[dict[str, Any]], like: Params) -> pd.DataFrame:
    """A row a published run of 08, of one round, in the setting of some parameters: `attacker` in words, the method, and its metrics."""
    rows = [record["metrics"] | _named(record["params"]) for record in records if alike(record, like)]
    return _sorted(pd.DataFrame(rows, columns=None if rows else ["attacker", "method", "rounds"]))


def compared(found: Adapted, records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The row of a run, and those of the published runs beside it at the scale small."""
    params: Any = found.result.params
    own = found.result.metrics | _named(params.model_dump())
    others = results(records, params) if params.scale == "small" else pd.DataFrame()
    return _sorted(pd.concat([others, pd.DataFrame([own])]).drop_duplicates(["attacker", "method", "rounds"], keep="last"))


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    if rows.empty:
        return rows
    order = [*(label({"attacker": who, "planted": "finetuning"}) for who in ATTACKERS), _PRETRAINING]
    place = rows["attacker"].map(lambda who: order.index(who) if who in order else len(order))
    return in_order(rows.assign(place=place), ["place", "method", "rounds"]).drop(columns="place").reset_index(drop=True)


def _asr(rows: pd.DataFrame) -> pd.Series:
    """The ASR of each row, of several triggers the worst."""
    return rows.get("worst_asr_of_triggers", pd.Series(np.nan, rows.index)).fillna(rows["attack_success_rate"]).astype(float)


def _cleaned(rows: pd.DataFrame) -> pd.DataFrame:
    """The first row of each attacker and method, controls left out, with its `asr`."""
    found = rows[~rows["method"].isin(CONTROLS)].drop_duplicates(["attacker", "method"])
    return found.assign(asr=_asr(found))


def matrix(rows: pd.DataFrame) -> Figure | None:
    """The ASR that each method leaves of each attacker's backdoor, and what it costs: a row an attacker, a column a method. None where no
    model was cleaned.
    """
    found = _cleaned(rows)
    if found.empty:
        return None
    table = found.pivot_table(index="attacker", columns="method", values="asr", sort=False)
    table = table[[method for method in dict.fromkeys(in_order(found, ["method"])["method"]) if method in table]]
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, ax = plt.subplots(figsize=(4.4 + 1.25 * table.shape[1], 0.9 + 0.52 * len(table)))
        heads = found.drop_duplicates("attacker").set_index("attacker")
        within = table[[not _outside(heads.loc[who]) for who in table.index]].reindex(table.index)  # the others have no colour
        image = style.heat(ax, within)
        for (line, who), (column, method) in ((a, b) for a in enumerate(table.index) for b in enumerate(table.columns)):
            cell = found[(found["attacker"] == who) & (found["method"] == method)]
            if len(cell):
                run, asr = cell.iloc[0], table.loc[who, method]
                outside, cost = _outside(run), points_lost(run)
                shown: dict[str, Any] = {"weight": "bold" if asr <= REMOVED and not outside else "normal"}
                shown["color"] = "grey" if outside else style.ink(asr)
                ax.text(column, line, f"{left_over(asr)}\n{cost:.1f} points", ha="center", va="center", fontsize=8, **shown)
        ax.set_xticks(range(table.shape[1]), [name(method) for method in table.columns])
        ax.set_yticks(range(len(table)), [f"{who}\n(planted: {_planted(heads.loc[who])})" for who in table.index], fontsize=8)
        figure.colorbar(image, label=ASR)
    note = "Test scenes, single runs. Each cell: the ASR after the cleaning, its cost in clean accuracy. "
    return finished(figure, _finding(found), note + f"Bold: removed, {REMOVED:g} or below. Grey: outside the caps.")


def _planted(row: pd.Series) -> str:
    return f"ASR {row['poisoned_asr']:.2f}, accuracy {row['poisoned_clean_accuracy']:.3f}{_outside(row)}"


def _outside(row: Mapping[str, Any]) -> str:
    return "" if row.get("within_caps", True) else ", outside the caps"


def _finding(found: pd.DataFrame) -> str:
    """Which method removes how many of the attackers' backdoors, of those that are planted within the caps."""
    within = found["within_caps"].astype(bool) if "within_caps" in found else pd.Series(True, found.index)
    if not within.any():
        return "No attacker plants a backdoor within the caps"
    counts = found[within].groupby("method", sort=False)["asr"].agg(lambda asr: f"{(asr <= REMOVED).sum()} of {len(asr)}")
    return f"Backdoors removed (ASR at most {REMOVED:g}): {listed(f'{name(method)} {said}' for method, said in counts.items())}"


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row an attacker and method: ASR before and after, cost in points, accuracy under the trigger, S of both encoders, and the share
    of S that is a rotation. Strings.
    """
    if rows.empty:
        return rows
    found, made = _cleaned(rows), []
    for run in found.to_dict("records"):
        made.append(
            {
                "attacker": run["attacker"],
                "ASR before": number(run["poisoned_asr"]) + _outside(run),
                "method": name(run["method"]),
                "ASR": left_over(run["asr"]),
                "cost, points": f"{points_lost(run):.1f}",
                "accuracy under the trigger": number(run["triggered_accuracy"]),
                "S of images, captions": f"{run['s_image']:.2f}, {run['s_text']:.2f}",
                "of it a rotation": f"{100 * run['rotated']:.0f} %",
            }
        )
    return pd.DataFrame(made)


def by_attacker(rows: pd.DataFrame, there: pd.DataFrame) -> pd.DataFrame:
    """A row an attacker, a column a method: the ASR that is left, at the cost in points, and the accuracy under the trigger. Strings.
    there: rows of another kind of machine, of which those of other attackers are shown too, with a star.
    """
    made: dict[str, dict[str, str]] = {}
    for run in _cleaned(_sorted(style.starred(rows, there, ["attacker"]))).to_dict("records"):
        head = {"attacker": run["attacker"].partition(":")[0] + run["star"], "ASR before": number(run["poisoned_asr"]) + _outside(run)}
        said = f"{left_over(run['asr'])} at {points_lost(run):.1f}; {run['triggered_accuracy']:.2f}"
        made.setdefault(run["attacker"], head)[name(run["method"])] = said
    return pd.DataFrame(list(made.values())).fillna("")


def turning(rows: pd.DataFrame) -> Figure | None:
    """S of images and captions as it is, and after the best joint rotation: a panel an attacker, a pair of bars a method and encoder."""
    found = _cleaned(rows)
    if found.empty:
        return None
    panels = list(found.groupby("attacker", sort=False))
    with plt.rc_context(STYLE):
        columns = min(3, len(panels))
        lines = -(-len(panels) // columns)
        figure, axes = plt.subplots(lines, columns, figsize=(1.2 + 3.3 * columns, 0.7 + 2.3 * lines), sharey=True, squeeze=False)
        for ax, (who, runs) in zip(axes.flat, panels, strict=False):
            for place, run in enumerate(runs.to_dict("records")):
                for shift, tower in ((-0.2, "image"), (0.2, "text")):
                    ax.bar(place + shift, run[f"s_{tower}"], 0.36, color=colour(run["method"]), alpha=0.35)
                    ax.bar(place + shift, run[f"s_{tower}_aligned"], 0.36, color=colour(run["method"]))
            ax.set_xticks(range(len(runs)), [name(method) for method in runs["method"]], fontsize=7)
            ax.set_title(textwrap.fill(who, 52), fontsize=8)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_ylabel("S, images and captions")
    method = found.loc[found["rotated"].astype(float).idxmax(), "method"]
    shares = [f"{100 * share:.0f}" for share in sorted(found.loc[found["method"] == method, "rotated"])]
    said = f"{' to '.join(dict.fromkeys((shares[0], shares[-1])))} % of {name(method)}'s S is a joint rotation, which removes nothing"
    return finished(figure, said, "Held-out pairs. Pale: S. Full: what is left after the best joint rotation of both encoders.")


def in_rounds(found: Adapted, records: Iterable[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """The rounds of a run by its method, and those of the published runs of the same attacker at the scale small: as many rounds, or
    however many beside a run of one.
    """
    params: Any = found.result.params
    beside = [record for record in records if params.scale == "small" and alike(record, params) and record["params"]["rounds"] > 1]
    beside = [record for record in beside if params.rounds in (1, record["params"]["rounds"])]
    same = [record for record in beside if all(record["params"][name] == getattr(params, name) for name in ("planted", "batch_norm"))]
    tables = {record["params"]["method"]: pd.DataFrame(record["history"]) for record in models(same, params).values()}
    if params.rounds > 1:
        tables[params.method] = found.rounds
    return {method: tables[method] for method in sorted(tables, key=rank)}


def over_rounds(tables: Mapping[str, pd.DataFrame]) -> Figure | None:
    """ASR and clean accuracy over poisonings and cleanings in turn, a line a method; None where there was one round."""
    if not tables:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 3))
        for ax, (measure, words) in zip(axes, (("attack_success_rate", ASR), ("clean_accuracy", ACCURACY)), strict=True):
            for method, rows in tables.items():
                ax.plot(range(len(rows)), rows[measure], "o-", ms=4, lw=1.4, color=colour(method), label=name(method))
            longest = max(tables.values(), key=len)
            steps = [f"{row['model']}\n{row['round']}" for row in longest.to_dict("records")]
            ax.set_xticks(range(len(longest)), steps, fontsize=7)
            if measure == "attack_success_rate":
                style.rate_axis(ax, label=False)
            ax.set_ylabel(words)
        style.legend(figure, tables)
    last = {method: rows.iloc[-1] for method, rows in tables.items()}
    said = listed(f"{row['attack_success_rate']:.3f} at {row['clean_accuracy']:.3f} ({name(method)})" for method, row in last.items())
    return finished(figure, f"ASR and accuracy after the last round: {said}", "Test scenes, single runs; the same clean pairs each time.")
