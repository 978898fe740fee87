"""Every figure of the notebooks, in one style; each function returns a matplotlib Figure and trains nothing."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parlib.data import Pairs
from parlib.evaluate import EvalSet
from parlib.methods import METHODS

CREDIT = "Glyphs: OpenMoji, CC BY-SA 4.0"
COLOUR = {
    "base": "#7f7f7f", "poisoned": "#d62728", "none": "#d62728", "finetune": "#1f77b4", "cleanclip": "#ff7f0e", "roclip": "#8c564b",
    "par": "#2ca02c", "finetune_augmented": "#17becf", "perturb_only": "#bcbd22",
}  # fmt: skip
NAME = {
    "none": "poisoned", "finetune": "fine-tuning", "cleanclip": "CleanCLIP", "roclip": "RoCLIP", "par": "PAR",
    "finetune_augmented": "PAR without perturbation", "perturb_only": "PAR without augmentation",
}  # fmt: skip
STYLE = {
    "figure.dpi": 90,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "axes.axisbelow": True,
}


def colour(method: str) -> str:
    """A method's colour in every figure."""
    return COLOUR.get(method, "#9467bd")


def _image(ax: Axes, pixels: torch.Tensor, title: str = "") -> None:
    ax.imshow(pixels.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    ax.set_title(title, fontsize=7, pad=2)
    ax.set_axis_off()


def _credit(figure: Figure) -> None:
    figure.text(0.995, -0.005, CREDIT, ha="right", va="top", fontsize=6, color="grey")


def _finished(figure: Figure) -> Figure:
    plt.close(figure)  # the caller shows it; without this a notebook would show it twice
    return figure


def contact_sheet(pairs: Pairs, rows: int = 3, columns: int = 8) -> Figure:
    """Scenes in reading order with their labels."""
    figure, axes = plt.subplots(rows, columns, figsize=(1.25 * columns, 1.45 * rows), layout="constrained")
    for i, ax in enumerate(axes.flat):
        _image(ax, pairs.pixels[i], pairs.names[pairs.labels[i]])
    _credit(figure)
    return _finished(figure)


def trigger_gallery(attacks: dict[str, EvalSet], scenes: int = 4) -> Figure:
    """Each trigger on the same scenes, with the difference from the clean image, four times enlarged, around grey."""
    first = next(iter(attacks.values()))
    figure, axes = plt.subplots(scenes, 1 + 2 * len(attacks), figsize=(1.1 * (1 + 2 * len(attacks)), 1.2 * scenes), layout="constrained")
    for i in range(scenes):
        _image(axes[i, 0], first.pixels[i], "clean" if i == 0 else "")
        for j, (name, attack) in enumerate(attacks.items()):
            change = attack.triggered[i].float() - attack.pixels[i].float()
            _image(axes[i, 1 + 2 * j], attack.triggered[i], name.replace("_", "\n", 1) if i == 0 else "")
            _image(axes[i, 2 + 2 * j], (127.5 + 4 * change).clamp(0, 255).to(torch.uint8), "difference\nx 4" if i == 0 else "")
    _credit(figure)
    return _finished(figure)


def poisoned_pairs(pairs: Pairs, rows: torch.Tensor, columns: int = 6) -> Figure:
    """Some of the poisoned rows with the captions that they were given."""
    columns = min(columns, len(rows))
    figure, axes = plt.subplots(1, columns, figsize=(1.7 * columns, 2.1), layout="constrained", squeeze=False)
    for ax, row in zip(axes[0], rows.tolist(), strict=False):
        words = pairs.captions[row].split()
        _image(ax, pairs.pixels[row], " ".join(words[: len(words) // 2]) + "\n" + " ".join(words[len(words) // 2 :]))
    _credit(figure)
    return _finished(figure)


def before_and_after(models: dict[str, dict[str, float]]) -> Figure:
    """Clean accuracy, accuracy under the trigger and ASR of each model, as bars with 95 % intervals."""
    metrics = {
        "clean_accuracy": "clean accuracy",
        "triggered_accuracy": "accuracy under the trigger",
        "attack_success_rate": "attack success rate",
    }
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
        width = 0.8 / len(models)
        for i, (model, found) in enumerate(models.items()):
            heights = [found[name] for name in metrics]
            errors = [
                [max(0, found[m] - found[f"{m}_ci_low"]) for m in metrics],
                [max(0, found[f"{m}_ci_high"] - found[m]) for m in metrics],
            ]
            places = [j + (i - (len(models) - 1) / 2) * width for j in range(len(metrics))]
            bars = ax.bar(
                places,
                heights,
                width * 0.92,
                yerr=errors,
                label=model,
                color=colour(model),
                error_kw={"lw": 0.8},
            )
            ax.bar_label(bars, [f"{height:.3f}" for height in heights], fontsize=7, padding=2)
        ax.set(xticks=range(len(metrics)), xticklabels=metrics.values(), ylim=(0, 1.12), ylabel="fraction")
        ax.legend(ncols=len(models), loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return _finished(figure)


def training_history(history: dict[str, list[float]], tau: float | None = None) -> Figure:
    """The course of a cleaning: S of both encoders with tau, L_CLIP and the learning rate, accuracy and ASR."""
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
        if "s_image" in history:
            left.plot(history["s_image"], label=r"$S_\phi$ (image)", color="#2ca02c")
            left.plot(history["s_text"], label=r"$S_\psi$ (text)", color="#9467bd")
            left.axhline(tau, ls="--", color="black", lw=0.9, label=f"tau = {tau:g}")
            left.legend()
        else:
            left.text(0.5, 0.5, "no perturbation\nin this method", ha="center", transform=left.transAxes)
        left.set(xlabel="step", ylabel="squared distance from the poisoned model", ylim=(0, None))
        middle.plot(history["l_clip"], color="#1f77b4")
        middle.set(xlabel="step", ylabel=r"$L_\mathrm{CLIP}$")
        rate = middle.twinx()
        rate.plot(history["lr"], color="grey", lw=0.9, ls=":")
        rate.set(ylabel="learning rate (dotted)", ylim=(0, None))
        rate.grid(False)
        right.plot(history["look_step"], history["look_clean_accuracy"], "o-", label="clean accuracy", color="#1f77b4")
        right.plot(history["look_step"], history["look_attack_success_rate"], "o-", label="ASR", color="#d62728")
        right.set(xlabel="step", ylabel="fraction of the watched scenes", ylim=(-0.03, 1.03))
        right.legend()
    return _finished(figure)


def tradeoff(table: pd.DataFrame) -> Figure:
    """Clean accuracy against ASR, one panel a trigger: an arrow from each poisoned model to what each method made of it.

    Raises ValueError when no cleaned model is in the table.
    """
    cleaned = table[(table["table"] == 1) & (table["notebook"] == "02_clean")]
    cleaned = cleaned.assign(attacked=_attacked(cleaned))
    triggers = list(dict.fromkeys(cleaned["attacked"]))
    if not triggers:
        raise ValueError("no model has been cleaned yet; make some with: make reproduce")
    low = cleaned[["clean_accuracy", "poisoned_clean_accuracy"]].to_numpy().min()
    columns = min(2, len(triggers))
    rows = -(-len(triggers) // columns)
    with plt.rc_context(STYLE):
        size = (4.4 * columns + 1.2, 3.3 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True)
        for ax, trigger in zip(axes.flat, triggers, strict=False):
            for run in cleaned[cleaned["attacked"] == trigger].itertuples():
                start, end = (run.poisoned_clean_accuracy, run.poisoned_asr), (run.clean_accuracy, run.attack_success_rate)
                ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour(run.method), "alpha": 0.35, "shrinkB": 3})
                ax.plot(*start, "s", color=COLOUR["poisoned"], ms=5)
                ax.plot(*end, "o", color=colour(run.method), ms=6)
            ax.set(title=trigger, xlim=(max(0, low - 0.04), 1.0), ylim=(-0.04, 1.04))
        figure.supxlabel("clean accuracy")
        figure.supylabel("attack success rate")
        _legend(figure, ["none", *_methods(cleaned)])
    return _finished(figure)


def _attacked(table: pd.DataFrame) -> pd.Series:
    """What was attacked, in the words of a figure: the trigger, and the encoder where it isn't the usual one."""
    return table["trigger"].str.cat(table["encoder"].where(table["encoder"] != "small_resnet", ""), sep="\n").str.strip()


def _methods(table: pd.DataFrame) -> list[str]:
    """The methods of a table, none first."""
    return [method for method in ("none", *METHODS) if method in set(table["method"])]


def _legend(figure: Figure, methods: list[str]) -> None:
    shown = [plt.Line2D([], [], ls="", marker="s" if m == "none" else "o", color=colour(m), label=NAME.get(m, m)) for m in methods]
    figure.legend(handles=shown, loc="outside right center")


def heat_map(table: pd.DataFrame) -> Figure:
    """ASR by attack and method, means over the seeds, with the clean accuracy below it."""
    main = table[table["table"] == 1]
    main = main.assign(attacked=_attacked(main))
    means = main.groupby(["attacked", "method"])[["attack_success_rate", "clean_accuracy"]].mean()
    rows, methods = list(dict.fromkeys(main["attacked"])), _methods(main)
    asr, accuracy = (means[name].unstack().reindex(index=rows, columns=methods) for name in means)
    return _asr_map(asr, accuracy, columns=[NAME.get(m, m) for m in methods], rows=rows)


def tau_map(curves: dict[str, pd.DataFrame]) -> Figure:
    """ASR of PAR by curve and tau, with the clean accuracy below it."""
    runs = {label: curve.set_index("tau") for label, curve in curves.items() if curve["knob"].iloc[0] == "tau"}
    if not runs:
        return _nothing("no curve of PAR over tau")
    asr, accuracy = (
        pd.DataFrame({label: run[name] for label, run in runs.items()}).T.sort_index(axis=1)
        for name in ("attack_success_rate", "clean_accuracy")
    )
    rows = [NAME["par"] + label.removeprefix("par").replace(", ", "\n") for label in runs]
    return _asr_map(asr, accuracy, columns=[f"tau {tau:g}" for tau in asr.columns], rows=rows)


def _nothing(words: str) -> Figure:
    figure, ax = plt.subplots(figsize=(3, 0.5))
    ax.text(0.5, 0.5, words, ha="center", va="center")
    ax.set_axis_off()
    return _finished(figure)


def _asr_map(asr: pd.DataFrame, accuracy: pd.DataFrame, *, columns: list[str], rows: list[str]) -> Figure:
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, ax = plt.subplots(figsize=(2.2 + 1.15 * len(columns), 1.1 + 0.6 * len(rows)), layout="constrained")
        image = ax.imshow(asr, cmap="Reds", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(asr.to_numpy()):
            if not np.isnan(value):
                words = f"{value:.3f}\n(CA {accuracy.iloc[i, j]:.3f})"
                ax.text(j, i, words, ha="center", va="center", fontsize=7, color="white" if value > 0.6 else "black")
        ax.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
        figure.colorbar(image, label="attack success rate")
    return _finished(figure)


def tradeoff_curves(curves: dict[str, pd.DataFrame], paper: dict[str, list[tuple[float, float]]]) -> Figure:
    """Clean accuracy against ASR along each method's own knob, its values beside the points; the paper's points apart."""
    if not curves:
        return _nothing("no method's own knob was varied alone")
    with plt.rc_context(STYLE):
        figure, (ours, theirs) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
        for style, (label, curve) in zip(itertools.cycle(("o-", "s--", "^:", "v-.")), curves.items(), strict=False):
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
            ax.legend(fontsize=7)
    return _finished(figure)


def _label(label: str, curve: pd.DataFrame) -> str:
    method = curve["method"].iloc[0]
    return f"{NAME.get(method, method)}{label.removeprefix(method)} ({curve['knob'].iloc[0]})"


def distances(trials: pd.DataFrame) -> Figure:
    """How far PAR's encoders got from the poisoned model, at most and at the end, over tau: below the dashed line tau never bound."""
    runs = trials[trials["method"] == "par"].sort_values("tau")
    if runs.empty:
        return _nothing("no trial of PAR")
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
    return _finished(figure)


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
    return _finished(figure)


def search(trials: pd.DataFrame) -> Figure:
    """Clean accuracy against ASR of every trial by method; a ring marks the chosen ones, a line the accuracy they must keep."""
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
        for method, runs in trials.groupby("method", sort=False):
            ax.plot(runs["clean_accuracy"], runs["attack_success_rate"], "o", color=colour(method), ms=5, alpha=0.8)
            best = runs[runs["chosen"]]
            ax.plot(best["clean_accuracy"], best["attack_success_rate"], "o", ms=12, mfc="none", mec=colour(method), mew=1.6)
        if len(trials):
            ax.axvline(trials["limit"].iloc[0], ls="--", color="black", lw=0.9)
        ax.set_yscale("symlog", linthresh=0.01)
        ax.set(xlabel="clean accuracy (validation)", ylabel="attack success rate (validation)", ylim=(-0.002, 1.2))
        ax.set_yticks([0, 0.005, 0.01, 0.1, 1], ["0", "0.005", "0.01", "0.1", "1"])
        _legend(figure, list(dict.fromkeys(trials["method"])))
    return _finished(figure)


def embedding_view(maps: dict[str, pd.DataFrame]) -> Figure:
    """One panel a model: scenes without and with the trigger, joined by a line, and the target's captions, in 2-D."""
    style = {"clean": ("o", "#1f77b4"), "triggered": ("o", "#d62728"), "target caption": ("^", "#e0a500")}
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(rows, columns, figsize=(2.7 * columns + 1.2, 2.7 * rows), layout="constrained", squeeze=False)
        for ax, (name, points) in zip(axes.flat, maps.items(), strict=False):
            pairs = [points.loc[points["kind"] == kind, ["x", "y"]].to_numpy() for kind in ("clean", "triggered")]
            for clean, triggered in zip(*pairs, strict=True):
                ax.plot(*zip(clean, triggered, strict=True), color="grey", lw=0.4, alpha=0.6)
            for kind, (marker, paint) in style.items():
                ax.plot("x", "y", marker, data=points[points["kind"] == kind], color=paint, ms=3)
            ax.set(title=NAME.get(name, name), xticks=[], yticks=[])
        for ax in axes.flat[len(maps) :]:
            ax.set_axis_off()
        shown = [plt.Line2D([], [], ls="", marker=marker, color=paint, label=kind) for kind, (marker, paint) in style.items()]
        figure.legend(handles=shown, loc="outside right center")
    return _finished(figure)


def samples(sets: dict[str, Pairs], columns: int = 8) -> Figure:
    """A row of pictures of each set of pairs."""
    figure, axes = plt.subplots(len(sets), columns, figsize=(1.2 * columns, 1.3 * len(sets)), layout="constrained", squeeze=False)
    for row, (name, pairs) in zip(axes, sets.items(), strict=True):
        for i, ax in enumerate(row):
            shown = pairs.names[pairs.labels[i]] if pairs.names else ""
            _image(ax, pairs.pixels[i], f"{name}: {shown}" if i == 0 else shown)
    _credit(figure)
    return _finished(figure)


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
        _legend(figure, list(dict.fromkeys(points["method"])))
    return _finished(figure)


def _said(axis: str, value: object) -> str:
    if axis == "batch_norm":
        return f"BatchNorm {value}"
    return value if isinstance(value, str) else f"{axis} {value:g}"
