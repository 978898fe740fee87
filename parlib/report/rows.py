"""From records to rows: the published table, the trials of the searches and what their rule chooses, which triggers were planted."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from parlib.attack.triggers import Trigger
from parlib.experiments.lineage import learned_pattern
from parlib.experiments.presets import proportion
from parlib.experiments.registry import check
from parlib.measure.distance import share_above
from parlib.measure.selection import MARGIN, blind, choose
from parlib.records.store import artifact_file
from parlib.report.regimes import REGIME, searched, title_of
from parlib.report.style import in_order, rank

ATTACK = ["encoder", "attack", "trigger"]  # what tells the rows of one attack from those of others
MAIN = ("main", "second_encoder", "other_attacks")  # the experiments of the main table
OWN = ("", "own")  # those of one's own runs
COLUMNS = """
notebook run experiment attack encoder trigger patch strength proportion_patch proportion_strength rate planted attacker base_epochs
method data pairs coverage tau self_weight pool varied rho alpha coefficient inverted interpolation refresh lr schedule batch_norm epochs
steps batch seed split rule clean_accuracy ca_ci_low ca_ci_high clean_accuracy_seen clean_accuracy_unseen attack_success_rate asr_ci_low
asr_ci_high asr_with_target_class triggered_accuracy tr_at_1 ir_at_1 retrieval_asr base_clean_accuracy base_asr base_triggered_accuracy
base_retrieval_asr poisoned_clean_accuracy poisoned_clean_accuracy_seen poisoned_clean_accuracy_unseen poisoned_asr share_above_tau_image
share_above_tau_text worst_asr_300 worst_asr_300_ci_low worst_asr_300_ci_high within_caps worst_asr_of_triggers s_image s_text
s_image_aligned s_text_aligned rotated probe_accuracy probe_asr probe_triggered_accuracy retrieval_at_1 dropin_probe_accuracy
dropin_probe_asr dropin_retrieval_at_1 dropin_image_retrieval_at_1 caption_accuracy caption_target_share caption_bleu
dropin_caption_accuracy dropin_caption_target_share dropin_caption_bleu kind form candidate lead inverted_asr auroc false_alarm_rate
detection_rate seconds regime in_family
""".split()
# Of records from before these were parameters: the base was pretrained for the epochs that its encoder then usually had.
_OF_EARLIER = {"planted": "finetuning", "attacker": "plain", "coverage": 1.0}
# Triggers that distillation's foreign content comes near: noise, pictures laid over the image, patches of noise.
_IN_FAMILY = ("badnet", "blended", "picture", "camouflage")
_NEUTRAL = ("inverted", "interpolation", "refresh")  # as nothing where they do nothing
_POISONING = {"method": "none", "schedule": "warmup_cosine", "batch_norm": "train"}  # what 01 doesn't leave open


def table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row a record, for sweeps a row a trial, with COLUMNS."""
    rows = [_OF_EARLIER | row for record in records for row in (_trial_rows(record) if "timings" in record else [_row(record)])]
    found = pd.DataFrame(rows, columns=COLUMNS)
    for name in _NEUTRAL:
        found[name] = [value or None for value in found[name]]
    few = found["pairs"].notna() & found["coverage"].notna() & (found["notebook"] != "01_poison")
    found["regime"] = [title_of(row) if known else "" for known, row in zip(few, found[REGIME].to_dict("records"), strict=True)]
    return _ruled(found.assign(in_family=found["trigger"].isin(_IN_FAMILY).astype(int)))


def _ruled(found: pd.DataFrame) -> pd.DataFrame:
    """With the rules (`rule`: informed, blind or both) by which a trial of the regimes' searches is the chosen one of its method."""
    rules = pd.Series("", index=found.index)
    for _, runs in searched(found).groupby([*REGIME, "method"]):
        for name, rule in (("informed", choose), ("blind", blind)):
            rules[rule(runs)] = ", ".join(filter(None, (rules[rule(runs)], name)))
    return found.assign(rule=rules)


def _trial_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    trials = pd.DataFrame(record["history"]).assign(seconds=record["timings"]["seconds"])
    rows = []
    for i, trial in enumerate(trials.to_dict("records")):  # what diverged or was stopped too, without results
        same = {"notebook": record["notebook"], "experiment": record["experiment"], "run": f"{record['run']}:{i}"}
        unmeasured = ("clean_accuracy", "attack_success_rate", "triggered_accuracy") if trial["error"] or trial["stopped"] else ()
        rows.append(trial | same | _proportion(trial["trigger"]) | dict.fromkeys(unmeasured))
    return rows


def _proportion(trigger: str) -> dict[str, Any]:
    """The paper's patch and strength in proportion, where the trigger is the paper's."""
    options = proportion(trigger)
    theirs = Trigger(trigger, options) if options else None
    return {"proportion_patch": theirs and theirs.patch, "proportion_strength": theirs and theirs.strength}


def _row(record: dict[str, Any]) -> dict[str, Any]:
    params, metrics, history = record["params"], record["metrics"], record["history"]
    row = {name: value for name, value in (params | metrics).items() if name in COLUMNS} | _proportion(params["trigger"])
    row |= {name: record[name] for name in ("notebook", "run", "experiment", "seconds")}
    for short, metric in (("ca", "clean_accuracy"), ("asr", "attack_success_rate")):
        row |= {f"{short}_ci_{end}": metrics.get(f"{metric}_ci_{end}") for end in ("low", "high")}
    if record["notebook"] == "01_poison":
        planted = Trigger(params["trigger"], {name: value for name, value in params["trigger_options"].items() if name != "pattern"})
        row |= _POISONING | {"pairs": params["train_scenes"], "patch": planted.patch, "strength": planted.strength}
    for tower in ("image", "text"):
        if s := history.get(f"s_{tower}"):
            row[f"share_above_tau_{tower}"] = share_above(s, params["tau"])
    return row


def of(rows: pd.DataFrame, experiments: Iterable[str] = MAIN) -> pd.DataFrame:
    """The rows of some experiments, in order of encoder, attack and method, seeds in theirs."""
    return in_order(rows[rows["experiment"].isin(list(experiments))], [*ATTACK, "method", "seed"])


def trials(rows: pd.DataFrame) -> pd.DataFrame:
    """The searches: every cleaning that was judged on the validation split, with the clean accuracy that it must keep (`limit`) and whether
    the rule of `measure.selection` chooses it for its method and encoder (`chosen`).
    """
    found = rows[(rows["notebook"] == "02_clean") & (rows["split"] == "validation")].copy()
    found["limit"], found["chosen"] = found["poisoned_clean_accuracy"] - MARGIN, False
    for _, runs in found.groupby(["encoder", "method"]):
        found.loc[choose(runs), "chosen"] = True
    return in_order(found, ["encoder", "method", "lr", "tau", "self_weight", "pool", "batch"])


def planted_triggers(records: Iterable[dict[str, Any]], rows: pd.DataFrame, experiments: Iterable[str] = MAIN) -> list[Trigger]:
    """Each trigger of some experiments' poisoned models among the rows, as it was first planted, with the pattern that was learned."""
    runs, planted = set(of(rows[rows["notebook"] == "01_poison"], experiments)["run"]), {}
    for record in records:
        if record["run"] in runs and record["params"]["trigger"] not in planted:
            params: Any = check("01_poison", record["params"])
            planted[params.trigger] = params.trigger_with(params.trigger_options, learned_pattern(record))
    return [planted[name] for name in sorted(planted, key=rank)]


def maps(records: Iterable[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """The embedding maps of the usual attack, seed 0, in the main table: the poisoned model's, and that of what each method made of it.
    FileNotFoundError, naming the command that makes it, where one is gone.
    """
    usual = check("02_clean", {}).model_dump(include={"encoder", "trigger", "attack", "target", "seed"})
    panels: dict[str, pd.DataFrame] = {}
    for record in records:
        if record["notebook"] != "02_clean" or record["experiment"] not in MAIN or not usual.items() <= record["params"].items():
            continue
        points = pd.read_csv(artifact_file(record, "points"))
        panels.setdefault("poisoned", points[points["model"] == "poisoned"])
        panels[record["params"]["method"]] = points[points["model"] != "poisoned"]
    return {model: panels[model] for model in sorted(panels, key=rank)}
