"""From records to what people read: table.csv, the summary beside the paper's figures, README's table."""

from typing import Any

import pandas as pd
from nbconvert import HTMLExporter

from parlib import records
from parlib.cache import ROOT, atomic_file
from parlib.methods import METHODS
from parlib.params import PROPORTION, Clean, Poison, check, scale_defaults
from parlib.plots import NAME

REFERENCE = ROOT / "outputs" / "reference"
# The paper's RN50 figures (fractions): trigger -> method -> (ASR, CA or None). From a secondary summary of v3 that could
# not be checked against the paper itself: second-hand, and another scale than ours.
PAPER_RN50: dict[str, dict[str, tuple[float, float | None]]] = {
    "badnet": {"par": (0.063, 0.533)},
    "badnet_stripes": {"par": (0.424, 0.530)},
    "blended": {"par": (0.000, 0.536)},
    "blended_stripes": {"par": (0.001, 0.535)},
    "blended_triangles": {"par": (0.103, 0.529)},
    "blended_text": {"par": (0.181, 0.534)},
}
# Read off the paper's trade-off curve, which fits BadNet-Stripes on RN50: (ASR, CA) of the poisoned model.
PAPER_RN50["badnet_stripes"]["none"] = (0.992, 0.575)
COLUMNS = """
notebook run table attack encoder trigger patch strength proportion_patch proportion_strength rate method data pairs tau lr
schedule batch_norm epochs batch seed split clean_accuracy attack_success_rate asr_ci_low asr_ci_high asr_with_target_class
triggered_accuracy tr_at_1 ir_at_1 retrieval_asr base_clean_accuracy base_asr poisoned_clean_accuracy poisoned_asr
share_above_tau_image share_above_tau_text seconds
""".split()
SHOWN = {
    "clean_accuracy": "clean accuracy",
    "attack_success_rate": "ASR",
    "triggered_accuracy": "accuracy under trigger",
    "retrieval_asr": "retrieval ASR",
}
BEGIN, END = "<!-- table: written by make publish -->", "<!-- end of table -->"


def table(found: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a record, with the columns of table.csv."""
    return pd.DataFrame([_row(record) for record in found], columns=COLUMNS)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    params, metrics, history = record["params"], record["metrics"], record["history"]
    poisoning = record["notebook"] == "01_poison"
    kind = Poison if poisoning else Clean
    named = {name: params[name] for name in ("scale", "encoder", "trigger", "seed")} | ({} if poisoning else {"method": params["method"]})
    usual = check(record["notebook"], scale_defaults(record["notebook"], params["scale"]) | named)
    row = {name: params[name] for name in params if name in COLUMNS}
    row |= {name: metrics[name] for name in metrics if name in COLUMNS}
    row |= {
        "notebook": record["notebook"],
        "run": record["run"],
        "table": int(kind(**params) == usual),
        "attack": "dirty_label",
        "proportion_patch": PROPORTION.get(params["trigger"], (None, None))[0],
        "proportion_strength": PROPORTION.get(params["trigger"], (None, None))[1],
        "method": "none" if poisoning else params["method"],
        "data": "scenes",
        "pairs": params["train_scenes"] if poisoning else params["pairs"],
        "schedule": "warmup_cosine" if poisoning else params["schedule"],
        "batch_norm": "train" if poisoning else params["batch_norm"],
        "tau": params["tau"] if "s_image" in history else None,
        "asr_ci_low": metrics["attack_success_rate_ci_low"],
        "asr_ci_high": metrics["attack_success_rate_ci_high"],
        "seconds": record["seconds"],
    }
    for name in ("image", "text"):
        if f"s_{name}" in history:
            row[f"share_above_tau_{name}"] = sum(s > params["tau"] for s in history[f"s_{name}"]) / len(history[f"s_{name}"])
    return row


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The main table: per trigger and method, each metric as mean ± std over the seeds, the paper's RN50 figures beside."""
    rows, order_of = [], ["none", *METHODS]
    main = table[table["table"] == 1]
    for (encoder, trigger, method), runs in main.groupby(["encoder", "trigger", "method"], sort=False):
        row = {"encoder": encoder, "trigger": trigger, "size (paper's)": _size(runs.iloc[0])}
        row |= {"model": NAME.get(method, method), "seeds": len(runs)}
        row |= {label: _spread(runs[name]) for name, label in SHOWN.items()}
        row["paper's ASR (RN50)"], row["paper's CA (RN50)"] = (_plain(x) for x in PAPER_RN50.get(trigger, {}).get(method, (None, None)))
        rows.append((trigger, encoder, order_of.index(method), row))
    order = list(dict.fromkeys(trigger for trigger, *_ in rows))
    rows.sort(key=lambda row: (order.index(row[0]), row[1], row[2]))
    return pd.DataFrame([row for *_, row in rows])


def _spread(values: pd.Series) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" if len(values) > 1 else f"{values.iloc[0]:.3f}"


def _size(run: pd.Series) -> str:
    """Patch in px or strength of the pattern, and the paper's proportion."""
    if run["strength"] == 1:
        return f"{run['patch']:.0f} px ({run['proportion_patch']:.0f} px)"
    return f"{run['strength']:.2f} ({run['proportion_strength']:.2f})"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def markdown(frame: pd.DataFrame) -> str:
    """A frame of strings as a Markdown table."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def readme_table() -> str:
    """What stands between the marks in README: the summary of the published records."""
    return markdown(summary(pd.read_csv(REFERENCE / "table.csv")))


def show(scale: str, runs: list[str]) -> None:
    """Print the summary of a scale, the difference of these runs from the published ones, and where to look."""
    folder = records.outputs(scale)
    if records.read_all(folder):
        frame = table(records.fresh(scale))
        with atomic_file(folder / "table.csv") as temporary:
            frame.to_csv(temporary, index=False)
        if (frame["table"] == 1).any():
            print("\n" + summary(frame).iloc[:, 1:9].to_string(index=False))
    for run in runs:
        published = REFERENCE / f"{run}.json"
        if scale == "small" and published.exists() and not run.startswith("05"):
            changed = records.differences(records.read(scale, run), records.read_file(published))
            print(f"{run} against outputs/reference: {changed or 'no difference'}")
    executed = folder / "05_evaluate.ipynb"
    if "05_evaluate" in runs and executed.exists():
        page, _ = HTMLExporter(exclude_input=True).from_filename(str(executed))
        with atomic_file(folder / "report.html") as temporary:
            temporary.write_text(page)
        print(f"figure: {folder.relative_to(ROOT)}/05_evaluate_tradeoff.png\nreport: {folder.relative_to(ROOT)}/report.html")
