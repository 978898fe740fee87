"""What an inspection found: the classes that stand out, the inverted trigger on images, and how far other models' targets lead."""

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from parlib.attack.inversion import Inverted, InvertedTrigger, read_inverted
from parlib.data.feeds import generator
from parlib.experiments.inspection import Inspected, calibration_rows
from parlib.measure.detection import PLANTED
from parlib.records.store import REFERENCE
from parlib.report.pictures import PLAIN, credited, named, show_image
from parlib.report.regimes import at_cost
from parlib.report.style import STYLE, colour, finished, in_order, listed, name, number

# By what is known of a model, in the order of the figure.
_COLOUR = {"unknown": colour("finetune"), "clean": colour("base"), "planted": colour("poisoned"), "cleaned": colour("par")}
_ENDS = ("_ci_low", "_ci_high")


def candidates(found: Inspected, shown: int = 6) -> Figure:
    """The strongest classes of each form, a panel a form; and the ASR of the strongest one by the size of its trigger."""
    metrics, count = found.result.metrics, len(found.forms)
    with plt.rc_context(STYLE):
        lines, columns = -(-(count + 1) // 3), min(3, count + 1)
        figure, axes = plt.subplots(lines, columns, figsize=(2.9 * columns, 0.2 + 2.2 * lines), squeeze=False)
        for ax in axes.flat[count + 1 :]:
            ax.remove()
        for ax, (form, inverted) in zip(axes.flat, found.forms.items(), strict=False):
            rates, words = inverted.asr[:shown], [found.names[index] for index in inverted.classes[:shown]]
            threshold = found.result.params.threshold
            paint = [_COLOUR["planted"] if lead > threshold else "#bbbbbb" for lead in inverted.leads[:shown]]
            ax.barh(range(len(rates)), rates, color=paint)
            ax.set(title=f"{form}: lead {inverted.lead:.2f}", xlim=(0, 1), yticks=range(len(rates)), yticklabels=words)
            ax.invert_yaxis()
            ax.grid(axis="y", visible=False)
        ax = axes.flat[count]
        ax.plot(found.sizes["asr"], marker="o", color=_COLOUR["planted"])
        ax.set(title=f"{metrics['candidate']}, by size of the {metrics['form']}", ylim=(-0.03, 1.03))
        ax.set_xticks(range(len(found.sizes)), found.sizes["said"], fontsize=7, rotation=15)
    title = leading(metrics)
    note = "Bars: share of held-out clean images that the best trigger found for a class makes the model call it."
    return finished(figure, title, note)


def stamped(found: Inspected, shown: int = 5) -> Figure:
    """Held-out images without and with the strongest inverted trigger, and what the model calls them."""
    best, metrics = found.strongest, found.result.metrics
    images = found.images.pixels[1::2][:shown]
    with_it = best.trigger().stamp(images, generator("cpu", "inspected"))
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(2, 1 + len(images), figsize=(1.45 * (1 + len(images)), 3.2), squeeze=False)
        show_image(axes[0, 0], picture(best), f"the {best.form},\nas it was found")
        show_image(axes[1, 0], None)
        for row, pixels in zip(axes, (images, with_it), strict=True):
            words = named(found.clip, pixels, found.names, found.images.templates[: found.result.params.templates])
            for ax, image, word in zip(row[1:], pixels, words, strict=True):
                show_image(ax, image, word)
    title = f"With the inverted {best.form} {metrics['inverted_asr']:.0%} of held-out images are called {metrics['candidate']}"
    return credited(finished(figure, title, "Above: clean. Below: with the trigger. The words are the model's."), found.images.names)


def leading(metrics: Mapping[str, Any]) -> str:
    """Which class leads, by how much and with what, and which others are above the threshold, in words."""
    others = metrics["candidates"][1:]
    too = f"; {listed(others)} lead{'s' if len(others) == 1 else ''}, too" if others else ""
    return f"{metrics['candidate']} leads by {metrics['lead']:.2f}, with a {metrics['form']}{too}"


def picture(inverted: Inverted) -> torch.Tensor:
    """The strongest pattern of a form as an image, (3, h, w) uint8: of a mask and a tint on grey, of a blend four times enlarged, of a warp
    where each pixel comes from: redder is further right, greener further down.
    """
    pattern = inverted.patterns[0]
    if inverted.form == "mask":
        pattern = 0.5 + pattern[:1] * (pattern[1:] - 0.5)
    elif inverted.form == "blend":
        pattern = 0.5 + 4 * pattern
    elif inverted.form == "warp":
        pattern = 0.5 + 0.2 * torch.cat([pattern, torch.zeros_like(pattern[:1])])
    elif inverted.form == "tint":
        pattern = (0.5 * (1 + pattern)).expand(3, 16, 16)
    return (pattern.clamp(0, 1) * 255).round().to(torch.uint8)


def table(found: Inspected) -> pd.DataFrame:
    """A row a form: what the triggers of the strongest class, of the next one and of the median one reach, and the lead. Strings."""
    rows = []
    for form, inverted in found.forms.items():
        words = [found.names[index] for index in inverted.classes]
        first, following = (f"{word}, {number(asr)}" for word, asr in zip(words[:2], inverted.asr[:2], strict=True))
        median = number(inverted.asr[0] - inverted.lead)
        rows.append({"form": form, "first, ASR": first, "next, ASR": following, "median ASR": median, "lead": number(inverted.lead)})
    return pd.DataFrame(rows)


def inspected(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row a model that was inspected with images of its own, from records; each once, without the calibrations."""
    looked = [record for record in records if record["notebook"] == "10_inspect" and not record["params"].get("from_pairs")]
    found = [record for record in looked if not record["params"]["name"]]
    return calibration_rows(sorted(found, key=lambda record: record["run"]))


def leads(found: Inspected, others: pd.DataFrame) -> Figure:
    """How far the strongest class leads in this model, and in others that were inspected, a line a kind and trigger."""
    metrics, params = found.result.metrics, found.result.params
    groups = []
    for kind, rows in others.groupby("kind", sort=False) if len(others) else []:
        by = rows.groupby(rows.apply(_group, axis=1), sort=False)
        groups += [(group, kind, list(one["lead"]), list(one["named"] | (kind != "planted"))) for group, one in by]
    groups.sort(key=lambda group: list(_COLOUR).index(group[1]))
    groups.insert(0, ("this model", metrics["kind"], [metrics["lead"]], [metrics.get("named", True)]))
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.4, 0.9 + 0.2 * len(groups)))
        for place, (_, kind, values, right) in enumerate(groups):
            faces = [_COLOUR[kind] if one else "none" for one in right]
            ax.scatter(values, [place] * len(values), s=26, facecolors=faces, edgecolors=_COLOUR[kind], zorder=3)
        ax.axvline(params.threshold, color="black", lw=0.8, ls="--")
        ax.set(xlim=(-0.03, 1.03), yticks=range(len(groups)), yticklabels=[group[0] for group in groups])
        ax.set_xlabel("lead of the strongest class over the median finalist")
        ax.invert_yaxis()
    title = f"{'Above' if metrics['detected'] else 'Not above'} the threshold: this model's strongest class leads by {metrics['lead']:.2f}"
    note = "Grey: clean. Red: planted; hollow where another class than the target was named. Green: cleaned. Dashed: the threshold."
    return finished(figure, title, note)


def _group(row: pd.Series) -> str:
    if row["kind"] == "clean":
        return "clean bases" if row["method"] == "base" else "benign fine-tunings"
    if row["kind"] == "unknown":
        return "not known"
    how = "" if row["attacker"] == "plain" else f", {row['attacker'].replace('_', ' ')}"
    how += "" if row["encoder"] == "small_resnet" else f", {name(row['encoder'])}"
    if row["kind"] == "cleaned":
        return f"cleaned: {name(row['method'])}{how}"
    weak = "" if row["attack_success_rate"] >= PLANTED else f", ASR {row['attack_success_rate']:.2f}"
    return name(row["trigger"]) + how + weak


def calibration(metrics: dict[str, Any]) -> pd.DataFrame:
    """How many planted models of each trigger were found, and named rightly, at the usual threshold. Strings."""
    rows = [
        {"trigger": name(trigger), "models": str(one["models"]), "found": str(one["found"]), "target named": str(one["named"])}
        for trigger, one in metrics["by_trigger"].items()
    ]
    return pd.DataFrame(rows)


def kept_trigger(run: str) -> InvertedTrigger | None:
    """The trigger that a published inspection keeps; None where it is not published, or keeps none."""
    path = REFERENCE / f"{run}_pattern.safetensors"
    return read_inverted(path) if path.exists() else None


def unlearned(rows: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """A row a planted trigger: what an inspection of its model found, the ASR before and after that was unlearned, and what it cost in
    points of clean accuracy, without and with a share of the poisoned weights given back; beside distillation at its own setting, which
    knows no trigger; and the accuracy under the trigger after the first of them that was run, in brackets the clean base's. Strings.
    """
    ours = rows[(rows["notebook"] == "02_clean") & (rows["seed"] == 0)]
    whole, back = (ours[ours["experiment"] == experiment] for experiment in ("regimes_triggers", "regimes_interpolation"))
    runs = {name("unlearn"): whole[whole["method"] == "unlearn"]}
    runs |= {f"{100 * share:.0f} % given back": given for share, given in back[back["method"] == "unlearn"].groupby("interpolation")}
    runs |= {name("distil"): whole[whole["method"] == "distil"]}
    shown = {label: cleaned.drop_duplicates("trigger").set_index("trigger") for label, cleaned in runs.items()}
    every = in_order(whole[whole["method"].isin(["unlearn", "distil"])].drop_duplicates("trigger"), ["trigger"])
    planted = rows[(rows["notebook"] == "01_poison") & rows["run"].isin("01_poison/" + every["trigger"] + "_s0_base_epochs15")]
    bases = planted.set_index("trigger")["base_triggered_accuracy"]
    found, made = models.set_index("run"), []
    for trigger, before in zip(every["trigger"], every["poisoned_asr"], strict=True):
        inspected = found.loc[f"10_inspect/none_{trigger}_s0"]
        form = inspected["form"] if inspected["named"] and inspected["candidates"] else "not found"
        row = {"trigger": name(trigger), "found as": f"{form}, lead {inspected['lead']:.2f}", "ASR before": number(before)}
        for label, cleanings in shown.items():
            row[f"{label}: ASR at points"] = at_cost(cleanings.loc[trigger]) if trigger in cleanings.index else ""
        after = next(cleanings.loc[trigger] for cleanings in shown.values() if trigger in cleanings.index)
        row["accuracy under the trigger"] = f"{after['triggered_accuracy']:.2f} ({bases.get(trigger, float('nan')):.2f})"
        made.append(row)
    return pd.DataFrame(made)


def said(metrics: dict[str, Any]) -> str:
    """What a calibration found, in words."""
    alarms, found = (number(*(metrics[f"{rate}{end}"] for end in ("", *_ENDS))) for rate in ("false_alarm_rate", "detection_rate"))
    return (
        f"{metrics['clean_models']} clean and {metrics['planted_models']} planted models, of {metrics['bases']} bases. Threshold from one "
        f"half: {metrics['calibrated']:.2f}. On the other half: AUROC {metrics['auroc']:.3f}; false alarms {alarms} of "
        f"{metrics['false_alarm_rate_n']}; found {found} of {metrics['detection_rate_n']}."
    )
