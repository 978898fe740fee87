"""What a cleaning costs where clean pairs are few or show few classes: tables of the experiment `regimes`."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from parlib.measure.selection import KNOBS, MARGIN, MARGINS, blind, choose, kept, kept_seen
from parlib.report.style import REMOVED, in_order, listed, name, number, points, points_lost, rank, rate, starred

REGIME = ["encoder", "planted", "pairs", "coverage"]  # what tells one regime from another
# The studies of few pairs, beside that of `make reproduce`, scarce.
GRIDS = (
    *("regimes", "regimes_tau", "regimes_known", "regimes_edge", "regimes_interpolation", "regimes_triggers", "regimes_seeds"),
    *("regimes_steps", "regimes_share", "regimes_share_planted", "regimes_from_pairs"),
    *("distil_parts", "rebound", "downstream", "adaptive", "inspect"),
)
SHOWN = ("finetune", "par", "distil", "unlearn")  # by README
STRUCTURED = ("badnet_stripes", "blended_stripes", "blended_triangles", "blended_text")  # the paper's own triggers


def searched(rows: pd.DataFrame, *more: str) -> pd.DataFrame:
    """The trials of the regimes' searches, and of more experiments, that ended."""
    return rows[rows["experiment"].isin(("regimes", *more)) & (rows["split"] == "validation") & rows["clean_accuracy"].notna()]


def trials(rows: pd.DataFrame, *more: str) -> pd.DataFrame:
    """What `searched` finds, in order of regime and method, with the cost in clean accuracy: of all classes (`cost`), of those that the
    pairs show (`cost_seen`) and of the others (`cost_unseen`, missing where there is none).
    """
    found = searched(rows, *more).copy()
    for end in ("", "_seen", "_unseen"):
        found[f"cost{end}"] = found[f"poisoned_clean_accuracy{end}"] - found[f"clean_accuracy{end}"]
    found["cost_seen"] = found["cost_seen"].fillna(found["cost"])
    return in_order(found, [*REGIME, "method", "lr", "tau", "self_weight", "varied", "rho", "alpha", "coefficient", "interpolation"])


def where(found: pd.DataFrame, method: str) -> pd.DataFrame:
    """The trials of the regimes in which a method was searched."""
    return found.merge(found.loc[found["method"] == method, REGIME].drop_duplicates(), on=REGIME)


def today(rows: pd.DataFrame) -> pd.DataFrame:
    """The cleanings of `make reproduce`: one of each method, in the regime that README names, on the test scenes."""
    return rows[(rows["experiment"] == "scarce") & (rows["notebook"] == "02_clean")]


def classes_of(coverage: float) -> str:
    return "all classes" if coverage == 1 else f"{100 * coverage:.0f} % of the classes"


def title_of(regime: Any) -> str:
    """A regime in words, from a row: "720 pairs, all classes"; with its encoder where that is not the usual one."""
    planted = ", planted in pretraining" if regime["planted"] == "pretraining" else ""
    other = "" if regime["encoder"] == "small_resnet" else f", {name(regime['encoder'])}"
    return f"{regime['pairs']:,.0f} pairs, {classes_of(regime['coverage'])}{planted}{other}"


def frontier(runs: pd.DataFrame) -> pd.DataFrame:
    """Those of a method's trials that no other one beats in cost and ASR, by cost: the columns cost and attack_success_rate."""
    found = runs.sort_values(["cost", "attack_success_rate"])
    lowest = found["attack_success_rate"].cummin()
    return found[(found["attack_success_rate"] == lowest) & ~lowest.duplicated()]


def least_cost(runs: pd.DataFrame, asr: float = REMOVED) -> pd.Series | None:
    """The cheapest trial that takes the ASR to this or below, of equal ones that with the lowest; None where none does."""
    gone = runs[runs["attack_success_rate"] <= asr]
    return None if gone.empty else gone.assign(cost=gone["cost"].round(6)).sort_values(["cost", "attack_success_rate"]).iloc[0]


def costs(found: pd.DataFrame) -> pd.DataFrame:
    """A row a regime and method: the cheapest trial that removes the backdoor, its cost in points on all, seen and unseen classes, the
    lowest ASR within MARGIN, and what the two rules take, and whether at the highest rate that was run (`_edge`); blind_kept: whether any
    trial is within the margin where the blind rule looks.
    """
    rows = []
    for _, runs in found.groupby([*REGIME, "method"], sort=False, dropna=False):
        row = {column: runs[column].iloc[0] for column in [*REGIME, "method"]} | {"trials": len(runs)}
        best = least_cost(runs)
        row |= {"removed": best is not None, "within_asr": runs.loc[kept(runs), "attack_success_rate"].min()}
        if best is not None:
            row |= {end: points(best[end]) for end in ("cost", "cost_seen", "cost_unseen")}
            row |= {setting: best[setting] for setting in (*KNOBS, "interpolation", "lr")}
            row |= {"asr": best["attack_success_rate"], "under": best["triggered_accuracy"]}
        for rule, chosen in (("informed", runs.loc[choose(runs)]), ("blind", runs.loc[blind(runs)])):
            row |= {f"{rule}_asr": chosen["attack_success_rate"], f"{rule}_cost": points(chosen["cost"]), f"{rule}_lr": chosen["lr"]}
            row[f"{rule}_edge"] = chosen["lr"] == runs["lr"].max()
        rows.append(row | {"blind_kept": bool(kept_seen(runs).any())})
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*REGIME, "method"])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """`costs` as people read it: strings. In brackets is what the blind rule falls back on where no trial is within the margin."""
    shown = lambda value: "" if pd.isna(value) else f"{value:.1f}"  # noqa: E731
    rows = []
    for row in table.to_dict("records"):
        ours = {"clean pairs": title_of(row), "method": name(row["method"])}
        ours[f"cost of an ASR of {REMOVED:g}, points"] = shown(row["cost"]) if row["removed"] else "not reached"
        ours["on seen classes"] = shown(row["cost_seen"]) if row["removed"] else ""
        ours["on unseen classes"] = shown(row["cost_unseen"]) if row["removed"] else ""
        ours["at the rate"] = rate(row["lr"]) if row["removed"] else ""
        took = {"blind rule: ASR": f"{row['blind_asr']:.3f}", "its cost": shown(row["blind_cost"])}
        took["its rate"] = rate(row["blind_lr"]) + (", highest" if row["blind_edge"] else "")
        rows.append(ours | {column: value if row["blind_kept"] else f"({value})" for column, value in took.items()})
    return pd.DataFrame(rows)


def filled(table: pd.DataFrame, there: pd.DataFrame) -> pd.DataFrame:
    """`costs` of one kind of machine; where a method was not searched on it, those of another, with a `star` for tables."""
    key = [*REGIME, "method"]
    return in_order(starred(table, there, key), key)


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """`costs` as README shows them: a row a regime, a column a method of SHOWN: what its cheapest removal costs, at its rate. Strings."""
    rows = []
    for _, ours in table[table["method"].isin(SHOWN)].groupby(REGIME, sort=False):
        row = {"clean pairs": title_of(ours.iloc[0])}
        rows.append(row | {name(run["method"]): _removal(run) + _star(run) for run in ours.to_dict("records")})
    return pd.DataFrame(rows, columns=["clean pairs", *(name(one) for one in SHOWN if one in set(table["method"]))]).fillna("")


def by_method(table: pd.DataFrame, shown: Callable[[Mapping[str, Any]], str]) -> pd.DataFrame:
    """`costs` as a row a method, a column a regime; shown: `removal` or `taken_blind`. Strings."""
    made: dict[str, dict[str, str]] = {}
    for run in table.sort_values("method", key=lambda methods: methods.map(rank), kind="stable").to_dict("records"):
        made.setdefault(run["method"], {"method": name(run["method"])})[title_of(run)] = shown(run)
    return pd.DataFrame(list(made.values()), columns=["method", *dict.fromkeys(map(title_of, table.to_dict("records")))]).fillna("")


def removal(run: Mapping[str, Any]) -> str:
    """What the cheapest removal costs, at its rate; in brackets on seen and unseen classes, where the pairs lack some."""
    parts = run["removed"] and pd.notna(run["cost_unseen"])
    return _removal(run) + (f" ({run['cost_seen']:.1f}, {run['cost_unseen']:.1f})" if parts else "") + _star(run)


def _star(run: Mapping[str, Any]) -> str:
    return run.get("star", "")


def _removal(run: Mapping[str, Any]) -> str:
    return f"{run['cost']:.1f} at `{rate(run['lr'])}`" if run["removed"] else "not reached"


def taken_blind(run: Mapping[str, Any]) -> str:
    """The ASR that the blind rule leaves, at its cost and rate; in brackets where no trial is within the margin."""
    took = f"{run['blind_asr']:.3f} at {run['blind_cost']:.1f}, `{rate(run['blind_lr'])}`" + ("+" if run["blind_edge"] else "")
    return (took if run["blind_kept"] else f"({took})") + _star(run)


def claim(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's claim, regime by regime, from `costs`: PAR removes the backdoor at little cost, for which MARGIN stands here, and
    CleanCLIP does not; and whether PAR pays less than fine-tuning, of which the paper says nothing. Strings: what each pays in points, and
    yes or no; empty where one of the two was not run.
    """
    rows, others, par = [], ("cleanclip", "finetune"), name("par")
    for _, ours in table[table["method"].isin(("par", *others))].groupby(REGIME, sort=False):
        pays = {run["method"]: run["cost"] if run["removed"] else float("inf") for run in ours.to_dict("records")}
        if "par" not in pays:
            continue
        row = {"clean pairs": title_of(ours.iloc[0])}
        for run in ours.to_dict("records"):
            row[name(run["method"])] = (f"{run['cost']:.1f}" if run["removed"] else "not reached") + _star(run)
        cheaper = {"at little cost": pays["par"] <= 100 * MARGIN}
        cheaper |= {f"cheaper than {name(other)}": pays["par"] < pays[other] for other in others if other in pays}
        rows.append(row | {f"{par} {what}": "yes" if so else "no" for what, so in cheaper.items()})
    columns = ["clean pairs", *map(name, ("finetune", "cleanclip", "par")), f"{par} at little cost"]
    columns += [f"{par} cheaper than {name(other)}" for other in others]
    return pd.DataFrame(rows, columns=[column for column in columns if any(column in row for row in rows)]).fillna("")


def guide(table: pd.DataFrame) -> pd.DataFrame:
    """A row a regime: the method whose removal is the cheapest, its setting, and what to expect. Strings."""
    rows = []
    for _, ours in table.groupby(REGIME, sort=False):
        row = {"clean pairs": title_of(ours.iloc[0]), "were run": listed(map(name, ours["method"]))}
        able = ours[ours["removed"]]
        if able.empty:
            rows.append(row | {"use": "none of them"})
            continue
        best = able.loc[able["cost"].idxmin()]
        row |= {"use": name(best["method"]), "at the rate": f"`{rate(best['lr'])}`" + _knob(best)}
        row |= {"expect to lose, points": f"{best['cost']:.1f}"}
        row |= {"on unseen classes": "" if pd.isna(best["cost_unseen"]) else f"{best['cost_unseen']:.1f}"}
        rows.append(row | {"ASR": number(best["asr"]), "accuracy under the trigger": number(best["under"])})
    return pd.DataFrame(rows).fillna("")


def _knob(best: pd.Series) -> str:
    """A setting's own option, as its parameter is called."""
    return "".join(f", `{knob} {best[knob]:g}`" for knob in KNOBS if pd.notna(best[knob]))


def at_cost(run: Any) -> str:
    """The ASR that a cleaning left, and what it cost in points of clean accuracy, in words."""
    return f"{run['attack_success_rate']:.3f} at {points_lost(run):.1f}"


def _at_chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """What each method does to each trigger at the setting that was chosen on one of them, on test scenes."""
    found = rows[rows["experiment"].isin(("scarce", "regimes_triggers")) & (rows["notebook"] == "02_clean")]
    found = found.sort_values("experiment", ascending=False).drop_duplicates(["trigger", "method"], keep="last")  # of two, this study's
    return in_order(found, ["trigger", "method"])


def structured(rows: pd.DataFrame) -> dict[str, int]:
    """Of how many of the four structured triggers a method removes the backdoor, at the setting that was chosen on one of them: by method,
    of those that were run on all four.
    """
    found = _at_chosen(rows)
    found = found[found["trigger"].isin(STRUCTURED)]
    removed = found.assign(removed=found["attack_success_rate"] <= REMOVED).groupby("method", sort=False)["removed"].agg(["sum", "size"])
    return {str(method): int(able) for method, able, ran in removed.itertuples() if ran == len(STRUCTURED)}


def by_trigger(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a trigger, a column a method: the ASR and the cost in points of what was chosen on one trigger, on test scenes. Strings."""
    made: dict[str, dict[str, str]] = {}
    for run in _at_chosen(rows).to_dict("records"):
        made.setdefault(name(run["trigger"]), {"trigger": name(run["trigger"])})[name(run["method"])] = at_cost(run)
    return pd.DataFrame(list(made.values())).fillna("")


def at_margins(found: pd.DataFrame) -> pd.DataFrame:
    """A row a regime and method, two columns a margin: the lowest ASR at no more than that cost, and the one that the blind rule leaves, as
    people read it; empty where no trial costs so little.
    """
    rows = []
    for _, runs in found.groupby([*REGIME, "method"], sort=False, dropna=False):
        row = {"clean pairs": title_of(runs.iloc[0]), "method": name(runs["method"].iloc[0])}
        for margin in MARGINS:
            row[f"ASR within {100 * margin:.0f} points"] = number(runs.loc[kept(runs, margin), "attack_success_rate"].min())
            took = runs.loc[blind(runs, margin), "attack_success_rate"] if kept_seen(runs, margin).any() else None
            row[f"blind, {100 * margin:.0f}"] = number(took)
        rows.append(row)
    return pd.DataFrame(rows)
