"""From records to rows: table.csv, the trials of a search and the one that its rule chooses, which attacks were planted."""

from typing import Any

import pandas as pd

from parlib import records
from parlib.cache import ROOT
from parlib.data.scenes import Pairs
from parlib.measure.metrics import evaluate
from parlib.experiments.ids import scale_defaults, specific
from parlib.experiments.lineage import learned_pattern
from parlib.method.methods import ABLATIONS, METHODS
from parlib.model.clip import Clip
from parlib.experiments.params import Clean, Poison, check
from parlib.attack.poison import attacked
from parlib.experiments.presets import NEW, PROPORTION

REFERENCE = ROOT / "outputs" / "reference"
# The paper's trade-off curve, read off its figure, as (CA, ASR): neither encoder nor attack nor knob is stated there;
# BadNet-Stripes on RN50 fits.
PAPER_CURVES: dict[str, list[tuple[float, float]]] = {
    "poisoned": [(0.575, 0.992)],
    "PAR": [(0.559, 0.707), (0.555, 0.634), (0.546, 0.424), (0.532, 0.361), (0.525, 0.365), (0.504, 0.127), (0.446, 0.105), (0.423, 0.036)],
    "PAR, SynthCLIP": [(0.510, 0.471), (0.495, 0.445), (0.490, 0.450), (0.482, 0.220), (0.463, 0.142), (0.442, 0.101), (0.416, 0.038)],
    "CleanCLIP": [(0.530, 0.680), (0.529, 0.627), (0.528, 0.757), (0.527, 0.602), (0.505, 0.587), (0.438, 0.587), (0.355, 0.691)],
}
COLUMNS = """
notebook run table attack encoder trigger patch strength proportion_patch proportion_strength rate method data pairs tau
self_weight pool lr schedule batch_norm epochs batch seed split clean_accuracy ca_ci_low ca_ci_high attack_success_rate
asr_ci_low asr_ci_high asr_with_target_class triggered_accuracy tr_at_1 ir_at_1 retrieval_asr base_clean_accuracy base_asr
base_triggered_accuracy base_retrieval_asr poisoned_clean_accuracy poisoned_asr share_above_tau_image share_above_tau_text
seconds
""".split()
MARGIN = 0.06  # of clean accuracy, that a cleaning may cost


def kept(runs: pd.DataFrame) -> pd.Series:
    """(N,) bool: which cleanings keep the clean accuracy within MARGIN of the poisoned model's; a cost of just that is within."""
    return runs["poisoned_clean_accuracy"] - runs["clean_accuracy"] < MARGIN + 1e-9  # as fractions of n scenes aren't exact


def table(found: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a record, for sweeps a row a trial, with the columns of table.csv; table is 1 in the main table, 2 in that of the
    ablations, 3 in that of the new triggers, else 0.
    """
    rows = [row for record in found for row in (_trial_rows(record) if "timings" in record else [_row(record)])]
    return pd.DataFrame(rows, columns=COLUMNS)


def _trial_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    trials = pd.DataFrame(record["history"]).assign(seconds=record["timings"]["seconds"])
    same = {"notebook": record["notebook"], "table": 0}
    rows = []
    for i, trial in enumerate(trials.to_dict("records")):  # what diverged or was stopped too, without results
        unused = {"tau", "self_weight", "pool"} - set(METHODS[trial["method"]].options)
        unused |= {"clean_accuracy", "attack_success_rate", "triggered_accuracy"} if trial["error"] or trial["stopped"] else set()
        rows.append(trial | same | _proportion(trial["trigger"]) | {"run": f"{record['run']}:{i}"} | dict.fromkeys(unused))
    return rows


def _proportion(trigger: str) -> dict[str, Any]:
    patch, strength = PROPORTION.get(trigger, (None, None))
    return {"proportion_patch": patch, "proportion_strength": strength}


def _row(record: dict[str, Any]) -> dict[str, Any]:
    params, metrics, history = record["params"], record["metrics"], record["history"]
    poisoning = record["notebook"] == "01_poison"
    kind, name = (Poison, "contrast") if poisoning else (Clean, params["method"])
    named = {axis: params[axis] for axis in ("scale", "encoder", "trigger", "attack", "seed")} | ({} if poisoning else {"method": name})
    defaults = scale_defaults(record["notebook"], params["scale"], *specific(named))
    usual = check(record["notebook"], defaults | named)
    aside: dict[str, Any] = {"compute": {}} | ({} if poisoning else {"tests": []})  # which don't make it another run
    same = kind(**params | aside) == kind(**usual.model_dump() | aside)
    row = {column: params[column] for column in params if column in COLUMNS}
    row |= {column: metrics[column] for column in metrics if column in COLUMNS}
    row |= _proportion(params["trigger"])
    row |= {
        "notebook": record["notebook"],
        "run": record["run"],
        "table": (2 if name in ABLATIONS else 3 if params["trigger"] in NEW else 1) if same else 0,
        "method": "none" if poisoning else name,
        "pairs": params["train_scenes"] if poisoning else params["pairs"],
        "schedule": "warmup_cosine" if poisoning else params["schedule"],
        "batch_norm": "train" if poisoning else params["batch_norm"],
        "ca_ci_low": metrics.get("clean_accuracy_ci_low"),
        "ca_ci_high": metrics.get("clean_accuracy_ci_high"),
        "asr_ci_low": metrics["attack_success_rate_ci_low"],
        "asr_ci_high": metrics["attack_success_rate_ci_high"],
        "seconds": record["seconds"],
    }
    for option in ("tau", "self_weight", "pool"):
        row[option] = params[option] if option in METHODS[name].options else None
    for tower in ("image", "text"):
        if f"s_{tower}" in history:
            row[f"share_above_tau_{tower}"] = sum(s > params["tau"] for s in history[f"s_{tower}"]) / len(history[f"s_{tower}"])
    return row


def trials(table: pd.DataFrame) -> pd.DataFrame:
    """The searches: every cleaning that was judged on the validation split, with the one that the rule chooses per method
    and encoder (`chosen`) and the clean accuracy that it must keep (`limit`).

    The rule: of a method's trials on an encoder with clean accuracy >= the poisoned model's - 0.06 the lowest ASR, between equal
    ones the higher clean accuracy; where there is none, the highest clean accuracy - ASR.
    """
    found = table[(table["notebook"] == "02_clean") & (table["split"] == "validation")].copy()
    found["limit"], found["chosen"] = found["poisoned_clean_accuracy"] - MARGIN, False
    for _, runs in found.groupby(["encoder", "method"]):
        found.loc[choose(runs), "chosen"] = True
    found["order"] = found["method"].map(list(METHODS).index)
    return found.sort_values(["encoder", "order", "lr", "tau", "self_weight", "pool", "batch"]).drop(columns="order")


def choose(runs: pd.DataFrame) -> Any:
    """The label of the run that the rule of `trials` chooses."""
    good = runs[kept(runs)]
    if len(good):
        return good.sort_values(["attack_success_rate", "clean_accuracy"], ascending=[True, False]).index[0]
    return (runs["clean_accuracy"] - runs["attack_success_rate"]).sort_values(ascending=False).index[0]


def tried(models: dict[str, Clip], images: Pairs, triggers: list[dict[str, Any]]) -> pd.DataFrame:
    """What each model does under each trigger, given by its options: a row a trigger and model."""
    shown = ("clean_accuracy", "attack_success_rate", "attack_success_rate_ci_low", "attack_success_rate_ci_high", "triggered_accuracy")
    rows = []
    for options in triggers:
        test = attacked(images, **options)  # one at a time: each takes as much memory as the images
        for name, clip in models.items():
            found = evaluate(clip, test)
            rows.append({"trigger": options["trigger"], "model": name} | {metric: found[metric] for metric in shown})
    return pd.DataFrame(rows)


def planted_triggers(found: list[dict[str, Any]], rows: pd.DataFrame, kind: int = 1) -> list[dict[str, Any]]:
    """Each trigger of a table's poisoned models (1: the main one), with the options that it was planted with.

    found: records; rows: theirs, by `table`. Raises ValueError when none is planted.
    """
    runs = set(rows.loc[(rows["table"] == kind) & (rows["notebook"] == "01_poison"), "run"])
    planted: dict[str, dict[str, Any]] = {}
    for record in found:
        if record["run"] in runs:
            planted.setdefault(record["params"]["trigger"], record)  # small_resnet's come first
    if not planted:
        raise ValueError("no such trigger has been planted yet; the runs that plant one: python -m parlib.cli.run params/small --list")
    return [
        {name: record["params"][name] for name in ("trigger", "target", "patch", "strength")} | learned_pattern(record)
        for record in planted.values()
    ]


def maps(found: list[dict[str, Any]], rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The embedding maps of the default attack, seed 0: the poisoned model and what each method made of it."""
    panels: dict[str, pd.DataFrame] = {}
    for record in mapped(found, rows):
        points = pd.read_csv(records.located(record["artifacts"]["points"]))
        panels.setdefault("none", points[points["model"] == "poisoned"])
        panels[record["params"]["method"]] = points[points["model"] != "poisoned"]
    return {method: panels[method] for method in ("none", *METHODS) if method in panels}


def mapped(found: list[dict[str, Any]], rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The records whose embedding maps notebook 05 shows."""
    usual = {name: Clean.model_fields[name].default for name in ("encoder", "trigger", "attack", "seed")}
    shown = (rows[list(usual)] == pd.Series(usual)).all(axis=1) & (rows["table"] > 0) & (rows["notebook"] == "02_clean")
    runs = rows.loc[shown, "run"]
    return [record for record in found if record["run"] in set(runs)]
