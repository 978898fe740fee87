"""The figures of the sweeps and of synthetic data."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from parlib.measure.selection import kept
from parlib.report.comparison import HOLLOW, POINTS, asr_map, dot_rows
from parlib.report.style import ACCURACY, REMOVED, STYLE, colour, finished, label_ends, legend, listed, name, number, rate, rate_axis

Curves = dict[str, pd.DataFrame]  # by label, of `measure.tradeoff.curves`


def setting(axis: str, value: object) -> str:
    """One option of a trial in words; empty for one that its method does not use."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{name(axis)} {rate(value) if axis == 'lr' else f'{value:g}'}"
    return name(value) if isinstance(value, str) and axis != "batch_norm" else f"{axis.replace('batch_norm', 'BatchNorm')} {value}"


def curve_name(label: str, curve: pd.DataFrame) -> str:
    """A curve in words: its method, what tells it from others (real pairs go without saying), and the range of its knob."""
    knob, axes = curve["knob"].iloc[0], [part.partition(" ")[0] for part in label.split(", ")[1:]]
    said = [setting(axis, curve[axis].iloc[0]) for axis in axes]
    ends = [rate(end) if knob == "lr" else f"{end:g}" for end in curve["value"].iloc[[0, -1]]]
    return ", ".join([name(curve["method"].iloc[0]), *(one for one in said if one != name("scenes")), f"{name(knob)} {' to '.join(ends)}"])


def tau_map(curves: Curves) -> Figure | None:
    """ASR of PAR by curve and tau, with the clean accuracy in brackets; None where tau was varied in one curve at most."""
    runs = {label: curve.set_index("tau") for label, curve in curves.items() if curve["knob"].iloc[0] == "tau"}
    if len(runs) < 2:  # the trade-off shows all of it
        return None
    asr = pd.DataFrame({label: run["attack_success_rate"] for label, run in runs.items()}).T.sort_index(axis=1)
    accuracy = pd.DataFrame({label: run["clean_accuracy"] for label, run in runs.items()}).T.sort_index(axis=1)
    names = [curve_name(label, curves[label]).rpartition(", ")[0] for label in runs]
    return asr_map(asr, accuracy, [f"tau {tau:g}" for tau in asr], names, f"Attack success rate by tau ({ACCURACY} in brackets)")


def tradeoff_curves(curves: Curves, paper: dict[str, list[tuple[float, float]]]) -> Figure | None:
    """Clean accuracy against ASR along each method's own knob, the paper's points apart; None where no knob was varied alone."""
    if not curves:
        return None
    every, ends, labels = pd.concat(curves.values()), [], []
    with plt.rc_context(STYLE):
        figure, (ours, theirs) = plt.subplots(1, 2, figsize=(12.4, 3.9), sharey=True)
        rate_axis(ours)
        for label, curve in curves.items():
            paint, x, y = colour(curve["method"].iloc[0]), curve["clean_accuracy"], curve["attack_success_rate"]
            ours.plot(x, y, "-", color=paint, lw=1.2)
            ours.scatter(x, y, s=[10 + 60 * i / len(curve) for i in range(len(curve))], color=paint, lw=0)
            ends.append((x.iloc[-1], y.iloc[-1], curve_name(label, curve), paint))
        start = every[["poisoned_clean_accuracy", "poisoned_asr"]].drop_duplicates()
        ours.plot(*start.to_numpy().T, "s", color=colour("none"))
        ends.append((*start.iloc[0], name("none"), colour("none")))
        for label, points in paper.items():
            paint = colour({"poisoned": "none", "CleanCLIP": "cleanclip"}.get(label, "par"))
            theirs.plot(*zip(*points, strict=True), "s" if len(points) == 1 else "o--" if "," in label else "o-", color=paint, ms=4)
            labels.append((*points[-1], label, paint))
        for ax, title, texts in ((ours, "here", ends), (theirs, "the paper (another scale)", labels)):
            ax.set(title=title, xlabel=ACCURACY)
            label_ends(ax, texts)
    good = every[kept(every) & (every["attack_success_rate"] <= REMOVED)]
    able = listed(map(name, good["method"])) if len(good) else "no method"
    note = "Along each curve one knob grows with the dots, all else being the same; down and to the right is better."
    return finished(figure, f"An ASR of {REMOVED:g} or less within {POINTS}: {able}", note)


def distances(trials: pd.DataFrame) -> Figure | None:
    """How far PAR's encoders got from the poisoned model, at most and at the end, over tau; None where no trial is PAR's."""
    runs = trials[trials["method"] == "par"].sort_values("tau")
    if runs.empty:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), sharey=True)
        for ax, tower, symbol in zip(axes, ("image", "text"), (r"$S_\phi$, images", r"$S_\psi$, texts"), strict=True):
            ax.plot(runs["tau"], runs[f"s_{tower}_max"], "o", color="#2ca02c", label="largest S")
            ax.plot(runs["tau"], runs[f"s_{tower}_end"], "x", color="#9467bd", label="mean of the last tenth of the steps")
            top = max([0.1, *runs["tau"]])
            ax.plot([0, top], [0, top], "--", color="black", lw=0.9, label="S = tau")
            ax.set(title=symbol, xlabel="tau")
        axes[0].set_ylabel("S, squared distance")
        axes[0].legend(fontsize=8)
    largest = runs[["s_image_max", "s_text_max"]]
    passed = runs.loc[largest.min(axis=1) >= runs["tau"], "tau"]
    said = f"Both encoders pass tau up to {passed.max():g}" if len(passed) else "No trial takes both encoders past tau"
    return finished(figure, f"{said}; the largest S of all is {largest.max(axis=None):.2f}")


def settings(trials: pd.DataFrame, axes: list[str]) -> Figure | None:
    """Clean accuracy and ASR of every trial, a row a trial, named by the axes of the sweep; None where there is none."""
    if trials.empty:
        return None
    telling = [axis for axis in axes if trials[axis].astype(str).nunique() > 1] or axes
    names = [", ".join(filter(None, (setting(axis, trial[axis]) for axis in telling))) for trial in trials.to_dict("records")]
    points = trials.assign(x=trials["clean_accuracy"], y=range(len(trials)), kept=kept(trials))
    with plt.rc_context(STYLE):
        figure, _ = dot_rows(points, dict(enumerate(names)), ACCURACY)
    good = int((points["kept"] & (points["attack_success_rate"] <= REMOVED)).sum())
    return finished(figure, f"{good} of {len(trials)} settings leave an ASR of {REMOVED:g} or less within {POINTS}", HOLLOW)


def synthetic_view(trials: pd.DataFrame, gaps: pd.DataFrame) -> Figure | None:
    """Clean accuracy and ASR of each method by its data, a row a set, by distance from the scenes; None where no trial ended."""
    points = trials.dropna(subset=["clean_accuracy"]).merge(gaps, on=["data", "pairs"]).sort_values("gap", kind="stable")
    if points.empty:
        return None
    sets, methods = points.drop_duplicates("data"), list(dict.fromkeys(points["method"]))
    ticks = {float(i): f"{name(row.data)} ({row.gap:.2f})" for i, row in enumerate(sets.itertuples())}
    places = points["data"].map(list(sets["data"]).index) + 0.2 * (points["method"].map(methods.index) - (len(methods) - 1) / 2)
    with plt.rc_context(STYLE):
        figure, left = dot_rows(points.assign(x=points["clean_accuracy"], y=places, kept=kept(points)), ticks, ACCURACY)
        left.axvline(points["poisoned_clean_accuracy"].iloc[0], ls="--", color="black", lw=0.8)
        legend(figure, methods)
    par = points[points["method"] == methods[0]]["clean_accuracy"]
    near, far = number(par.iloc[0]), number(par.iloc[-1])
    title = f"{name(methods[0])} ends at a clean accuracy of {near} with the nearest set, of {far} with the farthest"
    note = f"In brackets: Fréchet distance from the scenes. Dashed: before cleaning. {HOLLOW} At a low accuracy an ASR near 0 says nothing."
    return finished(figure, title, note)
