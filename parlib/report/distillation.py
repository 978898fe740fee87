"""Notebook 11: what distillation and unlearning show their student, by hand; and what each part of distillation is worth."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from parlib.attack.triggers import Trigger
from parlib.data.feeds import generator
from parlib.data.pairs import Pairs
from parlib.method.distil import foreign_content, varied
from parlib.report.pictures import PLAIN, credited, row_label, show_image
from parlib.report.style import finished, in_order, name, points_lost


def lessons(scenes: Pairs, inverted: Trigger | None = None) -> Figure:
    """What the student sees of a few scenes, a row a step: plain, varied, under foreign content, and, where it is given, under an
    inverted trigger. In each column the teacher's answer to the second picture is what the student learns for all below it.
    """
    plain, random = scenes.pixels.float() / 255, generator("cpu", "lessons")
    clean = varied(plain, 1.0, random)
    rows = {"clean": plain, "varied": clean, "foreign content": foreign_content(clean, plain[:, :, :1, :1], random)}
    if inverted is not None:
        rows["inverted trigger"] = inverted(clean, random)
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(len(rows), len(scenes), figsize=(1.3 * len(scenes) + 0.6, 1.35 * len(rows)), squeeze=False)
        for line, (label, pixels) in zip(axes, rows.items(), strict=True):
            row_label(line[0], label)
            for ax, image in zip(line, (pixels * 255).round().to(torch.uint8), strict=True):
                show_image(ax, image)
    said = "The student learns to say of each picture what the poisoned model says of the varied one"
    return credited(finished(figure, said), scenes.names)


def parts(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a part that was left out of distillation, from the experiment distil_parts, below the whole of it: strings."""
    alone = rows[(rows["experiment"] == "distil_parts") & (rows["trigger"] == "badnet_stripes")]
    whole = rows[(rows["experiment"] == "regimes_triggers") & (rows["method"] == "distil") & (rows["trigger"] == "badnet_stripes")]
    made = []
    for run in pd.concat([whole, in_order(alone, ["method"])]).to_dict("records"):
        cost = points_lost(run)
        row = {"distillation": _left_out(run), "ASR": f"{run['attack_success_rate']:.3f}", "cost, points": f"{cost:.1f}"}
        made.append(row | {"accuracy under the trigger": f"{run['triggered_accuracy']:.3f}"})
    return pd.DataFrame(made)


def _left_out(run: dict[str, Any]) -> str:
    if run["experiment"] != "distil_parts":
        return "whole"
    if run["method"] != "distil":
        return name(run["method"])
    return "with frozen BatchNorm" if run["batch_norm"] == "frozen" else "without varied images"
