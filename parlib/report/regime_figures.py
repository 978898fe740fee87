"""What a cleaning costs where clean pairs are few or show few classes: figures of the experiment `regimes`."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from parlib.measure.selection import KNOBS, MARGIN, blind, seen_accuracy
from parlib.report import style
from parlib.report.regimes import REGIME, classes_of, costs, frontier, least_cost, title_of
from parlib.report.style import REMOVED, STYLE, colour, cost_axis, finished, in_order, label_ends, listed, name, points, rate, rate_axis


def frontiers(found: pd.DataFrame, runs_of_today: pd.DataFrame) -> Figure | None:
    """The ASR that each method leaves at each cost: a panel a regime, a dot a trial, a line a method; None where there is no trial.
    runs_of_today, rows of the same columns, are drawn in as crosses.
    """
    if found.empty:
        return None
    panels = [runs for _, runs in found.groupby(REGIME, sort=False)]
    columns = -(-len(panels) // (lines := -(-len(panels) // 3)))
    with plt.rc_context(STYLE):
        size = (1.2 + 3.4 * columns, 0.6 + 2.9 * lines)
        figure, axes = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
        for i, (ax, runs) in enumerate(zip(axes.flat, panels, strict=False)):
            lowest = i + columns >= len(panels)  # nothing is drawn below it
            rate_axis(ax, label=ax in axes[:, 0])
            ax.set(title=title_of(runs.iloc[0]), xlabel="clean accuracy lost, in points" if lowest else "")
            ax.tick_params(labelbottom=lowest)
            cost_axis(ax, points(found["cost"].min()), "x")
            _panel(ax, runs)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        _draw_today(axes, panels, runs_of_today)
    note = (
        f"Validation scenes, BadNet-Stripes, single runs; {_budget(found)}. A dot is a trial, the line a method's lowest ASR at a cost. "
        f"Ring: what the blind rule takes with a margin of {100 * MARGIN:.0f} points (dashed), without the trigger."
    )
    return finished(figure, _finding(found), note + (" Crosses: the runs of make reproduce, test scenes." if len(runs_of_today) else ""))


def by_regime(found: pd.DataFrame) -> Figure | None:
    """The lowest ASR within MARGIN and what a removal costs, over the regimes: a panel of each an encoder, a line a method. Regimes of all
    classes are joined by pairs, those of a part of them stand apart; None where there is no trial of a backdoor planted in fine-tuning.
    """
    table = costs(found[found["planted"] == "finetuning"])
    if table.empty:
        return None
    encoders = [(encoder, _placed(ours)) for encoder, ours in table.groupby("encoder", sort=False)]
    widths = [max(2, ours["place"].nunique()) for _, ours in encoders]
    with plt.rc_context(STYLE):
        size = (2.2 + 1.6 * sum(widths), 3.7)
        figure, axes = plt.subplots(1, 2 * len(encoders), figsize=size, sharey=False, squeeze=False, width_ratios=[*widths, *widths])
        for left, right, (encoder, ours) in zip(axes[0], axes[0, len(encoders) :], encoders, strict=False):
            labels = ours.drop_duplicates("place").sort_values("place")
            for ax in (left, right):
                words = [f"{run.pairs:,.0f}\n{classes_of(run.coverage).replace(' of', chr(10) + 'of')}" for run in labels.itertuples()]
                ax.set_xticks(labels["place"], words, fontsize=8)
                ax.set_xlim(-0.5, max(labels["place"]) + 0.5)
                for edge in labels["place"][labels["coverage"].diff() < 0]:
                    ax.axvline(edge - 0.5, color="black", lw=0.8)
            rate_axis(left, label=left is axes[0, 0])
            left.axhline(REMOVED, ls=":", color="black", lw=0.8)
            left.set_title(name(encoder) + (f": lowest ASR within {100 * MARGIN:.0f} points" if left is axes[0, 0] else ""))
            _lines(left, ours, "within_asr")
            _lines(right, ours, "cost")
            cost_axis(right, table["cost"].min())
            if right is axes[0, len(encoders)]:
                right.set(title=f"{name(encoder)}: cost of an ASR of at most {REMOVED:g}", ylabel="clean accuracy lost, in points")
            else:
                right.set_title(name(encoder))
        style.legend(figure, in_order(table, ["method"])["method"])
    able = table.assign(able=table["within_asr"] <= REMOVED)
    ran = able.groupby("method")["able"].agg(["sum", "size"]).sort_values("sum", ascending=False)
    said = listed(f"{name(str(method))} in {able} of {searched}" for method, able, searched in ran[ran["size"] > 1].itertuples())
    note = (
        f"Over the number of clean pairs and the classes that they show. Validation scenes, BadNet-Stripes, single runs; {_budget(found)}. "
        f"Cross: left, no trial costs so little; right, none removes it. Points of a regime stand side by side. Dotted: ASR {REMOVED:g}."
    )
    title = f"Removed for {100 * MARGIN:.0f} points of clean accuracy or less, of two or more regimes: {said}"
    return finished(figure, title, note)


def _placed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of an encoder, each with the place of its regime: by coverage and pairs, the most first."""
    places = table[["pairs", "coverage"]].drop_duplicates().sort_values(["coverage", "pairs"], ascending=False, ignore_index=True)
    return table.merge(places.assign(place=places.index))


def _lines(ax: Axes, table: pd.DataFrame, column: str) -> None:
    """Draw a column over the places of the regimes, a line a method, and a cross at the top where it has no value."""
    apart = 0.6 / table["method"].nunique()
    for i, (method, runs) in enumerate(table.assign(place=table["place"] - 0.3).groupby("method", sort=False)):
        runs = runs.assign(place=runs["place"] + apart * (i + 0.5))
        paint, ours, none = colour(str(method)), runs.dropna(subset=[column]).sort_values("place"), runs[runs[column].isna()]
        if len(none):
            ax.plot(none["place"], [0.98] * len(none), "x", color=paint, ms=6, transform=ax.get_xaxis_transform(), clip_on=False)
        for _, joined in ours.groupby("coverage"):
            ax.plot(joined["place"], joined[column], "o-", color=paint, ms=5, lw=1.6)


def _panel(ax: Axes, runs: pd.DataFrame) -> None:
    ax.axvline(100 * MARGIN, ls="--", color="black", lw=0.8)
    ends = []
    for method, ours in runs.groupby("method", sort=False):
        paint, best, chosen = colour(str(method)), frontier(ours), ours.loc[blind(ours)]
        ax.plot(100 * ours["cost"], ours["attack_success_rate"], "o", ms=3.5, color=paint, alpha=0.45, mew=0)
        ax.plot(100 * best["cost"], best["attack_success_rate"], "-", drawstyle="steps-post", color=paint, lw=1.6)
        ax.plot(100 * chosen["cost"], chosen["attack_success_rate"], "o", ms=10, color=paint, mfc="none")
        ends.append((100 * best["cost"].iloc[-1], best["attack_success_rate"].iloc[-1], name(method), paint))
    label_ends(ax, ends, gap=0.075)


def _draw_today(axes: Any, panels: list[pd.DataFrame], runs_of_today: pd.DataFrame) -> None:
    for ax, runs in zip(axes.flat, panels, strict=False):
        same = runs_of_today[(runs_of_today[REGIME] == runs[REGIME].iloc[0]).all(axis=1)]
        for run in same.to_dict("records"):
            cost = 100 * (run["poisoned_clean_accuracy"] - run["clean_accuracy"])
            ax.plot(cost, run["attack_success_rate"], "X", ms=9, color=colour(run["method"]), mec="white", zorder=4)


def _finding(found: pd.DataFrame) -> str:
    """What the cheapest removal costs, from the regime in which that is least to the one in which it is most."""
    table = costs(found)
    cheapest = table[table["removed"]].groupby(REGIME, sort=False)["cost"].min()
    if cheapest.empty:
        return "No method removes the backdoor in any of these regimes"
    span = " to ".join(dict.fromkeys(f"{end:.1f}" for end in (cheapest.min(), cheapest.max())))
    return f"In each regime the cheapest removal (an ASR of at most {REMOVED:g}) costs {span} points of clean accuracy"


def by_tau(found: pd.DataFrame, elsewhere: pd.DataFrame) -> Figure | None:
    """Clean accuracy on the classes that the pairs don't show, on those that they show, and ASR, over PAR's tau: a line a rate, a column a
    regime: those that leave classes unseen, and that in which the most taus were tried; elsewhere: trials of another kind of machine, in
    columns of their own. None where PAR was not tried with two values.
    """
    runs = pd.concat([found.assign(machine=""), elsewhere.assign(machine="\non another CPU")], ignore_index=True)
    runs = runs[(runs["method"] == "par") & runs["tau"].notna()]
    panels = [part for _, part in runs.groupby([*REGIME, "machine"], sort=False) if part["tau"].nunique() > 1]
    most = max((part["tau"].nunique() for part in panels), default=0)
    panels = [part for part in panels if part["clean_accuracy_unseen"].notna().any() or part["tau"].nunique() == most]
    panels = sorted(panels, key=lambda part: part["clean_accuracy_unseen"].isna().all())  # where all rows have something to show first
    if not panels:
        return None
    measures = {"own": "accuracy, classes shown", "attack_success_rate": style.ASR}
    if any(part["clean_accuracy_unseen"].notna().any() for part in panels):
        measures = {"clean_accuracy_unseen": "accuracy, other classes"} | measures
    speeds = sorted(pd.concat(panels)["lr"].unique())
    paints = dict(zip(speeds, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(speeds))), strict=True))
    with plt.rc_context(STYLE):
        size = (1.6 + 3.2 * len(panels), 2.4 * len(measures))
        figure, axes = plt.subplots(len(measures), len(panels), figsize=size, sharex=True, sharey="row", squeeze=False)
        for column, part in zip(axes.T, panels, strict=True):
            own = part.assign(own=seen_accuracy(part))
            column[0].set_title(title_of(part.iloc[0]) + part["machine"].iloc[0])
            for ax, (measure, label) in zip(column, measures.items(), strict=True):
                if measure == "attack_success_rate":
                    rate_axis(ax, label=ax is axes[-1, 0])
                if own[measure].isna().all():  # pairs of all classes leave none unseen
                    ax.set_axis_off()
                ax.set(ylabel=label if column[0] is axes[0, 0] else "", xlabel="tau" if ax is column[-1] else "")
                for speed, line in own.sort_values("tau").groupby("lr"):
                    ax.plot(line["tau"], line[measure], "o-", ms=3.5, lw=1.3, color=paints[speed])
        every = [Line2D([], [], marker="o", ms=3.5, lw=1.3, color=paints[speed], label=f"lr {rate(float(str(speed)))}") for speed in speeds]
        figure.legend(handles=every, loc="outside right center")
    return finished(figure, _over_tau(panels), "Validation scenes, single runs.")


def _over_tau(panels: list[pd.DataFrame]) -> str:
    """What the largest tau costs beside the smallest, at the rates that were run with both."""
    names, ends = ["own", "clean_accuracy_unseen"], []
    for part in panels:
        own = part.assign(own=seen_accuracy(part)).sort_values("tau")
        ends += [line[names].iloc[0] - line[names].iloc[-1] for _, line in own.groupby("lr") if line["tau"].nunique() > 1]
    if not ends:
        return "What PAR keeps and removes over tau"
    most = pd.DataFrame(ends).astype(float).max()
    said = f"up to {points(most['own']):.0f} points of accuracy on the classes that the pairs show"
    if pd.notna(most["clean_accuracy_unseen"]):
        said += f", up to {points(most['clean_accuracy_unseen']):.0f} on the others"
    return f"The largest tau costs PAR {said}, beside the smallest at the same rate"


def by_share(found: pd.DataFrame) -> Figure | None:
    """ASR, and cost in clean accuracy, over the share of the poisoned weights that a cleaned model is given back: a line a method, at the
    setting of its cheapest removal; None where nothing was given back.
    """
    given = found[found["interpolation"].notna()]
    if given.empty:
        return None
    settings = [*REGIME, "method", "lr", *KNOBS]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True)
        ends: list[tuple[float, float, str, str]] = []
        said = []
        for method, runs in given.groupby("method", sort=False):
            if (best := least_cost(runs)) is not None:
                said.append(f"{name(str(method))} {points(best['cost']):.1f}")
            same = (found[settings].fillna(-1) == (runs.iloc[0] if best is None else best)[settings].fillna(-1)).all(axis=1)
            line, paint = found[same].fillna({"interpolation": 0.0}).sort_values("interpolation"), colour(str(method))
            share, label = 100 * line["interpolation"], f"{name(method)}, {rate(line['lr'].iloc[0])}"
            left.plot(share, line["attack_success_rate"], "o-", ms=4, lw=1.6, color=paint)
            right.plot(share, 100 * line["cost"], "o-", ms=4, lw=1.6, color=paint)
            ends.append((share.iloc[-1], 100 * line["cost"].iloc[-1], label, paint))
        rate_axis(left)
        left.axhline(REMOVED, ls=":", color="black", lw=0.8)
        left.set(title="ASR", xlabel="share given back, in %")
        right.set(title="Clean accuracy lost, in points", xlabel="share given back, in %")
        label_ends(right, ends, gap=0.075)
    note = f"{title_of(given.iloc[0])}. Validation scenes, BadNet-Stripes, single runs. Dotted: an ASR of {REMOVED:g}."
    return finished(figure, f"A removal with a share of the poisoned weights given back costs, in points: {listed(said)}", note)


def _budget(found: pd.DataFrame) -> str:
    """How many trials each method had in each regime, in words."""
    counts = sorted(found.groupby([*REGIME, "method"], dropna=False).size().unique(), reverse=True)
    return f"each method {' or '.join(map(str, counts))} trials"
