"""What becomes of what was built on an encoder: a table and a figure, from the records of 09_downstream."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from parlib.experiments.downstream import BuiltOn
from parlib.experiments.examined import CONTROLS
from parlib.report.pictures import PLAIN, credited, show_image
from parlib.report.rebound import model_name, with_others
from parlib.report.style import STYLE, colour, finished, listed, number

_USES = {
    "probe": "a probe's accuracy",
    "caption": "a caption names its object",
    "retrieval": "caption finds its image, first",
    "image_retrieval": "image finds itself, first",
}
_TABLE = _USES | {
    "probe_asr": "probe: ASR",
    "probe_under": "probe: accuracy under the trigger",
    "probe_one_name": "probe: given one name",
    "caption_target": "captions that name the target under the trigger",
    "caption_bleu": "captions: BLEU",
    "others_caption": "a captioner of others names the object, before / dropped in",
    "others_caption_target": "it names the target under the trigger, before / dropped in",
}


def compared(found: BuiltOn, records: Iterable[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """The uses of a run, and of the published runs beside it at the scale small, by label."""
    return with_others(found.result.params, found.uses, records)


def uses(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a model: each use with the model in the place of the poisoned one, and, behind a stroke, built anew. A captioner of others is
    not built anew; it stands with the poisoned one and with the model in its place. Strings.
    """
    rows = []
    for key, found in tables.items():
        by_use = found.set_index("use")
        there = {use: words for use, words in _TABLE.items() if use in by_use.index}
        ways = {use: by_use.loc[use, ["before", "drop_in"] if use.startswith("others") else ["drop_in", "anew"]] for use in there}
        said = {words: " / ".join(number(value) for value in ways[use]) for use, words in there.items()}
        rows.append({"model": model_name(key)} | said)
    return pd.DataFrame(rows)


def drop_in(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Each use with the model dropped in, and built anew on it: a panel a use, a pair of bars a model, with 95 % intervals. The line: with
    the poisoned model, on which it was built.
    """
    first = next(iter(tables.values())).set_index("use")
    shown = [use for use in _USES if all((found["use"] == use).any() for found in tables.values())]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(shown), figsize=(1.2 + 3.1 * len(shown), 0.9 + 0.42 * len(tables)), sharey=True, squeeze=False)
        for ax, use in zip(axes[0], shown, strict=True):
            for place, (key, found) in enumerate(tables.items()):
                row, paint = found.set_index("use").loc[use], colour(key.partition(",")[0])
                for how, shift, alpha in (("drop_in", -0.2, 1.0), ("anew", 0.2, 0.35)):
                    error = [[row[how] - row[f"{how}_ci_low"]], [row[f"{how}_ci_high"] - row[how]]]
                    ax.barh(place + shift, row[how], 0.36, xerr=error, color=paint, alpha=alpha, error_kw={"lw": 0.8})
                    ax.text(1.06, place + shift, f"{row[how]:.3f}", va="center", fontsize=7)
            ax.axvline(first.loc[use, "before"], color="black", lw=0.8, ls="--")
            ax.set(
                title=_USES[use],
                xlim=(0, 1.22),
                xticks=[0, 0.5, 1],
                yticks=range(len(tables)),
                yticklabels=[model_name(key) for key in tables],
            )
            ax.grid(axis="y", visible=False)
        axes[0, 0].invert_yaxis()
        dropped = Patch(color="black", label="built on the poisoned model,\nthe model dropped in")
        handles = [dropped, Patch(color="black", alpha=0.35, label="built anew on it")]
        figure.legend(handles=handles, loc="outside right center")
    cleaned = {key: found for key, found in tables.items() if key not in CONTROLS} or tables
    finds = {key: found.set_index("use").loc[shown[0], "drop_in"] for key, found in cleaned.items()}
    said = listed(f"{value:.2f} ({model_name(key)})" for key, value in finds.items())
    note = "Test scenes, single runs, 95 % intervals. Dashed: with the poisoned model, as it was built."
    return finished(figure, f"A probe that was fitted before the cleaning has an accuracy of {said}", note)


def written(found: BuiltOn) -> Figure | None:
    """The first test scenes without and with the trigger, under each what a captioner wrote that was built on the poisoned model, with this
    one in its place, and what one wrote that was built anew. None without a captioner.
    """
    if found.written.empty:
        return None
    rows, test = found.written.to_dict("records"), found.subject.test
    count = len(rows) // 2
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(2, count, figsize=(2.3 * count, 5.4), squeeze=False)
        for ax, row, pixels in zip(axes.flat, rows, [*test.pixels[:count], *test.triggered[:count]], strict=True):
            said = [f"{how}: {row[key] or '(nothing)'}" for how, key in (("dropped in", "drop_in"), ("anew", "anew"))]
            show_image(ax, pixels, "\n".join(textwrap.fill(one, 32) for one in said))
    metrics, model = found.result.metrics, model_name(found.result.params.method)
    title = (
        f"{model}: captions name the object in {metrics['dropin_caption_accuracy']:.2f} (dropped in) and "
        f"{metrics['caption_accuracy']:.2f} (anew) of the scenes"
    )
    share = metrics["caption_target_share"]
    return credited(finished(figure, title, f"Above: clean. Below: with the trigger; built anew, {share:.3f} name the target."), test.names)
