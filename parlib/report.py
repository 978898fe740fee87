"""From records to what people read: table.csv, the summary beside the paper's figures, README's table."""

import re
from typing import Any

import pandas as pd

from parlib import keys, records
from parlib.cache import ROOT, atomic_file
from parlib.data import Pairs
from parlib.evaluate import evaluate
from parlib.ids import scale_defaults, specific
from parlib.lineage import learned_pattern
from parlib.methods import ABLATIONS, METHODS
from parlib.model import Clip
from parlib.params import Clean, Poison, check
from parlib.plots import NAME
from parlib.poison import attacked
from parlib.presets import NEW, PATCHES, PROPORTION

REFERENCE = ROOT / "outputs" / "reference"
# The paper's figures (fractions) for the encoder that ours stands for: trigger -> method -> (ASR, CA or None). From a secondary
# summary of v3 that could not be checked against the paper itself: second-hand, and another scale than ours.
PAPER_ENCODER = {"small_resnet": "RN50", "small_vit": "ViT-B/32", "RN50": "RN50", "ViT-B-32": "ViT-B/32"}
_RN50: dict[str, dict[str, tuple[float, float | None]]] = {
    "badnet": {"cleanclip": (0.145, None), "roclip": (0.751, None), "par": (0.063, 0.533)},
    "badnet_stripes": {"cleanclip": (0.623, None), "roclip": (0.820, None), "par": (0.424, 0.530)},
    "blended": {"cleanclip": (0.195, None), "roclip": (0.015, None), "par": (0.000, 0.536)},
    "blended_stripes": {"cleanclip": (0.618, None), "roclip": (0.070, None), "par": (0.001, 0.535)},
    "blended_triangles": {"cleanclip": (0.487, None), "roclip": (0.371, None), "par": (0.103, 0.529)},
    "blended_text": {"cleanclip": (0.424, None), "roclip": (0.591, None), "par": (0.181, 0.534)},
    "wanet": {"cleanclip": (0.000, None), "roclip": (0.020, None), "par": (0.000, 0.544)},
    "badclip": {"cleanclip": (0.401, None), "par": (0.304, 0.534)},
}
_VIT_B_32: dict[str, dict[str, tuple[float, float | None]]] = {
    "badnet_stripes": {"cleanclip": (0.868, None), "par": (0.001, None)},
    "blended_stripes": {"cleanclip": (0.152, None), "par": (0.001, None)},
    "blended_triangles": {"cleanclip": (0.914, None), "par": (0.159, None)},
    "blended_text": {"cleanclip": (0.629, None), "par": (0.373, None)},
}
# Read off the paper's trade-off curve, which fits BadNet-Stripes on RN50: (ASR, CA) of the poisoned model.
_RN50["badnet_stripes"]["none"] = (0.992, 0.575)
PAPER = {"RN50": _RN50, "ViT-B/32": _VIT_B_32}
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
SHOWN = {
    "clean_accuracy": "clean accuracy",
    "attack_success_rate": "ASR",
    "triggered_accuracy": "accuracy under trigger",
    "retrieval_asr": "retrieval ASR",
}
BASE = {
    "clean_accuracy": "base_clean_accuracy",
    "attack_success_rate": "base_asr",
    "triggered_accuracy": "base_triggered_accuracy",
    "retrieval_asr": "base_retrieval_asr",
}
PART = {"finetune": "neither", "finetune_augmented": "augmentation", "perturb_only": "perturbation", "par": "both: PAR"}
MARGIN = 0.06  # of clean accuracy, that a cleaning may cost


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


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The main table: per trigger the clean base, the poisoned model and each method, every metric as mean ± std over the
    seeds, of a single run clean accuracy and ASR with their 95 % intervals; the paper's figures beside.
    """
    return _summary(table[table["table"] == 1])


def new_triggers(table: pd.DataFrame) -> pd.DataFrame:
    """The same of the triggers that the paper has not, without its figures."""
    found = _summary(table[table["table"] == 3]).rename(columns={"size (paper's)": "size"})
    return found.drop(columns=["paper's model", "paper's ASR", "paper's CA"], errors="ignore")


def at_rates(table: pd.DataFrame, method: str = "par") -> pd.DataFrame:
    """What a method leaves at each learning rate that was tried, all else as it was tuned: ASR (clean accuracy) on the test scenes,
    means over the seeds, a row a trigger and a column a rate.
    """
    runs = table[table["method"] == method]
    means = (
        _tuned_but_for_the_rate(runs, method)
        .groupby(["encoder", "trigger", "lr"], sort=False)[["attack_success_rate", "clean_accuracy"]]
        .mean()
    )
    cells = [f"{asr:.3f} ({accuracy:.3f})" for asr, accuracy in means.to_numpy()]
    wide = pd.Series(cells, index=means.index, dtype=str).unstack(fill_value="").sort_index(axis=1)
    return wide.rename(columns=lambda rate: f"{NAME.get(method, method)} at {rate:g}").reset_index().rename_axis(columns=None)


def _tuned_but_for_the_rate(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """The cleanings of dirty-label attacks at the settings of a method, whatever their learning rate."""
    usual = check("02_clean", {"method": method}).model_dump()
    same = ["attack", "data", "batch", "schedule", "batch_norm", "epochs", "pairs", "split"]
    runs = table[table["notebook"] == "02_clean"]
    return runs[(runs[same] == pd.Series(usual)[same]).all(axis=1) & (runs["tau"].isna() | (runs["tau"] == usual["tau"]))]


def ablations(table: pd.DataFrame) -> pd.DataFrame:
    """Which part of PAR does the work: neither (fine-tuning), each alone, and both, on the test scenes and at one setting, PAR's,
    but for the learning rate: per rate at which a part was run alone, mean ± std over the seeds.
    """
    parts = ("finetune", *ABLATIONS, "par")
    runs = _tuned_but_for_the_rate(table[table["method"].isin(parts)], "par")
    axes = ["encoder", "trigger", "lr"]
    alone = runs.loc[runs["method"].isin(ABLATIONS), axes].drop_duplicates()
    rows = []
    for setting, found in runs.merge(alone, on=axes).groupby(axes):
        for method in parts:
            chosen = found[found["method"] == method]
            if len(chosen):
                head = dict(zip(axes, setting, strict=True)) | {"model": PART[method], "seeds": len(chosen)}
                rows.append(head | {label: _spread(chosen[name]) for name, label in SHOWN.items()})
    return pd.DataFrame(rows)


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    rows, triggers = [], list(dict.fromkeys(table["trigger"]))
    groups = table.groupby(["trigger", "attack", "encoder"])
    for (trigger, kind, encoder), attack in sorted(groups, key=lambda group: (triggers.index(group[0][0]), *group[0][1:])):
        shown = trigger if kind == "dirty_label" else f"{trigger}, {kind}"
        head = {"encoder": encoder, "trigger": shown, "size (paper's)": _size(attack.iloc[0])}
        published = PAPER.get(PAPER_ENCODER.get(encoder, ""), {}).get(trigger, {}) if kind == "dirty_label" else {}
        base = attack[(attack["method"] == "none") & attack["base_clean_accuracy"].notna()].head(1)
        if len(base):
            values = {label: _spread(base[BASE[name]]) for name, label in SHOWN.items()}
            rows.append(head | {"model": "clean base", "seeds": 1} | values)
        for method in ("none", *METHODS):
            runs = attack[attack["method"] == method]
            if len(runs):
                row = head | {"model": NAME.get(method, method), "seeds": len(runs)}
                row |= {label: _spread(runs[name]) for name, label in SHOWN.items()}
                row |= _with_interval(runs.iloc[0]) if len(runs) == 1 else {}
                asr, accuracy = published.get(method, (None, None))
                model = PAPER_ENCODER[encoder] if method in published else ""
                rows.append(row | {"paper's model": model, "paper's ASR": _plain(asr), "paper's CA": _plain(accuracy)})
    return pd.DataFrame(rows).fillna("")


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
    good = runs[runs["clean_accuracy"] >= runs["poisoned_clean_accuracy"] - MARGIN]
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


def planted_triggers(found: list[dict[str, Any]], kind: int = 1) -> list[dict[str, Any]]:
    """Each trigger of a table's poisoned models (1: the main one), with the options that it was planted with.

    Raises ValueError when none is planted.
    """
    rows = table(found)
    runs = set(rows.loc[(rows["table"] == kind) & (rows["notebook"] == "01_poison"), "run"])
    planted: dict[str, dict[str, Any]] = {}
    for record in found:
        if record["run"] in runs:
            planted.setdefault(record["params"]["trigger"], record)  # small_resnet's come first
    if not planted:
        raise ValueError("no such trigger has been planted yet; the runs that plant one: python -m parlib.run params/small --list")
    return [
        {name: record["params"][name] for name in ("trigger", "target", "patch", "strength")} | learned_pattern(record)
        for record in planted.values()
    ]


def maps(found: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """The embedding maps of the default attack, seed 0: the poisoned model and what each method made of it."""
    panels: dict[str, pd.DataFrame] = {}
    for record in mapped(found):
        points = pd.read_csv(records.located(record["artifacts"]["points"]))
        panels.setdefault("none", points[points["model"] == "poisoned"])
        panels[record["params"]["method"]] = points[points["model"] != "poisoned"]
    return {method: panels[method] for method in ("none", *METHODS) if method in panels}


def mapped(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records whose embedding maps notebook 05 shows."""
    rows, usual = table(found), {name: Clean.model_fields[name].default for name in ("encoder", "trigger", "attack", "seed")}
    shown = (rows[list(usual)] == pd.Series(usual)).all(axis=1) & (rows["table"] > 0) & (rows["notebook"] == "02_clean")
    runs = rows.loc[shown, "run"]
    return [record for record in found if record["run"] in set(runs)]


def _spread(values: pd.Series) -> str:
    if len(values) == 1:
        return _plain(values.iloc[0])
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _with_interval(run: pd.Series) -> dict[str, str]:
    """Clean accuracy and ASR of one run with their 95 % intervals, where they are known."""
    ends = {"clean_accuracy": ("ca_ci_low", "ca_ci_high"), "attack_success_rate": ("asr_ci_low", "asr_ci_high")}
    return {SHOWN[name]: f"{run[name]:.3f} ({run[low]:.3f} to {run[high]:.3f})" for name, (low, high) in ends.items() if pd.notna(run[low])}


def _size(run: pd.Series) -> str:
    """Patch in px or strength of the pattern, and the paper's proportion, where the trigger is the paper's."""
    patch = run["trigger"] in PATCHES
    ours, theirs = (run["patch"], run["proportion_patch"]) if patch else (run["strength"], run["proportion_strength"])
    said = [f"{size:.0f} px" if patch else f"{size:.2f}" for size in (ours, theirs) if pd.notna(size)]
    return " ".join([said[0], *(f"({size})" for size in said[1:])])


def _plain(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.3f}"


def markdown(frame: pd.DataFrame) -> str:
    """A frame of strings as a Markdown table."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_tables(text: str) -> str:
    """README with its tables made from the published records, each between its marks."""
    published = pd.read_csv(REFERENCE / "table.csv")
    for name, made in {"table": summary, "new triggers": new_triggers}.items():
        begin, end = f"<!-- {name}: written by make publish -->", f"<!-- end of {name} -->"
        text = re.sub(f"{begin}.*?{end}", f"{begin}\n{markdown(made(published))}\n{end}", text, flags=re.S)
    return text


def show(scale: str, runs: list[str]) -> None:
    """Print the summary of a scale, the difference of these runs from the published ones, and where to look."""
    folder = records.outputs(scale)
    if records.read_all(folder):
        frame = table(keys.fresh(scale))
        with atomic_file(folder / "table.csv") as temporary:
            frame.to_csv(temporary, index=False)
        if (frame["table"] == 1).any():
            print("\n" + summary(frame).iloc[:, 1:9].to_string(index=False))
    for run in runs:
        published = REFERENCE / f"{run}.json"
        if scale != "small" or "/" not in run:  # it only reads the records of others
            continue
        if not published.exists():
            print(f"{run} is not among the published runs")
            continue
        changed = records.differences(records.read(scale, run), records.read_file(published))
        print(f"{run} against outputs/reference: {changed or 'no difference'}")
    executed = folder / "05_evaluate.ipynb"
    if "05_evaluate" in runs and executed.exists():
        from nbconvert import HTMLExporter  # here, as it takes a second and a half, and notebooks import this module

        page, _ = HTMLExporter(exclude_input=True).from_filename(str(executed))
        with atomic_file(folder / "report.html") as temporary:
            temporary.write_text(page)
        print(f"figure: {folder.relative_to(ROOT)}/05_evaluate_tradeoff.png\nreport: {folder.relative_to(ROOT)}/report.html")
