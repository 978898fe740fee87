"""Trade-off curves of clean accuracy and ASR, and how good one is."""

import itertools

import pandas as pd

from parlib.method.methods import METHODS

_AXES = """encoder trigger seed data coverage pairs tau self_weight pool varied rho alpha coefficient inverted interpolation refresh lr
schedule batch_norm epochs steps batch wordnet planted attacker base_epochs""".split()
_REST = ("target", "poisoned", "patch", "strength")  # which seldom vary, or follow from those


def ended(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials of a sweep that ran to their end."""
    return trials[(trials["error"] == "") & ~trials["stopped"]]


def varied(trials: pd.DataFrame) -> list[str]:
    """What a sweep varied, beside the method; of several triggers not their sizes."""
    axes = [*_AXES, "attack", "target", "poisoned", *(("patch", "strength") if trials["trigger"].nunique() == 1 else ())]
    return [axis for axis in axes if axis in trials and trials[axis].astype(str).nunique() > 1]


def area(trials: pd.DataFrame) -> float:
    """The hypervolume of a trade-off curve: the share of the unit square of clean accuracy and 1 - ASR that its points dominate."""
    best, total = 0.0, 0.0
    for accuracy, asr in sorted(zip(trials["clean_accuracy"], trials["attack_success_rate"], strict=True), reverse=True):
        total += accuracy * max(0.0, 1 - asr - best)
        best = max(best, 1 - asr)
    return total


def below(one: pd.DataFrame, other: pd.DataFrame) -> float | None:
    """The share of the clean accuracies that two trade-off curves both attain at which the first one's ASR is the lower; None where
    they share none.

    At a clean accuracy a curve's ASR is the lowest of its points that are at least so accurate.
    """
    found = [curve[["clean_accuracy", "attack_success_rate"]].to_numpy() for curve in (one, other)]
    low, high = max(points[:, 0].min() for points in found), min(points[:, 0].max() for points in found)
    if low >= high:
        return None
    cuts = sorted({low, high, *(accuracy for points in found for accuracy, _ in points if low < accuracy < high)})
    total = 0.0
    for start, end in itertools.pairwise(cuts):  # between two cuts neither changes
        ours, theirs = (points[points[:, 0] >= end, 1].min() for points in found)
        total += (end - start) * (ours < theirs)
    return total / (high - low)


def curves(trials: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A grid's trade-off curves by label: two or more trials that differ only in their method's own knob (tau, self_weight, pool, varied,
    or else lr), in its order, with the columns `knob` and `value`.
    """
    found = {}
    for method, runs in trials.groupby("method", sort=False):
        knob, others = (METHODS[method].options or ("lr",))[0], []
        for axis in (*_AXES, *_REST):  # those that tell trials apart, and don't just follow from another one
            if (
                axis != knob
                and axis in runs
                and len(runs[[*others, axis]].drop_duplicates()) > (len(runs[others].drop_duplicates()) if others else 1)
            ):
                others.append(axis)
        for values, curve in runs.groupby(others, sort=False, dropna=False) if others else [((), runs)]:
            label = ", ".join([method, *(f"{axis} {value}" for axis, value in zip(others, values, strict=True))])
            if len(curve) > 1:
                found[label] = curve.sort_values(knob).assign(knob=knob, value=curve[knob])
    return found
