"""The figures that compare methods over runs: at each learning rate, on each attack, in the search, and while they clean."""

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parlib.measure.selection import KNOBS, MARGIN, kept
from parlib.report import style
from parlib.report.rows import ATTACK, MAIN, of, trials
from parlib.report.style import ACCURACY, REMOVED, STYLE, attack_of, colour, finished, in_order, label_ends, listed, name, rate, rate_axis

POINTS = f"{100 * MARGIN:.0f} points of clean accuracy"
HOLLOW = f"Hollow: costs more than {POINTS}. The grey band is linear, down to 0."
_SAME = ["encoder", "method", "trigger", "attack", "seed", "data", "pairs", "epochs", "batch", "schedule", "batch_norm", "split"]


def at_each_rate(rows: pd.DataFrame) -> pd.DataFrame:
    """The trials that differ from a search's chosen one in their learning rate alone: by encoder, method and rate; `chosen`, `kept`."""
    searched, unused = trials(rows), dict.fromkeys(KNOBS, -1.0)
    best = searched[searched["chosen"]]
    tried = rows.dropna(subset=["clean_accuracy"]).sort_values("notebook", kind="stable")  # 02 first: a sweep may repeat its settings
    found = tried.fillna(unused).merge(best[[*_SAME, *KNOBS]].fillna(unused)).drop_duplicates(["encoder", "method", "lr"])
    return in_order(found.assign(chosen=found["run"].isin(best["run"]), kept=kept(found)), ["encoder", "method", "lr"])


def _panels(runs: pd.DataFrame, width: float, beside: float) -> tuple[Figure, list[tuple[Axes, str, pd.DataFrame]]]:
    """A panel over an axis of the ASR for each encoder's runs: `width` inches each, and what stands beside them."""
    blocks = list(runs.groupby("encoder", sort=False))
    figure, axes = plt.subplots(1, len(blocks), figsize=(beside + width * len(blocks), 3.6), sharey=True, squeeze=False)
    for ax in axes[0]:
        rate_axis(ax, label=ax is axes[0, 0])
    return figure, [(ax, str(encoder), block) for ax, (encoder, block) in zip(axes[0], blocks, strict=True)]


def rates(rows: pd.DataFrame) -> Figure | None:
    """The finding: the ASR that each method leaves at each learning rate, a panel an encoder; None where no search was made."""
    found = at_each_rate(rows)
    if found.empty:
        return None
    with plt.rc_context(STYLE):
        figure, panels = _panels(found, 3.5, beside=0.6)
        for ax, encoder, runs in panels:
            ticks, ends = sorted(set(runs["lr"])), []
            ax.set(title=name(encoder), xscale="log", xlabel="peak learning rate", xlim=(ticks[0] / 1.25, ticks[-1] * 1.25))
            ax.set_xticks(ticks, [rate(tick) for tick in ticks])
            ax.set_xticks([], minor=True)
            ax.axhline(REMOVED, ls=":", color="black", lw=0.8)
            for method, line in runs.groupby("method", sort=False):
                paint = colour(str(method))
                ax.plot(line["lr"], line["attack_success_rate"], "-", color=paint, lw=1.6)
                marks = ((line[line["kept"]], 6, paint), (line[~line["kept"]], 6, "white"), (line[line["chosen"]], 12, "none"))
                for marked, size, face in marks:
                    ax.plot(marked["lr"], marked["attack_success_rate"], "o", ms=size, color=paint, mfc=face, zorder=3)
                ends.append((line["lr"].iloc[-1], line["attack_success_rate"].iloc[-1], name(method), paint))
            label_ends(ax, ends)
    note = f"{_measured_on(found)}, single runs; batch and own option of each method as its search chose them. "
    note += f"Ring: the rate that it chose. Dotted: ASR {REMOVED:g}, at or below which a backdoor counts as removed. {HOLLOW}"
    return finished(figure, _finding(found), note)


def _finding(found: pd.DataFrame) -> str:
    """At what share of the others' learning rates PAR removes the backdoor and keeps the accuracy; of each the lowest that was tried."""
    shares, others = [], []
    for encoder, runs in found.groupby("encoder", sort=False):
        low = runs[runs["kept"] & (runs["attack_success_rate"] <= REMOVED)].groupby("method", sort=False)["lr"].min()
        rest = low.drop("par", errors="ignore")
        if "par" not in low or rest.empty or low["par"] >= rest.min():
            return "What each method leaves of the backdoor at each learning rate"
        edge = " or less" if low["par"] == runs.loc[runs["method"] == "par", "lr"].min() else ""
        shares.append(f"1/{rest.min() / low['par']:.2g}{edge} ({name(encoder)})")
        others += map(name, rest.index)
    return f"PAR removes the backdoor at {listed(shares)} of the lowest learning rate that does with {listed(others)}"


def _measured_on(runs: pd.DataFrame) -> str:
    return f"{listed(attack_of(run) for run in runs.to_dict('records'))}, {listed(runs['split'])} images"


def dot_rows(points: pd.DataFrame, ticks: Mapping[float, str], xlabel: str) -> tuple[Figure, Axes]:
    """Two panels with a row for each tick: `x` and the ASR of points at `y`, a colour a method, hollow where not `kept`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 1.1 + 0.3 * (max(ticks) + 1)), sharey=True)
    rate_axis(right, "x")
    paints = [colour(method) for method in points["method"]]
    faces = [paint if good else "white" for paint, good in zip(paints, points["kept"], strict=True)]
    for ax, column in ((left, "x"), (right, "attack_success_rate")):
        ax.scatter(points[column], points["y"], color=faces, edgecolors=paints, s=30, zorder=3)
    left.set(xlabel=xlabel, ylim=(max(ticks) + 0.6, min(ticks) - 0.6))
    left.set_yticks(list(ticks), list(ticks.values()))
    return figure, left


def tradeoff(rows: pd.DataFrame, experiments: Iterable[str] = MAIN) -> Figure | None:
    """What each method costs and what it leaves of the backdoor: a row an attack, means over the seeds; None without a cleaned model."""
    runs = of(rows[rows["notebook"] == "02_clean"], experiments)
    if runs.empty:
        return None
    means = runs.groupby([*ATTACK, "method"], sort=False).mean(numeric_only=True).reset_index()
    means = means.assign(x=100 * (means["poisoned_clean_accuracy"] - means["clean_accuracy"]), kept=kept(means), y=0.0)
    ticks: dict[float, str] = {}
    for encoder, block in means.groupby("encoder", sort=False):
        ticks[max(ticks, default=-0.6) + 0.9] = name(encoder)
        for _, attack in block.groupby(ATTACK, sort=False):
            ticks[place := max(ticks) + 1] = attack_of(attack.iloc[0])
            means.loc[attack.index, "y"] = place + np.linspace(-0.25, 0.25, len(attack)) * (len(attack) > 1)
    with plt.rc_context(STYLE):
        figure, left = dot_rows(means, ticks, "clean accuracy lost, in points")
        left.axvline(100 * MARGIN, ls="--", color="black", lw=0.8)
        for label in left.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in set(map(name, means["encoder"])) else "normal")
        style.legend(figure, means["method"])
    par, title = means[means["method"] == "par"], "What each method costs in clean accuracy, and what it leaves of the backdoor"
    if len(par):
        asr, low, high = par["attack_success_rate"].max(), par["x"].min(), par["x"].max()
        title = f"PAR leaves an ASR of {asr:.3f} at most, for {low:.1f} to {high:.1f} points of clean accuracy"
    seeds = runs.groupby(ATTACK, sort=False)["seed"].nunique()
    counts = " or ".join(map(str, sorted(set(seeds[seeds > 1]))))
    means_of = f"Means over {counts} seeds where an attack has them, else single runs" if counts else "Single runs"
    return finished(figure, title, f"{means_of}; {listed(runs['split'])} images. {HOLLOW}")


def heat_map(rows: pd.DataFrame, experiments: Iterable[str] = MAIN) -> Figure | None:
    """ASR by attack and method, means over the seeds, with the clean accuracy in brackets; None where there is nothing."""
    runs = of(rows, experiments)
    if runs.empty:
        return None
    means = runs.pivot_table(["attack_success_rate", "clean_accuracy"], ATTACK, "method", sort=False)
    methods = in_order(runs, ["method"])["method"].unique()
    asr, accuracy = means["attack_success_rate"][methods], means["clean_accuracy"][methods]
    names = [f"{name(encoder)}: {attack_of({'attack': attack, 'trigger': trigger})}" for encoder, attack, trigger in means.index]
    return asr_map(asr, accuracy, list(map(name, methods)), names, f"Attack success rate ({ACCURACY} in brackets)")


def asr_map(asr: pd.DataFrame, accuracy: pd.DataFrame, columns: list[str], rows: list[str], title: str) -> Figure:
    """A heat map of ASR with the clean accuracy in brackets; of a single row a row of dots for each column."""
    with plt.rc_context(STYLE | {"axes.grid": len(rows) == 1}):
        if len(rows) == 1:
            methods = [column if isinstance(column, str) else "par" for column in asr]
            points = pd.DataFrame({"x": accuracy.iloc[0], "attack_success_rate": asr.iloc[0], "method": methods, "kept": True})
            figure, _ = dot_rows(points.assign(y=range(len(points))), dict(enumerate(columns)), ACCURACY)
            return finished(figure, f"{rows[0]}: {title.partition(' (')[0].lower()}", "The grey band is linear, down to 0.")
        figure, ax = plt.subplots(figsize=(2.6 + 1.05 * len(columns), 1.0 + 0.42 * len(rows)))
        style.heat(ax, asr)
        for (i, j), value in np.ndenumerate(asr.to_numpy()):
            if not np.isnan(value):
                words = f"{value:.3f}\n({accuracy.iloc[i, j]:.3f})"
                ax.text(j, i, words, ha="center", va="center", fontsize=7, color=style.ink(value))
        ax.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return finished(figure, title, "Colours on a log scale, linear below 0.001.")


def search(trials: pd.DataFrame) -> Figure | None:
    """Clean accuracy against ASR of every trial of `rows.trials` by method, one panel an encoder; None where there is none."""
    if trials.empty:
        return None
    with plt.rc_context(STYLE):
        figure, panels = _panels(trials, 4.2, beside=1.4)
        for ax, encoder, ours in panels:
            ax.axvline(ours["limit"].iloc[0], ls="--", color="black", lw=0.8)
            for method, runs in ours.groupby("method", sort=False):
                for shown, size, face in ((runs, 5, colour(str(method))), (runs[runs["chosen"]], 11, "none")):
                    ax.plot(shown["clean_accuracy"], shown["attack_success_rate"], "o", ms=size, color=colour(str(method)), mfc=face)
            ax.set(title=f"{name(encoder)}, {len(ours)} trials", xlabel=ACCURACY)
        style.legend(figure, trials["method"])
    good = trials[kept(trials) & (trials["attack_success_rate"] <= REMOVED)].groupby("method", sort=False)["encoder"].nunique()
    able = listed(map(name, good[good == len(panels)].index)) if (good == len(panels)).any() else "no method"
    title = f"For {able}, settings were found that remove the backdoor within {POINTS}"
    return finished(figure, title, f"{_measured_on(trials)}. Ring: chosen by the rule. Right of the dashed line: within {POINTS}.")


def course(records: list[dict[str, Any]]) -> Figure | None:
    """ASR and clean accuracy while models are cleaned, by their records: a column a learning rate, a colour a trigger; None without."""
    if not records:
        return None
    triggers = list(dict.fromkeys(record["params"]["trigger"] for record in records))
    speeds = sorted({record["params"]["lr"] for record in records}, reverse=True)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, len(speeds), figsize=(0.8 + 4.2 * len(speeds), 5), sharex=True, sharey="row", squeeze=False)
        for (top, low), speed in zip(axes.T, speeds, strict=True):
            rate_axis(top, label=top is axes[0, 0])
            top.set_title(f"peak learning rate {rate(speed)}")
            low.set(xlabel="step", ylabel=ACCURACY if top is axes[0, 0] else "", ylim=(0, 1.02))
            ends = []
            for record in (record for record in records if record["params"]["lr"] == speed):
                history, trigger = record["history"], record["params"]["trigger"]
                paint = f"C{triggers.index(trigger)}"
                for ax, metric in ((top, "look_attack_success_rate"), (low, "look_clean_accuracy")):
                    ax.plot(history["look_step"], history[metric], "o-", ms=3.5, lw=1.3, color=paint)
                ends.append((history["look_step"][-1], history["look_attack_success_rate"][-1], name(trigger), paint))
            label_ends(top, ends, gap=0.08)
    first, last = ([record["history"]["look_attack_success_rate"][at] for record in records] for at in (0, -1))
    methods = listed(name(record["params"]["method"]) for record in records)
    title = f"{methods} takes the ASR of {len(triggers)} triggers from at least {min(first):.2f} to at most {max(last):.3f}"
    return finished(figure, title, "On the images that are watched while a model trains. The grey band is linear, down to 0.")
