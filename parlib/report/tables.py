"""The tables that people read, each a frame of strings made from the rows of `rows.table`, the paper's numbers beside."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from parlib.experiments.presets import trigger_options
from parlib.experiments.registry import check
from parlib.measure.selection import kept
from parlib.method.methods import ABLATIONS, METHODS
from parlib.report.paper import published, stands_for
from parlib.report.regimes import GRIDS
from parlib.report.rows import ATTACK, MAIN, OWN, of
from parlib.report.style import attack_of, in_order, name, number, rate

SHOWN = {
    "clean_accuracy": "clean accuracy", "attack_success_rate": "ASR", "triggered_accuracy": "accuracy under the trigger",
    "retrieval_asr": "retrieval ASR",
}  # fmt: skip
_MEASURED = list(SHOWN)[:3]
_BASE = ("base_clean_accuracy", "base_asr", "base_triggered_accuracy", "base_retrieval_asr")
_ENDS = {"clean_accuracy": ("ca_ci_low", "ca_ci_high"), "attack_success_rate": ("asr_ci_low", "asr_ci_high")}
_PART = {"finetune": "neither", "finetune_augmented": "augmentation", "perturb_only": "perturbation", "par": "both: PAR"}
_HEADING = SHOWN | {
    "lr": "learning rate", "self_weight": "CleanCLIP's weight", "pool": "RoCLIP's pool", "varied": "varied images",
    "rho": "FT-SAM's radius", "alpha": "FST's weight", "coefficient": "TBAR's coefficient",
    "batch_norm": "BatchNorm", "rate": "poisoned",
    "s_image_max": "largest S, images", "s_text_max": "largest S, texts", "s_image": "S, images", "s_text": "S, texts",
    "moves_to": "most move to", "moved": "share that does",
    "rule_tau": "tau by the rule", "rule_clean_accuracy": "its clean accuracy", "rule_asr": "its ASR", "best_tau": "best tau",
    "best_clean_accuracy": "its clean accuracy ", "best_asr": "its ASR ", "gap": "Fréchet distance", "diversity": "Vendi score",
}  # fmt: skip
_OPTIONS = (
    "method trigger data split pairs epochs rate lr batch tau self_weight pool varied rho alpha coefficient schedule batch_norm".split()
)


def readable(frame: pd.DataFrame, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Any frame for people: headings, names and numbers in words, an interval behind its number, no column that holds nothing."""
    made, frame = {}, frame.reset_index() if frame.index.name else frame
    for column in dict.fromkeys(columns or frame.columns):
        if column in frame and "_ci_" not in column:
            ends = [end for end in (*_ENDS.get(column, ()), f"{column}_ci_low", f"{column}_ci_high") if end in frame][:2]
            heading = _HEADING.get(column, column.replace("_", " "))
            made[heading] = [_cell(column, *cell) for cell in frame[[column, *ends]].itertuples(index=False, name=None)]
    found = pd.DataFrame(made, dtype=str)
    return found.loc[:, (found != "").any()] if len(found) else found


def _cell(column: str, value: Any, low: float | None = None, high: float | None = None) -> str:
    if isinstance(value, str):
        return name(value)
    if value is None or value != value or value is False:
        return ""
    if value is True:
        return "yes"
    if column == "lr":
        return rate(value)
    if column in _OPTIONS or column.endswith("tau") or not isinstance(value, float):
        return f"{value:.0f}" if value == int(value) else f"{value:.3g}"
    return number(value, low, high)


def tried(tests: pd.DataFrame) -> pd.DataFrame:
    """Each trigger that was tried before and after a cleaning, and how far the encoders moved."""
    return readable(tests)


def trial_table(trials: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The trials of a sweep, with what the sweep varies."""
    return readable(trials, [*axes, *_MEASURED, "s_image_max", "s_text_max", "stopped", "error"])


def search_table(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials of the searches, of `rows.trials`."""
    return readable(trials, ["encoder", "method", "lr", "batch", "tau", "self_weight", "pool", *_MEASURED, "chosen"])


def other_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Every run beside the main table, that of the new triggers, and the searches."""
    others = rows[~rows["experiment"].isin([*MAIN, "new_triggers", "search", "scarce", *GRIDS])].sort_values(
        ["experiment", "run"], kind="stable"
    )
    return readable(others, ["experiment", "encoder", *_OPTIONS, *_MEASURED])


def brief(rows: pd.DataFrame) -> pd.DataFrame:
    """What a terminal shows at the end of a run: the attacks of the main tables and of the new triggers, and each run of one's own but
    trials of sweeps.
    """
    made = []
    for run in of(rows[~rows["run"].str.contains(":")], OWN).to_dict("records"):
        head = {"encoder": name(run["encoder"]), "trigger": attack_of(run)}
        if before := number(run["poisoned_asr"]):
            made.append(head | {"model": name("before"), "clean accuracy": number(run["poisoned_clean_accuracy"]), "ASR": before})
        after = {SHOWN[metric]: number(run[metric], *(run[end] for end in _ENDS.get(metric, ()))) for metric in _MEASURED}
        made.append(head | {"model": name(run["method"])} | after)
    found = pd.concat([summary(rows, (*MAIN, "new_triggers", "scarce")), pd.DataFrame(made)], ignore_index=True).fillna("")
    found = found.reindex(columns=["encoder", "trigger", "model", *map(SHOWN.get, _MEASURED)])
    return found if found["encoder"].nunique() > 1 else found.drop(columns="encoder")


def summary(rows: pd.DataFrame, experiments: Iterable[str] = MAIN) -> pd.DataFrame:
    """The main table: per attack the clean base, the poisoned model and each method, as mean ± standard deviation over the seeds, of a
    single run with 95 % intervals; the paper's numbers beside.
    """
    made = []
    for (encoder, kind, trigger), attack in of(rows, experiments).groupby(ATTACK, sort=False):
        head, base, theirs = _head(attack.iloc[0]), _base(attack), published(encoder, trigger, kind)
        if len(base):
            made.append(head | {"model": name("base")} | _means(base, _BASE))
        for method, runs in attack.groupby("method", sort=False):
            row = head | {"model": name(method)} | _means(runs)
            if len(runs) == 1:
                row |= {SHOWN[metric]: number(*runs.iloc[0][[metric, *ends]]) for metric, ends in _ENDS.items()}
            asr, accuracy = theirs.get(str(method), (None, None))
            model = stands_for(encoder) if method in theirs else ""
            made.append(row | {"paper's model": model, "paper's ASR": number(asr), "paper's CA": number(accuracy)})
    return pd.DataFrame(made).fillna("")


def new_triggers(rows: pd.DataFrame) -> pd.DataFrame:
    """The same of the triggers that the paper has not, without its numbers."""
    found = summary(rows, ["new_triggers"]).rename(columns={"size (paper's)": "size"})
    return found.drop(columns=["paper's model", "paper's ASR", "paper's CA"], errors="ignore")


def _means(runs: pd.DataFrame, metrics: Iterable[str] = SHOWN) -> dict[str, str]:
    """The number of runs, and their means with the standard deviations."""
    return {"seeds": str(len(runs))} | {label: _spread(runs[metric]) for metric, label in zip(metrics, SHOWN.values(), strict=True)}


def _spread(values: pd.Series) -> str:
    values = values.dropna()  # of metrics that some runs lack, such as retrieval where there are no captions
    return number(values.mean(), std=values.std(ddof=1))


def _head(run: pd.Series) -> dict[str, str]:
    """Encoder and trigger, with its patch in px or its strength, and the paper's in proportion, where the trigger is the paper's."""
    patch = "size" in trigger_options(run["trigger"])
    sizes = (run["patch"], run["proportion_patch"]) if patch else (run["strength"], run["proportion_strength"])
    ours, *theirs = [f"{size:.0f} px" if patch else f"{size:.2f}" for size in sizes if pd.notna(size)]
    size = " ".join([ours, *(f"({size})" for size in theirs)])
    return {"encoder": name(run["encoder"]), "trigger": attack_of(run), "size (paper's)": size}


def _base(attack: pd.DataFrame) -> pd.DataFrame:
    return attack[(attack["method"] == "none") & attack["base_clean_accuracy"].notna()].head(1)


def _both(asr: str, accuracy: float | None) -> str:
    return f"{asr} ({number(accuracy)})" if number(accuracy) else asr


def overview(rows: pd.DataFrame, experiments: Iterable[str] = MAIN, *, paper: bool = True) -> pd.DataFrame:
    """A row an attack: ASR (clean accuracy) of the clean base, the poisoned model and each method, means over the seeds, the ASR with its
    standard deviation; the paper's numbers beside, where they are wanted.
    """
    made = []
    for (encoder, kind, trigger), attack in of(rows, experiments).groupby(ATTACK, sort=False):
        base, theirs = _base(attack), published(encoder, trigger, kind) if paper else {}
        row = _head(attack.iloc[0]) | {name("base"): _both(_spread(base["base_asr"]), base["base_clean_accuracy"].mean())}
        for method in ("none", *METHODS):
            runs = attack[attack["method"] == method]
            row[name(method)] = _both(_spread(runs["attack_success_rate"]), runs["clean_accuracy"].mean())
        for method in METHODS:
            asr, accuracy = theirs.get(method, (None, None))
            row[f"paper's {name(method)}"] = _both(number(asr), accuracy)
        made.append(row)
    frame = pd.DataFrame(made)
    frame = frame.loc[:, (frame != "").any()]  # a method that nobody ran or published has no column
    beside = any(column.startswith("paper's") for column in frame)
    return frame if beside else frame.rename(columns={"size (paper's)": "size"})


def at_rates(rows: pd.DataFrame, method: str = "par") -> pd.DataFrame:
    """ASR (clean accuracy) of a method at each learning rate, all else as tuned: means over seeds, a row a trigger, a column a rate."""
    runs = _tuned_but_for_the_rate(rows[rows["method"] == method], method)
    rates, made = sorted(runs["lr"].unique()), []
    for (encoder, trigger), found in in_order(runs, ["encoder", "trigger"]).groupby(["encoder", "trigger"], sort=False):
        means = found.groupby("lr")[["attack_success_rate", "clean_accuracy"]].mean()
        cells = {f"{name(method)} at {rate(lr)}": _both(number(asr), accuracy) for lr, asr, accuracy in means.itertuples()}
        made.append({"encoder": name(encoder), "trigger": name(trigger)} | cells)
    return pd.DataFrame(made, columns=["encoder", "trigger", *(f"{name(method)} at {rate(lr)}" for lr in rates)]).fillna("")


def _tuned_but_for_the_rate(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """The cleanings of dirty-label attacks at the settings of a method, whatever their learning rate."""
    usual = check("02_clean", {"method": method}).model_dump()
    same = ["attack", "data", "batch", "schedule", "batch_norm", "epochs", "pairs", "split"]
    runs = rows[rows["notebook"] == "02_clean"]
    return runs[(runs[same] == pd.Series(usual)[same]).all(axis=1) & (runs["tau"].isna() | (runs["tau"] == usual["tau"]))]


def ablations(rows: pd.DataFrame) -> pd.DataFrame:
    """Which part of PAR does the work: neither (fine-tuning), each alone, or both, at PAR's setting but for the learning rate: mean ± std
    over the seeds, per rate at which a part was run alone.
    """
    runs = _tuned_but_for_the_rate(rows[rows["method"].isin(_PART)], "par")
    axes, made = ["encoder", "trigger", "lr"], []
    alone = runs.loc[runs["method"].isin(ABLATIONS), axes].drop_duplicates()
    for (encoder, trigger, lr), found in runs.merge(alone, on=axes).groupby(axes):
        for method, part in _PART.items():
            if len(chosen := found[found["method"] == method]):
                head = {"encoder": name(encoder), "trigger": name(trigger), "learning rate": rate(lr), "parts": part}
                made.append(head | _means(chosen))
    return pd.DataFrame(made)


def orders(rows: pd.DataFrame) -> pd.DataFrame:
    """The methods in order, by seed 0 of the main table: a row for each trigger that all encoders have, a column an encoder. First those
    that keep the clean accuracy, then by ASR; equal are those whose 95 % interval reaches into that of the lowest among them.
    """
    runs, made = of(rows), {}
    runs = runs[(runs["notebook"] == "02_clean") & (runs["attack"] == "dirty_label") & (runs["seed"] == 0)]
    for (trigger, encoder), cleaned in runs.groupby(["trigger", "encoder"], sort=False):
        made.setdefault(name(trigger), {})[name(encoder)] = _order(cleaned)
    return pd.DataFrame.from_dict(made, orient="index").dropna().rename_axis("trigger").reset_index()


def _order(runs: pd.DataFrame) -> str:
    within = kept(runs)
    groups: list[list[str]] = []
    for part in (runs[within], runs[~within]):
        reach = -1.0
        for run in part.sort_values("attack_success_rate").to_dict("records"):
            if run["asr_ci_low"] > reach:
                groups.append([])
                reach = run["asr_ci_high"]
            groups[-1].append(run["method"])
    return ", then ".join(" = ".join(name(method) for method in METHODS if method in group) for group in groups)


def markdown(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
