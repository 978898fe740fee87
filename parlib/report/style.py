"""What tables and figures share: names and numbers as people read them, colours, and an axis on which a rate of 0 has its place."""

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from math import copysign
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

CREDIT = "Glyphs: OpenMoji, CC BY-SA 4.0"
ASR, ACCURACY = "attack success rate (ASR)", "clean accuracy"
REMOVED = 0.05  # the ASR at or below which a table or figure says that a backdoor is removed
COLOUR = {
    "base": "#7f7f7f", "none": "#d62728", "poisoned": "#d62728", "before": "#d62728", "finetune": "#1f77b4", "cleanclip": "#ff7f0e",
    "roclip": "#8c564b", "par": "#2ca02c", "distil": "#9467bd", "ftsam": "#e377c2", "fst": "#0e9aa7", "superft": "#637939",
    "unlearn": "#b8860b", "invertune": "#e7969c", "tbar": "#333333", "finetune_augmented": "#17becf", "perturb_only": "#bcbd22",
}  # fmt: skip
# In the order in which people meet them; a name that is not here is shown as it is, after these.
NAME = {
    "small_resnet": "small ResNet", "small_vit": "small ViT", "lite0_minilm": "Lite0 + MiniLM",
    "dirty_label": "", "label_consistent": "label-consistent",
    "base": "clean base", "none": "poisoned", "poisoned": "poisoned", "before": "before", "finetune": "fine-tuning",
    "cleanclip": "CleanCLIP", "roclip": "RoCLIP", "par": "PAR", "distil": "distillation", "unlearn": "unlearning",
    "invertune": "InverTune", "tbar": "TBAR", "ftsam": "FT-SAM", "fst": "FST",
    "superft": "super-fine-tuning", "finetune_augmented": "PAR without perturbation",
    "distil_without_patches": "without patches", "distil_without_blends": "without blends", "distil_without_noise": "without noise",
    "distil_without_clean_term": "without the clean term", "perturb_only": "PAR without augmentation",
    "after": "after", "badnet": "BadNet", "badnet_stripes": "BadNet-Stripes",
    "blended": "Blended", "blended_stripes": "Blended-Stripes", "blended_triangles": "Blended-Triangles", "blended_text": "Blended-Text",
    "wanet": "WaNet", "wanet_smooth": "WaNet, smooth", "sig": "SIG", "badclip": "BadCLIP", "checkerboard": "checkerboard",
    "picture": "picture", "colour_filter": "colour filter", "camouflage": "camouflage", "resistant": "resistant patch",
    "scenes": "real pairs", "self_weight": "weight", "lr": "rate",
}  # fmt: skip
STYLE: Any = {
    "figure.dpi": 90, "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False,
    "axes.axisbelow": True,
}  # fmt: skip
plt.rcParams["svg.hashsalt"] = "parlib"  # read where a figure is saved: the same figure is the same file
_LINEAR, _LEAST = 1e-3, -1.5e-4  # below the first the axis of a rate is linear; the second is its end


def name(word: Any) -> str:
    """A method, encoder, trigger or option as people say it."""
    return NAME.get(word, str(word))


def rank(word: Any) -> int:
    """The place of a word in the order in which people meet it."""
    return list(NAME).index(word) if word in NAME else len(NAME)


def in_order(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Rows by columns, words in the order in which people meet them."""
    key = lambda column: column if pd.api.types.is_numeric_dtype(column) else column.map(rank)  # noqa: E731
    return frame.sort_values(list(columns), key=key, kind="stable")


def starred(here: pd.DataFrame, there: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Rows of one kind of machine and, where it has none with the same values in these columns, those of another, with a `star` for
    tables.
    """
    known = pd.MultiIndex.from_frame(here[by])
    others = there[~pd.MultiIndex.from_frame(there[by]).isin(known)]
    return pd.concat([here.assign(star=""), others.assign(star="\\*")], ignore_index=True)


def colour(method: str) -> str:
    """A method's colour in every figure."""
    return COLOUR.get(method, "#9467bd")


def number(value: float | None, low: float | None = None, high: float | None = None, std: float | None = None) -> str:
    """A number for people: "0.001", "0.001 (0.000 to 0.004)" or "0.001 ± 0.002"; empty where there is none."""
    if value is None or pd.isna(value):
        return ""
    if std is not None and not pd.isna(std):
        return f"{value:.3f} ± {std:.3f}"
    return f"{value:.3f}" if low is None or pd.isna(low) else f"{value:.3f} ({low:.3f} to {high:.3f})"


def left_over(asr: float | None) -> str:
    """An ASR with three digits; with four where three would read as if it were at the limit of what counts as removed."""
    return number(asr) if asr is None or not round(asr, 3) == REMOVED < asr else f"{asr:.4f}"


def points(share: float) -> float:
    """A share in points, so that a half of the decimal that is shown goes away from 0, whatever its binary form."""
    return round(100 * share, 6) + copysign(1e-9, share)


def points_lost(run: Mapping[str, Any] | pd.Series, of: str = "") -> float:
    """What a cleaning cost in clean accuracy, in points; of: "_seen" for that on the classes that the clean pairs show."""
    return points(run[f"poisoned_clean_accuracy{of}"] - run[f"clean_accuracy{of}"])


def rate(value: float) -> str:
    """A learning rate, such as 2.5e-4."""
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def listed(words: Iterable[Any]) -> str:
    """Words, each once, as in "a, b and c"; empty where there is none."""
    *others, last = dict.fromkeys(map(str, words)) or [""]
    return f"{', '.join(others)} and {last}" if others else last


def attack_of(row: Mapping[str, Any] | pd.Series) -> str:
    """What was attacked and how, from a row of `rows.table`: the trigger, and the attack where it isn't the usual one."""
    return ", ".join(filter(None, (name(row["trigger"]), name(row["attack"]))))


def finished(figure: Figure, title: str, note: str = "", size: float = 11) -> Figure:
    """A figure with what it says above it and how to read it below; closed, as the caller shows it and a notebook would show it twice."""
    width = figure.get_size_inches()[0]
    figure.suptitle(textwrap.fill(title, int(120 * width / size)), x=0.01, ha="left", fontsize=size, fontweight="bold")
    figure.text(0.01, -0.01, textwrap.fill(note, int(17 * width)), ha="left", va="top", fontsize=7.5, color="#555555")
    plt.close(figure)
    return figure


def legend(figure: Figure, methods: Iterable[str]) -> None:
    """The methods' colours, right of the panels."""
    shown = [Line2D([], [], ls="", marker="o", color=colour(method), label=name(method)) for method in dict.fromkeys(methods)]
    figure.legend(handles=shown, loc="outside right center")


def rate_axis(ax: Axes, axis: str = "y", *, label: bool = True) -> None:
    """A log axis for the ASR that is linear from 0.001 down, where a band is, so that 0 has its place."""
    ticks = [0, 0.001, 0.01, 0.1, 1]
    getattr(ax, f"set_{axis}scale")("symlog", linthresh=_LINEAR, linscale=0.6)
    getattr(ax, f"set_{axis}lim")(_LEAST, 1.4)
    getattr(ax, f"set_{axis}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    getattr(ax, f"set_{axis}ticks")([], minor=True)
    getattr(ax, f"set_{axis}label")(ASR if label else "")
    (ax.axhspan if axis == "y" else ax.axvspan)(_LEAST, _LINEAR, color="black", alpha=0.04, lw=0)


def heat(ax: Axes, asr: pd.DataFrame) -> AxesImage:
    """Colour a cell an ASR, on a log scale that is linear below 0.001; none where it is missing."""
    return ax.imshow(asr, cmap="Reds", norm=SymLogNorm(_LINEAR, vmin=0, vmax=1), aspect="auto")


def ink(asr: float) -> str:
    """The colour of words on such a cell."""
    return "white" if asr > 0.04 else "black"


def cost_axis(ax: Axes, least: float, axis: str = "y") -> None:
    """A log axis for the points that a cleaning costs, from the least on, that is linear from 2 down, as it may gain some."""
    ticks = [0, 1, 2, 5, 10, 20, 50]
    getattr(ax, f"set_{axis}scale")("symlog", linthresh=2, linscale=0.7)
    getattr(ax, f"set_{axis}ticks")(ticks, [f"{tick}" for tick in ticks])
    getattr(ax, f"set_{axis}ticks")([], minor=True)
    getattr(ax, f"set_{axis}lim")(min(-1.5, least - 0.5), 100)


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.062) -> None:
    """Write (x, y, words, colour) right of a panel whose limits are set, each at the height of its point, apart from one another."""
    heights = [ax.transAxes.inverted().transform(ax.transData.transform((x, y)))[1] for x, y, *_ in ends]
    order, places = sorted(range(len(ends)), key=heights.__getitem__), list(heights)
    for low, high in itertools.pairwise(order):  # up from the lowest
        places[high] = max(places[high], places[low] + gap)
    top = 1.0
    for i in reversed(order):  # and down again, where they would stand above the panel
        places[i] = min(places[i], top)
        top = places[i] - gap
    for i, (x, y, words, paint) in enumerate(ends):
        line = {"arrowstyle": "-", "color": paint, "lw": 0.6, "alpha": 0.6, "shrinkB": 4}
        ax.annotate(words, (x, y), (1.03, places[i]), textcoords="axes fraction", va="center", fontsize=8, color=paint, arrowprops=line)
