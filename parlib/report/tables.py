"""The tables that people read, each made from the rows of `report.table`: the main one beside the paper's figures, README's."""

import re

import pandas as pd

from parlib import keys, records
from parlib.cache import ROOT, atomic_file
from parlib.method.methods import ABLATIONS, METHODS
from parlib.experiments.params import check
from parlib.report.figures import NAME
from parlib.experiments.presets import PATCHES
from parlib.report.rows import REFERENCE, kept, table

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


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The main table: per trigger the clean base, the poisoned model and each method, every metric as mean ± std over the
    seeds, of a single run clean accuracy and ASR with their 95 % intervals; the paper's figures beside.
    """
    return _summary(table[table["table"] == 1])


def new_triggers(table: pd.DataFrame) -> pd.DataFrame:
    """The same of the triggers that the paper has not, without its figures."""
    found = _summary(table[table["table"] == 3]).rename(columns={"size (paper's)": "size"})
    return found.drop(columns=["paper's model", "paper's ASR", "paper's CA"], errors="ignore")


def overview(table: pd.DataFrame, kind: int = 1) -> pd.DataFrame:
    """A table of `report.table` in a row an attack, as README shows it: ASR (clean accuracy) of the clean base, the poisoned model
    and each method, means over the seeds, the ASR with its standard deviation; for the main one the paper's figures beside.
    """
    runs, rows = table[table["table"] == kind], []
    for (encoder, trigger, attack), found in runs.groupby(["encoder", "trigger", "attack"]):
        row = {"encoder": encoder, "trigger": _attack(trigger, attack), "size (paper's)": _size(found.iloc[0])}
        base = found[(found["method"] == "none") & found["base_clean_accuracy"].notna()].head(1)
        row["clean base"] = _cell(base["base_asr"], base["base_clean_accuracy"])
        published = _published(encoder, trigger, attack)
        for method in ("none", *METHODS):
            cleaned = found[found["method"] == method]
            row[NAME.get(method, method)] = _cell(cleaned["attack_success_rate"], cleaned["clean_accuracy"])
        for method in METHODS:
            asr, accuracy = published.get(method, (None, None))
            row[f"paper's {NAME.get(method, method)}"] = _plain(asr) + (f" ({accuracy:.3f})" if accuracy else "")
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame = frame.loc[:, (frame != "").any()]  # a method that nobody ran or published has no column
    return frame if kind == 1 else frame.rename(columns={"size (paper's)": "size"})


def _cell(asr: pd.Series, accuracy: pd.Series) -> str:
    return f"{_spread(asr)} ({accuracy.mean():.3f})" if len(asr) else ""


def _attack(trigger: str, attack: str) -> str:
    return trigger if attack == "dirty_label" else f"{trigger}, {attack}"


def _published(encoder: str, trigger: str, attack: str) -> dict[str, tuple[float, float | None]]:
    """The paper's (ASR, clean accuracy) by method, of the encoder that stands for ours."""
    return PAPER.get(PAPER_ENCODER.get(encoder, ""), {}).get(trigger, {}) if attack == "dirty_label" else {}


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


def orders(table: pd.DataFrame) -> pd.DataFrame:
    """The methods in their order, by seed 0 of the main table: a row for each trigger that every encoder has, a column an encoder.

    Those that keep the clean accuracy within 0.06 of the poisoned model's come first, then by ASR; equal are those whose 95 %
    interval reaches into that of the lowest among them.
    """
    runs = table[(table["table"] == 1) & (table["notebook"] == "02_clean") & (table["attack"] == "dirty_label") & (table["seed"] == 0)]
    columns = ["trigger", "encoder", "order"]
    rows = [(*axes, _order(cleaned)) for axes, cleaned in runs.groupby(columns[:2])]
    wide = pd.DataFrame(rows, columns=columns).pivot(index="trigger", columns="encoder", values="order")
    return wide.dropna().reset_index().rename_axis(columns=None)


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
    return ", then ".join(" = ".join(NAME[method] for method in METHODS if method in group) for group in groups)


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    rows, triggers = [], list(dict.fromkeys(table["trigger"]))
    groups = table.groupby(["trigger", "attack", "encoder"])
    for (trigger, kind, encoder), attack in sorted(groups, key=lambda group: (triggers.index(group[0][0]), *group[0][1:])):
        head = {"encoder": encoder, "trigger": _attack(trigger, kind), "size (paper's)": _size(attack.iloc[0])}
        published = _published(encoder, trigger, kind)
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


def _spread(values: pd.Series) -> str:
    values = values.dropna()  # of metrics that some runs lack, such as retrieval where there are no captions
    if len(values) < 2:
        return _plain(values.iloc[0]) if len(values) else ""
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
    for name, kind in {"table": 1, "new triggers": 3}.items():
        begin, end = f"<!-- {name}: written by make publish -->", f"<!-- end of {name} -->"
        text = re.sub(f"{begin}.*?{end}", f"{begin}\n{markdown(overview(published, kind))}\n{end}", text, flags=re.S)
    return text


def show(scale: str, runs: list[str]) -> None:
    """Print the summary of the attacks of these runs (with 05_evaluate that of all), how the runs differ from the published ones,
    and where to look.
    """
    folder = records.outputs(scale)
    if records.read_all(folder):
        frame = table(keys.fresh(scale))
        with atomic_file(folder / "table.csv") as temporary:
            frame.to_csv(temporary, index=False)
        attacks = frame.loc[frame["run"].isin(runs), ["encoder", "trigger", "attack"]].drop_duplicates()
        frame = frame if "05_evaluate" in runs else frame.merge(attacks)
        for made in (summary(frame), new_triggers(frame)):
            if len(made):
                print("\n" + made.iloc[:, :9].to_string(index=False))
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
