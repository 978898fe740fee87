"""The figures of the sweeps and of synthetic data, in the style of `parlib.report.figures`."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from parlib.data.scenes import Pairs
from parlib.report.figures import COLOUR, NAME, STYLE, asr_map, colour, credit, finished, legend, nothing, show
from parlib.external.stream import Stream


def tau_map(curves: dict[str, pd.DataFrame]) -> Figure:
    """ASR of PAR by curve and tau, with the clean accuracy below it."""
    runs = {label: curve.set_index("tau") for label, curve in curves.items() if curve["knob"].iloc[0] == "tau"}
    if not runs:
        return nothing("no curve of PAR over tau")
    asr, accuracy = (
        pd.DataFrame({label: run[name] for label, run in runs.items()}).T.sort_index(axis=1)
        for name in ("attack_success_rate", "clean_accuracy")
    )
    rows = [NAME["par"] + label.removeprefix("par").replace(", ", "\n") for label in runs]
    return asr_map(asr, accuracy, columns=[f"tau {tau:g}" for tau in asr.columns], rows=rows)


def tradeoff_curves(curves: dict[str, pd.DataFrame], paper: dict[str, list[tuple[float, float]]]) -> Figure:
    """Clean accuracy against ASR along each method's own knob, its values beside the points; the paper's points apart."""
    if not curves:
        return nothing("no method's own knob was varied alone")
    with plt.rc_context(STYLE):
        figure, (ours, theirs) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
        for style, (label, curve) in zip(itertools.cycle(("o-", "s--", "^:", "v-.", "P-", "X--", "D:")), curves.items(), strict=False):
            method = curve["method"].iloc[0]
            ours.plot(curve["clean_accuracy"], curve["attack_success_rate"], style, color=colour(method), ms=4, label=_label(label, curve))
            for point in curve.itertuples():
                place = (point.clean_accuracy, point.attack_success_rate)
                ours.annotate(f"{point.value:g}", place, fontsize=6, xytext=(3, 3), textcoords="offset points")
        start = pd.concat(curves.values())[["poisoned_clean_accuracy", "poisoned_asr"]].drop_duplicates()
        ours.plot(start["poisoned_clean_accuracy"], start["poisoned_asr"], "s", color=COLOUR["poisoned"], label="poisoned")
        for label, points in paper.items():
            method = {"poisoned": "none", "CleanCLIP": "cleanclip"}.get(label, "par")
            theirs.plot(*zip(*points, strict=True), "o--" if "," in label else "o-", color=colour(method), ms=4, label=label)
        ours.set_yscale("symlog", linthresh=0.01)
        ours.set_yticks([0, 0.005, 0.01, 0.1, 1], ["0", "0.005", "0.01", "0.1", "1"])
        ours.set(title="here (ASR: logarithmic from 0.01)", ylabel="attack success rate", ylim=(-0.001, 1.2))
        theirs.set(title="the paper's points, read off its figure", ylim=(-0.04, 1.04))
        for ax in (ours, theirs):
            ax.set(xlabel="clean accuracy")
            ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)  # below: curves may lie anywhere
    return finished(figure)


def _label(label: str, curve: pd.DataFrame) -> str:
    method = curve["method"].iloc[0]
    return f"{NAME.get(method, method)}{label.removeprefix(method)} ({curve['knob'].iloc[0]})"


def distances(trials: pd.DataFrame) -> Figure:
    """How far PAR's encoders got from the poisoned model, at most and at the end, over tau: below the dashed line tau never bound."""
    runs = trials[trials["method"] == "par"].sort_values("tau")
    if runs.empty:
        return nothing("no trial of PAR")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
        for ax, tower, symbol in zip(axes, ("image", "text"), (r"$S_\phi$ (image)", r"$S_\psi$ (text)"), strict=True):
            for end, marker, paint in (("max", "o", "#2ca02c"), ("end", "x", "#9467bd")):
                if f"s_{tower}_{end}" in runs:
                    label = "largest" if end == "max" else "mean of the last tenth of the steps"
                    ax.plot(runs["tau"], runs[f"s_{tower}_{end}"], marker, color=paint, label=label)
            top = max([0.1, *runs["tau"]])
            ax.plot([0, top], [0, top], "--", color="black", lw=0.9, label="S = tau")
            ax.set(xlabel="tau", title=symbol)
        axes[0].set_ylabel("squared distance")
        axes[0].legend(fontsize=7)
    return finished(figure)


def settings(trials: pd.DataFrame, axes: list[str]) -> Figure:
    """Clean accuracy and ASR of every trial, a row a trial, named by the axes of the sweep."""
    names = [", ".join(_said(axis, trial[axis]) for axis in axes) for trial in trials.to_dict("records")]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 1 + 0.22 * len(trials)), layout="constrained", sharey=True)
        for ax, metric, label in ((left, "clean_accuracy", "clean accuracy"), (right, "attack_success_rate", "attack success rate")):
            ax.scatter(trials[metric], range(len(trials)), color=[colour(method) for method in trials["method"]], s=18)
            ax.set(xlabel=label, yticks=range(len(trials)), yticklabels=names)
        left.invert_yaxis()
        right.set_xscale("symlog", linthresh=0.01)
        right.set_xlim(-0.001, 1.1)
    return finished(figure)


def _said(axis: str, value: object) -> str:
    if axis == "batch_norm":
        return f"BatchNorm {value}"
    return value if isinstance(value, str) else f"{axis} {value:g}"


def samples(sets: dict[str, Pairs | Stream], columns: int = 8) -> Figure:
    """A row of pictures of each set of pairs."""
    figure, axes = plt.subplots(len(sets), columns, figsize=(1.2 * columns, 1.3 * len(sets)), layout="constrained", squeeze=False)
    for row, (name, pairs) in zip(axes, ((name, pairs.first(columns)) for name, pairs in sets.items()), strict=True):
        for i, ax in enumerate(row):
            shown = pairs.names[pairs.labels[i]] if pairs.names else ""
            show(ax, pairs.pixels[i], f"{name}: {shown}" if i == 0 else shown)
    credit(figure)
    return finished(figure)


def synthetic_view(trials: pd.DataFrame, gaps: pd.DataFrame) -> Figure:
    """Clean accuracy and ASR of each method by the data it cleaned with, over the data's gap to the scenes and its diversity."""
    points = trials.merge(gaps, on=["data", "pairs"])
    metrics = {"clean_accuracy": "clean accuracy", "attack_success_rate": "attack success rate"}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(9, 5.6), layout="constrained", sharey="row", sharex="col")
        measures = {"gap": "Fréchet distance from the scenes", "diversity": "Vendi score"}
        for row, (metric, label) in zip(axes, metrics.items(), strict=True):
            for ax, (measure, words) in zip(row, measures.items(), strict=True):
                for method, runs in points.groupby("method", sort=False):
                    ax.plot(runs[measure], runs[metric], "o", color=colour(method), ms=7, mfc="none", mew=1.5)
                for point in points.drop_duplicates("data").to_dict("records"):
                    ax.annotate(point["data"], (point[measure], point[metric]), fontsize=6, xytext=(4, 4), textcoords="offset points")
                ax.set_xlabel(words if metric == "attack_success_rate" else "")
            row[0].set_ylabel(label)
        axes[1][0].set_ylim(-0.005, max(0.105, 1.05 * points["attack_success_rate"].max()))  # differences of a few scenes stay small
        legend(figure, list(dict.fromkeys(points["method"])))
    return finished(figure)
