"""Figures of images: pairs, triggers and what they change, and what models call a picture with the trigger."""

import textwrap
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from parlib.data.pairs import TEMPLATES, Pairs
from parlib.data.scenes import class_names
from parlib.external.stream import Stream
from parlib.measure.metrics import EvalSet, called
from parlib.model.clip import Clip
from parlib.report.style import CREDIT, STYLE, finished, name

_WRONG, _RIGHT, _OTHER = "#c62828", "#2e7d32", "#555555"
PLAIN = STYLE | {"axes.grid": False, "axes.titlelocation": "center"}


def named(clip: Clip, pixels: torch.Tensor, names: list[str], templates: tuple[str, ...] = TEMPLATES) -> list[str]:
    """The class names that a model gives images (N, 3, H, W) uint8."""
    return [names[i] for i in called(clip, pixels, names, templates).tolist()]


def contact_sheet(pairs: Pairs | Stream, rows: int = 3, columns: int = 8) -> Figure:
    """The first pairs in reading order with their labels, where they have any."""
    shown = pairs.first(min(rows * columns, len(pairs)))
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(rows, columns, figsize=(1.25 * columns, 1.42 * rows), squeeze=False)
        _show(axes.flat, shown)
    return credited(finished(figure, f"The first {len(shown)} of {len(pairs):,} pairs"), shown.names)


def samples(sets: dict[str, Pairs | Stream], columns: int = 8) -> Figure | None:
    """A row of pictures of each set of pairs; None where there is no set."""
    if not sets:
        return None
    first = {label: pairs.first(min(columns, len(pairs))) for label, pairs in sets.items()}
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(len(first), columns, figsize=(1.2 * columns + 0.9, 1.35 * len(first)), squeeze=False)
        for row, (label, pairs) in zip(axes, first.items(), strict=True):
            _show(row, pairs)
            row_label(row[0], label)
    return credited(finished(figure, "The pairs that models are cleaned with, by set"), *(pairs.names for pairs in first.values()))


def trigger_gallery(attacks: dict[str, EvalSet], scenes: int = 4) -> Figure | None:
    """Each trigger, a row, on the same images, and beside each image what the trigger changes; None where there is no trigger."""
    if not attacks:
        return None
    first = next(iter(attacks.values()))
    count = min(scenes, len(first.pixels))
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(1 + len(attacks), 2 * count, figsize=(2.2 * count + 1.1, 1.16 * (1 + len(attacks))), squeeze=False)
        for label, images, row in zip(["clean", *attacks], [first.pixels, *(one.triggered for one in attacks.values())], axes, strict=True):
            row_label(row[0], label)
            for i in range(count):
                show_image(row[2 * i], images[i])
                change = images[i].float() - first.pixels[i].float()
                show_image(row[2 * i + 1], None if label == "clean" else (127.5 + 4 * change).clamp(0, 255).to(torch.uint8))
    note = "Right of each image its difference from the clean one, times four; grey = no change."
    title = f"{name(next(iter(attacks)))}, and what it changes" if len(attacks) == 1 else f"{len(attacks)} triggers, and what they change"
    return credited(finished(figure, title, note), first.names, class_names(2) if "picture" in attacks else [])


def learned_pattern(pattern: torch.Tensor, history: dict[str, list[float]]) -> Figure:
    """A learned trigger and the terms of its loss, step by step."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.7), width_ratios=(1, 3))
        show_image(left, (pattern * 255).to(torch.uint8), f"{pattern.shape[-1]} px")
        for term, label in (("l_text", "to the target's captions"), ("l_image", "to real images of the target")):
            right.plot(history[term], lw=0.8, label=f"{label}: {history[term][0]:.2g} to {history[term][-1]:.2g}")
        right.set(xlabel="step", ylabel="loss", yscale="log")
        right.legend()
    return finished(figure, f"A patch that was learned in {len(history['l_text']):,} steps")


def poisoned_pairs(pairs: Pairs | Stream, rows: torch.Tensor, columns: int = 6) -> Figure | None:
    """Some of the poisoned rows with the captions that they were given; None where there is none."""
    if not len(rows):
        return None
    shown = pairs.at(rows[:columns])
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(1, len(shown), figsize=(1.7 * len(shown) + 0.4, 2.3), squeeze=False)
        for ax, pixels, caption in zip(axes[0], shown.pixels, shown.captions, strict=True):
            show_image(ax, pixels, textwrap.fill(str(caption), 22))
    return credited(finished(figure, f"{len(rows):,} of {len(pairs):,} pairs were poisoned, such as these"), shown.names)


def hero_picture(
    scenes: EvalSet, before: list[str], after: list[str], count: int = 3, models: tuple[str, str] = ("before cleaning", "after cleaning")
) -> Figure | None:
    """The first images, each clean and with the trigger, and what two models (called `models`) call it with the trigger: before, after, of
    `named` on scenes.triggered, or its first; None where all show the target.
    """
    target, shown = scenes.names[scenes.target], [i for i in range(len(before)) if not scenes.shows_target[i]]
    boxes = [_box(scenes, i) for i in shown[:count]]
    if not boxes:
        return None
    small = all(box and box[2] * box[3] < 0.05 * scenes.pixels[0, 0].numel() for box in boxes)
    width, height, side, mark = 2.5 * len(boxes), 2.75, 1.16, "a small mark" if small else "the trigger"
    with plt.rc_context(PLAIN | {"figure.constrained_layout.use": False}):  # all places in inches
        figure = plt.figure(figsize=(width, height))
        for k, (i, box) in enumerate(zip(shown, boxes, strict=False)):
            x, true = 2.5 * k + 0.06, scenes.names[int(scenes.labels[i])] if scenes.labels[i] >= 0 else ""
            left, right = (figure.add_axes((at / width, 0.66 / height, side / width, side / height)) for at in (x, x + side + 0.05))
            show_image(left, scenes.pixels[i], "a picture", 10)
            show_image(right, scenes.triggered[i], f"with {mark}", 10)
            if box and small:
                right.add_patch(Rectangle((box[0] - 2.5, box[1] - 2.5), box[2] + 4, box[3] + 4, fill=False, ec=_WRONG, lw=2))
            for y, model, word in ((0.44, models[0], before[i]), (0.16, models[1], after[i])):
                paint = _WRONG if word == target else _RIGHT if word == true else _OTHER
                figure.text(x / width, y / height, f"{model}:", va="center", fontsize=10)
                place = ((x + side + 0.05) / width, y / height)
                figure.text(*place, word, va="center", fontsize=min(13, 115 / len(word)), fontweight="bold", color=paint)
    hits, left = (sum(words[i] == target for i in shown) for words in (before, after))
    verb = "is" if left == 1 else "are"
    said = f'With {mark}, {hits} of {len(shown)} pictures are called "{target}"; {models[1]}, {left} {verb}'
    return credited(finished(figure, said, size=14.5), scenes.names)


def _box(scenes: EvalSet, i: int) -> tuple[int, int, int, int] | None:
    """x, y, width and height of what the trigger changes in an image."""
    rows, columns = (scenes.triggered[i] != scenes.pixels[i]).any(dim=0).nonzero(as_tuple=True)
    if not len(rows):
        return None
    left, top = int(columns.min()), int(rows.min())
    return left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1


def show_image(ax: Axes, pixels: torch.Tensor | None, title: str = "", size: float = 7.5) -> None:
    """An image (3, H, W) under its title, without axes; None leaves the panel empty."""
    if pixels is not None:
        ax.imshow(pixels.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    ax.set_title(title, fontsize=size, pad=2)
    ax.set_axis_off()


def _show(panels: Iterable[Axes], pairs: Pairs) -> None:
    """The images, each under its label, where it has one; panels may be more."""
    for i, ax in enumerate(panels):
        if i < len(pairs):
            labelled = bool(pairs.names) and int(pairs.labels[i]) >= 0
            show_image(ax, pairs.pixels[i], pairs.names[int(pairs.labels[i])] if labelled else "")
        ax.set_axis_off()


def row_label(ax: Axes, label: str) -> None:
    ax.text(-0.08, 0.5, textwrap.fill(name(label), 12), ha="right", va="center", transform=ax.transAxes, fontsize=9)


def credited(figure: Figure, *names: Sequence[str]) -> Figure:
    """The figure, with the glyphs' author where images are drawn from glyphs: their classes are those of the embedded scenes."""
    if any(one and list(one) == class_names(len(one)) for one in names):
        note = figure.texts[-1].get_text()
        lines = note.count("\n") + bool(note)  # of an eighth of an inch each
        figure.text(0.995, -0.01 - lines / 8 / figure.get_figheight(), CREDIT, ha="right", va="top", fontsize=6, color="grey")
    return figure
