"""How a setting is chosen: on a backdoor that one planted oneself, and, for tau, without knowing the trigger."""

from typing import Any

import pandas as pd

from parlib.method.methods import METHODS

MARGIN = 0.06  # of clean accuracy, that a cleaning may cost
MARGINS = (0.01, 0.02, 0.03, 0.06)
KNOBS = tuple(dict.fromkeys(option for method in METHODS.values() for option in method.options))  # of one method alone


def kept(runs: pd.DataFrame, margin: float = MARGIN, of: str = "clean_accuracy") -> pd.Series:
    """(N,) bool: which cleanings keep an accuracy within a margin of the poisoned model's; a cost of just that is within."""
    return runs[f"poisoned_{of}"] - runs[of] < margin + 1e-9  # as fractions of n scenes aren't exact


def choose(runs: pd.DataFrame, margin: float = MARGIN) -> Any:
    """The label of the run that the informed rule chooses, which knows the trigger and every class: of those that keep the clean accuracy
    the lowest ASR, between equal ones the higher clean accuracy; where there is none, the highest clean accuracy - ASR.
    """
    good = runs[kept(runs, margin)]
    if len(good):
        return good.sort_values(["attack_success_rate", "clean_accuracy"], ascending=[True, False]).index[0]
    return (runs["clean_accuracy"] - runs["attack_success_rate"]).sort_values(ascending=False).index[0]


def blind(runs: pd.DataFrame, margin: float = MARGIN) -> Any:
    """The label of the run that the blind rule chooses, which knows no trigger and only the user's own data: the highest rate whose clean
    accuracy on the classes that the clean pairs show is within the margin, then the least given back (`interpolation`), then the largest
    option of the method's own; where there is none, the highest such accuracy.
    """
    good = runs[kept_seen(runs, margin)]
    if not len(good):
        return seen_accuracy(runs).sort_values(ascending=False).index[0]
    kept_back = -good["interpolation"].astype(float).fillna(0.0) if "interpolation" in good else 0.0
    order = ["lr", "kept_back", *(knob for knob in KNOBS if knob in good)]
    return good.assign(kept_back=kept_back).sort_values(order, ascending=False).index[0]


def kept_seen(runs: pd.DataFrame, margin: float = MARGIN) -> pd.Series:
    """(N,) bool: as `kept`, on the classes that the clean pairs show."""
    return kept(pd.DataFrame({f"{start}own": seen_accuracy(runs, start) for start in ("", "poisoned_")}), margin, "own")


def seen_accuracy(runs: pd.DataFrame, start: str = "") -> pd.Series:
    """(N,) the clean accuracy on the classes that the clean pairs show: on all, where they show all. start: "poisoned_" for that of the
    poisoned model.
    """
    whole = runs[f"{start}clean_accuracy"]
    return runs[f"{start}clean_accuracy_seen"].fillna(whole) if f"{start}clean_accuracy_seen" in runs else whole


def tau_rule(curve: pd.DataFrame) -> Any:
    """The label of the trial whose tau to take without knowing the trigger, among trials of PAR that differ in tau alone: the largest
    tau that both encoders hold, S_phi and S_psi ending at it or above, at a clean accuracy within MARGIN of the poisoned model's;
    the smallest tau where there is none.
    """
    held = curve[["s_image_end", "s_text_end"]].min(axis=1) >= curve["tau"]
    good = curve[held & kept(curve)]
    return good["tau"].idxmax() if len(good) else curve["tau"].idxmin()


def rule_and_best(traced: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """For each curve over tau, what `tau_rule` takes beside what one would take who knew the trigger (`choose`)."""
    rows = []
    for label, curve in traced.items():
        if curve["knob"].iloc[0] == "tau" and len(curve) > 1:
            ours, best = curve.loc[tau_rule(curve)], curve.loc[choose(curve)]
            row = {"curve": label, "encoder": ours["encoder"], "trigger": ours["trigger"]}
            for name, trial in (("rule", ours), ("best", best)):
                row |= {f"{name}_tau": trial["tau"], f"{name}_clean_accuracy": trial["clean_accuracy"]}
                row[f"{name}_asr"] = trial["attack_success_rate"]
            rows.append(row)
    return pd.DataFrame(rows)
