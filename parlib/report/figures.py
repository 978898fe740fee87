"""Every figure of the notebooks, in one style; each function returns a matplotlib Figure and trains nothing."""

import itertools
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parlib.data.scenes import Pairs
from parlib.measure.metrics import EvalSet
from parlib.method.methods import METHODS
from parlib.external.stream import Stream

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


def show(ax: Axes, pixels: torch.Tensor, title: str = "") -> None:
    ax.imshow(pixels.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    ax.set_title(title, fontsize=7, pad=2)
    ax.set_axis_off()


def credit(figure: Figure) -> None:
    figure.text(0.995, -0.005, CREDIT, ha="right", va="top", fontsize=6, color="grey")


def finished(figure: Figure) -> Figure:
    plt.close(figure)  # the caller shows it; without this a notebook would show it twice
    return figure


def contact_sheet(pairs: Pairs | Stream, rows: int = 3, columns: int = 8) -> Figure:
    """The first pairs in reading order with their labels, where they have any."""
    pairs = pairs.first(rows * columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.25 * columns, 1.45 * rows), layout="constrained")
    for i, ax in enumerate(axes.flat):
        show(ax, pairs.pixels[i], pairs.names[pairs.labels[i]] if pairs.names else "")
    credit(figure)
    return finished(figure)


def trigger_gallery(attacks: dict[str, EvalSet], scenes: int = 4) -> Figure:
    """Each trigger, a row, on the same scenes, with the difference from the clean image, four times enlarged, around grey."""
    first = next(iter(attacks.values()))
    figure, axes = plt.subplots(1 + len(attacks), 2 * scenes, figsize=(2.2 * scenes, 1.2 * (1 + len(attacks))), layout="constrained")
    for i in range(scenes):
        show(axes[0, 2 * i], first.pixels[i], "clean" if i == 0 else "")
        axes[0, 2 * i + 1].set_axis_off()
        for row, (name, attack) in zip(axes[1:], attacks.items(), strict=True):
            change = attack.triggered[i].float() - attack.pixels[i].float()
            show(row[2 * i], attack.triggered[i], name if i == 0 else "")
            show(row[2 * i + 1], (127.5 + 4 * change).clamp(0, 255).to(torch.uint8), "difference x 4" if i == 0 else "")
    credit(figure)
    return finished(figure)


def learned_pattern(pattern: torch.Tensor, history: dict[str, list[float]]) -> Figure:
    """A learned trigger and the terms of its loss, step by step."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.4), width_ratios=(1, 3), layout="constrained")
        show(left, pattern, f"{pattern.shape[1]} px")
        for name, label in (("l_text", "to the target's captions"), ("l_image", "to real images of the target")):
            right.plot(history[name], lw=0.8, label=label)
        right.set(xlabel="step", ylabel="loss", yscale="log")
        right.legend()
    return finished(figure)


def poisoned_pairs(pairs: Pairs | Stream, rows: torch.Tensor, columns: int = 6) -> Figure:
    """Some of the poisoned rows with the captions that they were given."""
    shown = pairs.at(rows[:columns])
    figure, axes = plt.subplots(1, len(shown), figsize=(1.7 * len(shown), 2.1), layout="constrained", squeeze=False)
    for ax, pixels, caption in zip(axes[0], shown.pixels, shown.captions, strict=True):
        words = caption.split()
        show(ax, pixels, " ".join(words[: len(words) // 2]) + "\n" + " ".join(words[len(words) // 2 :]))
    credit(figure)
    return finished(figure)


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
    return finished(figure)


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
    return finished(figure)


def tradeoff(table: pd.DataFrame) -> Figure:
    """Clean accuracy against ASR, one panel a trigger: an arrow from each poisoned model to what each method made of it.

    Raises ValueError when no cleaned model is in the table.
    """
    cleaned = table[(table["table"] == 1) & (table["notebook"] == "02_clean")]
    cleaned = cleaned.assign(attacked=_attacked(cleaned)).sort_values("encoder", kind="stable")
    triggers = list(dict.fromkeys(cleaned["attacked"]))
    if not triggers:
        raise ValueError("no model has been cleaned yet; make some with: make reproduce")
    low = cleaned[["clean_accuracy", "poisoned_clean_accuracy"]].to_numpy().min()
    columns = min(2 if len(triggers) < 5 else 4, len(triggers))
    rows = -(-len(triggers) // columns)
    with plt.rc_context(STYLE):
        size = (3.6 * columns + 1.2, 2.7 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True)
        for ax, trigger in zip(axes.flat, triggers, strict=False):
            for run in cleaned[cleaned["attacked"] == trigger].itertuples():
                start, end = (run.poisoned_clean_accuracy, run.poisoned_asr), (run.clean_accuracy, run.attack_success_rate)
                ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour(run.method), "alpha": 0.35, "shrinkB": 3})
                ax.plot(*start, "s", color=COLOUR["poisoned"], ms=5)
                ax.plot(*end, "o", color=colour(run.method), ms=6)
            ax.set(title=trigger, xlim=(max(0, low - 0.04), 1.0), ylim=(-0.04, 1.04))
        for i in range(len(triggers), axes.size):
            axes.flat[i].set_axis_off()
            axes.flat[i - columns].tick_params(labelbottom=True)  # the lowest of its column
        figure.supxlabel("clean accuracy")
        figure.supylabel("attack success rate")
        legend(figure, ["none", *_methods(cleaned)])
    return finished(figure)


def _attacked(table: pd.DataFrame) -> pd.Series:
    """What was attacked and how, in the words of a figure: the trigger, and what isn't usual."""
    words = table["trigger"].str.cat(table["attack"].where(table["attack"] != "dirty_label", ""), sep="\n")
    return words.str.cat(table["encoder"].where(table["encoder"] != "small_resnet", ""), sep="\n").str.replace("\n\n", "\n").str.strip()


def _methods(table: pd.DataFrame) -> list[str]:
    """The methods of a table, none first."""
    return [method for method in ("none", *METHODS) if method in set(table["method"])]


def legend(figure: Figure, methods: list[str]) -> None:
    shown = [plt.Line2D([], [], ls="", marker="s" if m == "none" else "o", color=colour(m), label=NAME.get(m, m)) for m in methods]
    figure.legend(handles=shown, loc="outside right center")


def heat_map(table: pd.DataFrame, kind: int = 1) -> Figure:
    """ASR by attack and method, means over the seeds, with the clean accuracy below it. kind: of the tables in `report.table`."""
    main = table[table["table"] == kind]
    main = main.assign(attacked=_attacked(main)).sort_values("encoder", kind="stable")
    means = main.groupby(["attacked", "method"])[["attack_success_rate", "clean_accuracy"]].mean()
    rows, methods = list(dict.fromkeys(main["attacked"])), _methods(main)
    asr, accuracy = (means[name].unstack().reindex(index=rows, columns=methods) for name in means)
    return asr_map(asr, accuracy, columns=[NAME.get(m, m) for m in methods], rows=rows)


def asr_map(asr: pd.DataFrame, accuracy: pd.DataFrame, *, columns: list[str], rows: list[str]) -> Figure:
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, ax = plt.subplots(figsize=(2.2 + 1.15 * len(columns), 1.1 + 0.6 * len(rows)), layout="constrained")
        image = ax.imshow(asr, cmap="Reds", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(asr.to_numpy()):
            if not np.isnan(value):
                words = f"{value:.3f}\n(CA {accuracy.iloc[i, j]:.3f})"
                ax.text(j, i, words, ha="center", va="center", fontsize=7, color="white" if value > 0.6 else "black")
        ax.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
        figure.colorbar(image, label="attack success rate")
    return finished(figure)


def search(trials: pd.DataFrame) -> Figure:
    """Clean accuracy against ASR of every trial by method, one panel an encoder; a ring marks the chosen ones, a line the accuracy
    they must keep.
    """
    if trials.empty:
        return nothing("no cleaning was judged on validation scenes")
    encoders = list(dict.fromkeys(trials["encoder"]))
    with plt.rc_context(STYLE):
        size = (1.4 + 5.8 * len(encoders), 3.6)
        figure, axes = plt.subplots(1, len(encoders), figsize=size, layout="constrained", squeeze=False, sharey=True)
        for ax, encoder in zip(axes[0], encoders, strict=True):
            ours = trials[trials["encoder"] == encoder]
            for method, runs in ours.groupby("method", sort=False):
                ax.plot(runs["clean_accuracy"], runs["attack_success_rate"], "o", color=colour(method), ms=5, alpha=0.8)
                best = runs[runs["chosen"]]
                ax.plot(best["clean_accuracy"], best["attack_success_rate"], "o", ms=12, mfc="none", mec=colour(method), mew=1.6)
            ax.axvline(ours["limit"].iloc[0], ls="--", color="black", lw=0.9)
            ax.set_yscale("symlog", linthresh=0.01)
            ax.set(title=encoder, xlabel="clean accuracy (validation)", ylim=(-0.002, 1.2))
            ax.set_yticks([0, 0.005, 0.01, 0.1, 1], ["0", "0.005", "0.01", "0.1", "1"])
        axes[0, 0].set_ylabel("attack success rate (validation)")
        legend(figure, list(dict.fromkeys(trials["method"])))
    return finished(figure)


def course(found: list[dict[str, Any]]) -> Figure:
    """ASR and clean accuracy of the watched scenes while models are cleaned, out of their records: a colour a trigger, a line style a
    learning rate.
    """
    if not found:
        return nothing("no such model was cleaned")
    triggers = list(dict.fromkeys(record["params"]["trigger"] for record in found))
    rates = sorted({record["params"]["lr"] for record in found}, reverse=True)
    paint = {trigger: f"C{i}" for i, trigger in enumerate(triggers)}
    style = dict(zip(rates, itertools.cycle(("-", "--", ":", "-.")), strict=False))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
        for record in found:
            history, look = record["history"], {"color": paint[record["params"]["trigger"]], "ls": style[record["params"]["lr"]]}
            for ax, name in zip(axes, ("look_attack_success_rate", "look_clean_accuracy"), strict=True):
                ax.plot(history["look_step"], history[name], marker="o", ms=3, **look)
        axes[0].set(xlabel="step", ylabel="attack success rate", ylim=(-0.03, 1.03))
        axes[1].set(xlabel="step", ylabel="clean accuracy")
        shown = [plt.Line2D([], [], color=paint[trigger], label=trigger) for trigger in triggers]
        shown += [plt.Line2D([], [], color="black", ls=style[rate], label=f"lr {rate:g}") for rate in rates]
        figure.legend(handles=shown, loc="outside right center")
    return finished(figure)


def embedding_view(maps: dict[str, pd.DataFrame]) -> Figure:
    """One panel a model: scenes without and with the trigger, joined by a line, and the target's captions, in 2-D."""
    if not maps:
        return nothing("no run of the usual attack was cleaned")
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
    return finished(figure)


def nothing(words: str) -> Figure:
    figure, ax = plt.subplots(figsize=(3, 0.5))
    ax.text(0.5, 0.5, words, ha="center", va="center")
    ax.set_axis_off()
    return finished(figure)
