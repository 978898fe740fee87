"""Figures of one cleaning: the loss's gate, the course of the training, the models before and after, and their embeddings."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from parlib.report.style import ACCURACY, ASR, STYLE, colour, finished, listed, name

_IMAGE, _TEXT, _BLUE, _RED = "#2ca02c", "#9467bd", "#1f77b4", "#d62728"
_BARS = {"clean_accuracy": ACCURACY, "triggered_accuracy": "accuracy under the trigger", "attack_success_rate": ASR}


def gate(tau: float) -> Figure:
    """L_PERT over S of one encoder: S / 2 while S is at most tau, then the constant 0."""
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6, 2.6))
        ax.plot([0, tau], [0, tau / 2], "-", color=_IMAGE, lw=2.2)
        ax.plot([tau, 4], [0, 0], "-", color=_IMAGE, lw=2.2)
        ax.plot(tau, tau / 2, "o", color=_IMAGE)
        ax.plot(tau, 0, "o", color=_IMAGE, mfc="white", zorder=4)
        ax.axvline(tau, ls="--", color="black", lw=0.8)
        ax.text(tau / 2, tau / 4 + 0.14, "pushed away", ha="right", color=_IMAGE)
        ax.text((tau + 4) / 2, 0.08, "no gradient", ha="center", color=_IMAGE)
        ax.set(xlabel="S, squared distance from the model before cleaning", ylabel=r"its share of $L_\mathrm{PERT}$")
        ax.set(xlim=(0, 4), xticks=[0, 1, 2, 3, 4], ylim=(-0.06, max(0.5, tau / 2 + 0.2)))
    return finished(figure, f"PAR pushes an encoder away until S passes tau = {tau:g}")


def training_history(history: dict[str, list[float]], tau: float | None = None) -> Figure:
    """The course of a cleaning: S of both encoders with tau (of methods that push), L_CLIP or another loss, the rate, accuracy and ASR."""
    panels = 3 if "s_image" in history else 2
    with plt.rc_context(STYLE):
        figure, (*left, middle, right) = plt.subplots(1, panels, figsize=(3.7 * panels, 3))
        if tau is not None and left:
            _distances(left[0], history, tau)
        contrasts = "l_clip" in history  # distillation and its like learn from images alone
        middle.plot(history["l_clip" if contrasts else "loss"], color=_BLUE, lw=1.2)
        middle.set(xlabel="step", ylabel=r"$L_\mathrm{CLIP}$" if contrasts else "loss")
        lr = middle.twinx()
        lr.plot(history["lr"], color="grey", lw=0.9, ls=":")
        lr.set(ylabel="learning rate (dotted)", ylim=(0, None))
        lr.grid(False)
        right.plot(history["look_step"], history["look_clean_accuracy"], "o-", color=_BLUE, label=ACCURACY)
        right.plot(history["look_step"], history["look_attack_success_rate"], "o-", color=_RED, label="ASR")
        right.set(xlabel="step", ylabel="share of the watched images", ylim=(-0.04, 1.04))
        right.legend(loc="center right")
    asr, accuracy = history["look_attack_success_rate"], history["look_clean_accuracy"]
    said = f"ASR {asr[0]:.3f} to {asr[-1]:.3f}, clean accuracy {accuracy[0]:.3f} to {accuracy[-1]:.3f}"
    return finished(figure, f"{len(history['lr']):,} steps: {said}")


def _distances(ax: Axes, history: dict[str, list[float]], tau: float) -> None:
    for tower, paint, label in (("image", _IMAGE, r"$S_\phi$, images"), ("text", _TEXT, r"$S_\psi$, texts")):
        s = history[f"s_{tower}"]
        passed = next((f"passes tau at step {i}" for i, value in enumerate(s) if value > tau), "stays below tau")
        ax.plot(s, color=paint, lw=1.2, label=f"{label}: {passed}")
    ax.axhline(tau, ls="--", color="black", lw=0.9, label=f"tau = {tau:g}")
    ax.set(xlabel="step", ylabel="S, squared distance from before", ylim=(0, None))
    ax.legend(loc="lower right", fontsize=8)


def before_and_after(models: dict[str, dict[str, float]], n: int, note: str = "") -> Figure:
    """Clean accuracy, accuracy under the trigger and ASR of each model, as bars with 95 % intervals. models: metrics by name. n: images
    evaluated on. note: trigger and seed, in words.
    """
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.4, 3))
        width = 0.8 / len(models)
        for i, (model, found) in enumerate(models.items()):
            heights = np.array([found[metric] for metric in _BARS])
            errors = abs(np.array([[found[f"{metric}_ci_{end}"] for metric in _BARS] for end in ("low", "high")]) - heights)
            places = np.arange(len(_BARS)) + (i - (len(models) - 1) / 2) * width
            bars = ax.bar(places, heights, width * 0.92, yerr=errors, label=name(model), color=colour(model), error_kw={"lw": 0.8})
            ax.bar_label(bars, [f"{height:.3f}" for height in heights], fontsize=8, padding=2)
        ax.set(xticks=range(len(_BARS)), xticklabels=_BARS.values(), ylim=(0, 1.12), ylabel="share of the images")
        ax.grid(axis="x", visible=False)
        figure.legend(loc="outside right center")
    said = listed(f"{found['attack_success_rate']:.3f} ({name(model)})" for model, found in models.items())
    return finished(figure, f"Attack success rate: {said}", ", ".join(filter(None, [note, f"{n:,} images", "95 % intervals"])) + ".")


def embedding_view(maps: dict[str, pd.DataFrame]) -> Figure | None:
    """One panel a model: images without and with the trigger, joined by a line, and the target's captions, in 2-D; None without maps."""
    if not maps:
        return None
    style = {"clean": ("o", _BLUE, 3), "triggered": ("o", _RED, 2), "target caption": ("^", "#e0a500", 1)}  # clean above
    columns = min(5, len(maps))
    rows = -(-len(maps) // columns)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(rows, columns, figsize=(2.5 * columns + 1.3, 2.75 * rows), squeeze=False)
        for ax, (model, points) in zip(axes.flat, maps.items(), strict=False):
            clean, triggered = (points.loc[points["kind"] == kind, ["x", "y"]].to_numpy() for kind in ("clean", "triggered"))
            ax.plot(*np.stack([clean, triggered]).transpose(2, 0, 1), color="grey", lw=0.4, alpha=0.6, zorder=0)
            for kind, (marker, paint, order) in style.items():
                ax.plot("x", "y", marker, data=points[points["kind"] == kind], color=paint, ms=3, zorder=order)
            ax.set(title=name(model), xticks=[], yticks=[], xlabel="principal component 1")
            ax.set_ylabel("principal component 2" if ax in axes[:, 0] else "")
        for ax in axes.flat[len(maps) :]:
            ax.set_axis_off()
        shown = [Line2D([], [], ls="", marker=marker, color=paint, label=kind) for kind, (marker, paint, _) in style.items()]
        figure.legend(handles=shown, loc="outside right center")
    said = f"Where the trigger moves a scene, in the embedding of each model: {listed(map(name, maps))}"
    return finished(figure, said, "Each panel has two principal components of its own, so that lengths in two panels can't be compared.")
