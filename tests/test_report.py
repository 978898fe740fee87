"""Rows, tables and figures: numbers by hand, what the rules choose, what the artists hold, and None where nothing is to be drawn."""

import json
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from parlib.attack.poison import Attack, attacked, poison
from parlib.attack.triggers import Trigger
from parlib.cache import file_sha256
from parlib.experiments.registry import check
from parlib.measure.metrics import EvalSet
from parlib.measure.tradeoff import curves
from parlib.records import store
from parlib.report import closing, comparison, outcome, paper, pictures, rows, style, sweeps, tables, training

RATES = ("clean_accuracy", "attack_success_rate", "triggered_accuracy")
METRICS = {"clean_accuracy": 0.9, "attack_success_rate": 0.1, "triggered_accuracy": 0.7, "retrieval_asr": 0.2}
METRICS |= {f"{rate}_ci_{end}": METRICS[rate] + shift for rate in RATES for end, shift in (("low", -0.1), ("high", 0.1))}
BASE = {"base_clean_accuracy": 0.8, "base_asr": 0.004, "base_triggered_accuracy": 0.7, "base_retrieval_asr": 0.01}
BEFORE = {"poisoned_clean_accuracy": 0.95, "poisoned_asr": 0.98, "patch": 6, "strength": 1.0, "rate": 0.08}
HISTORY = {"s_image": [1.0, 2.2], "s_text": [0.5, 2.15], "l_clip": [1.0, 0.5], "lr": [4e-3, 1e-3]}
HISTORY |= {"look_step": [0, 2], "look_clean_accuracy": [0.95, 0.9], "look_attack_success_rate": [0.98, 0.001]}


def record(notebook: str = "02_clean", experiment: str = "main", metrics: dict | None = None, **values: Any) -> dict[str, Any]:
    params = check(notebook, values)
    found = METRICS | (BASE if notebook == "01_poison" else BEFORE) | (metrics or {})
    history = HISTORY if values.get("method", "par") == "par" and notebook == "02_clean" else {}
    return {
        "run": params.id, "notebook": notebook, "experiment": experiment, "params": params.model_dump(exclude={"experiment"}),
        "metrics": found, "history": history, "seconds": 1.5, "artifacts": {}, "n": 10,
    }  # fmt: skip


def frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    return rows.table(records)


def trials(*runs: tuple, encoder: str = "small_resnet") -> pd.DataFrame:
    """Trials of a search: (method, lr, clean accuracy, ASR)."""
    values = {"encoder": encoder, "split": "validation"}
    made = []
    for method, lr, accuracy, asr in runs:
        metrics = {"clean_accuracy": accuracy, "attack_success_rate": asr}
        made.append(record(experiment="search", method=method, lr=lr, metrics=metrics, **values))
    return frame(made)


def words(figure) -> str:
    """All that a figure says."""
    every = [text.get_text() for ax in figure.axes for text in (*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label)]
    return "\n".join([*(text.get_text().replace("\n", " ") for text in figure.texts), *every])


def test_a_row_of_a_poisoning_and_of_a_cleaning():
    found = frame([record("01_poison", trigger="blended_stripes"), record(), record("02_clean", "", tau=2.2)])
    assert list(found.columns) == rows.COLUMNS
    planted, cleaned = found.iloc[0], found.iloc[1]
    assert planted["run"] == "01_poison/blended_stripes_s0"
    assert planted[["experiment", "method", "schedule", "batch_norm", "pairs"]].tolist() == [
        "main",
        "none",
        "warmup_cosine",
        "train",
        24000,
    ]
    assert planted[["patch", "strength", "proportion_patch", "proportion_strength", "rate"]].tolist() == [0, 0.05, 0, 0.03, 0.08]
    assert planted[["base_asr", "seconds"]].tolist() == [0.004, 1.5]
    assert pd.isna(planted["tau"])
    assert cleaned[["method", "tau", "lr", "batch", "patch", "proportion_patch"]].tolist() == ["par", 2.15, 4e-3, 128, 6, 5]
    assert pd.isna(cleaned["self_weight"])
    assert cleaned[["ca_ci_low", "ca_ci_high", "asr_ci_low", "asr_ci_high"]].tolist() == [0.8, 1.0, 0.0, 0.2]
    assert found["share_above_tau_image"].tolist()[1:] == [0.5, 0.0]
    assert found["share_above_tau_text"].tolist()[1:] == [0.0, 0.0]  # at tau it still pushes
    assert found["experiment"].tolist() == ["main", "main", ""]
    assert len(tables.summary(found)) == 3  # the base, the poisoned model and PAR; one's own run is not of the main table


def test_a_sweep_is_a_row_a_trial():
    columns: dict[str, list] = {"trigger": ["badnet", "picture"], "method": ["par", "cleanclip"], "tau": [2.15, None], "lr": [1e-3, 2e-3]}
    columns |= {"clean_accuracy": [0.9, 0.5], "attack_success_rate": [0.1, 0.5], "triggered_accuracy": [0.8, 0.1]}
    columns |= {"error": ["", "diverged"], "stopped": [False, False]}
    sweep = record("03_tau_sweep", "tau") | {"history": columns, "timings": {"seconds": [3.0, 4.0]}}
    found = frame([sweep])
    assert found["run"].tolist() == [f"{sweep['run']}:0", f"{sweep['run']}:1"]
    assert found["experiment"].tolist() == ["tau", "tau"]
    assert found["seconds"].tolist() == [3.0, 4.0]
    assert found["proportion_patch"].tolist()[0] == 5
    assert found.loc[1, ["tau", "proportion_patch", "clean_accuracy", "attack_success_rate"]].isna().all()


def test_the_rule_that_chooses_a_trial():
    par = [("par", 1e-3, 0.95, 0.3), ("par", 2e-3, 0.90, 0.01), ("par", 4e-3, 0.91, 0.01), ("par", 8e-3, 0.88, 0.0)]
    found = rows.trials(trials(*par, ("finetune", 1e-3, 0.80, 0.0)))
    assert found["method"].tolist() == ["finetune", *4 * ["par"]]
    assert found["chosen"].tolist() == [True, False, False, True, False]
    assert found["limit"].round(2).unique().tolist() == [0.89]
    none = rows.trials(trials(("par", 1e-3, 0.80, 0.3), ("par", 2e-3, 0.70, 0.1), ("par", 4e-3, 0.85, 0.9)))
    assert none["chosen"].tolist() == [False, True, False]  # the highest clean accuracy - ASR
    both = rows.trials(pd.concat([trials(*par), trials(*par, encoder="small_vit")], ignore_index=True))
    assert both.loc[both["chosen"], "encoder"].tolist() == ["small_resnet", "small_vit"]
    assert rows.trials(trials(*par).assign(split="test")).empty


def test_numbers_for_people():
    assert style.number(0.0012, 0.0, 0.004) == "0.001 (0.000 to 0.004)"
    assert style.number(0.0012, std=0.002) == "0.001 ± 0.002"
    assert style.number(0.5, std=float("nan")) == "0.500"
    assert [style.number(None), style.number(float("nan"), 0.1, 0.2), style.number(0.25, None, None)] == ["", "", "0.250"]
    assert [style.rate(value) for value in (4e-3, 2.5e-4, 1e-5)] == ["4e-3", "2.5e-4", "1e-5"]
    assert [style.listed("a"), style.listed("aab"), style.listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert style.name("blended_text") == "Blended-Text"
    assert style.name("my_own") == "my_own"
    given = pd.DataFrame({"method": ["par"], "lr": [4e-3], "tau": [2.15], "self_weight": [float("nan")], "pairs": [12000]})
    given = given.assign(clean_accuracy=0.93501, attack_success_rate=0.001, asr_ci_low=0.0, asr_ci_high=0.00366, chosen=True)
    assert tables.readable(given).to_dict("records") == [
        {"method": "PAR", "learning rate": "4e-3", "tau": "2.15", "pairs": "12000", "clean accuracy": "0.935",
         "ASR": "0.001 (0.000 to 0.004)", "chosen": "yes"}
    ]  # fmt: skip
    assert tables.markdown(pd.DataFrame({"a": ["1"], "b": ["2"]})) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_labels_beside_a_panel_do_not_overlap():
    _, ax = plt.subplots()
    style.rate_axis(ax)
    style.label_ends(ax, [(0.5, asr, f"{asr}", "black") for asr in (1.0, 1.0, 1.0, 0.01, 0.0, 0.0)], gap=0.1)
    heights = {i: text.xyann[1] for i, text in enumerate(ax.texts)}
    places = sorted(heights.values())
    assert all(high - low > 0.0999 for low, high in zip(places, places[1:], strict=False))
    assert places[-1] <= 1
    assert max(heights[4], heights[5]) < heights[3] < min(heights[0], heights[1], heights[2])
    plt.close()


def test_the_main_table_has_the_base_first_and_the_paper_beside():
    found = frame([record("01_poison"), record(), record(method="finetune"), record(experiment="ablations", method="perturb_only")])
    summary = tables.summary(found)
    assert summary["model"].tolist() == ["clean base", "poisoned", "fine-tuning", "PAR"]
    assert summary["ASR"].tolist() == ["0.004", *3 * ["0.100 (0.000 to 0.200)"]]
    assert summary["paper's ASR"].tolist() == ["", "0.992", "", "0.424"]
    assert tables.overview(found).to_dict("records") == [
        {"encoder": "small ResNet", "trigger": "BadNet-Stripes", "size (paper's)": "6 px (5 px)", "clean base": "0.004 (0.800)",
         "poisoned": "0.100 (0.900)", "fine-tuning": "0.100 (0.900)", "PAR": "0.100 (0.900)", "paper's CleanCLIP": "0.623",
         "paper's RoCLIP": "0.820", "paper's PAR": "0.424 (0.530)"}
    ]  # fmt: skip
    assert "size" in tables.overview(found, paper=False)
    assert tables.overview(found, ["new_triggers"]).empty
    several = frame([record("01_poison", seed=seed, metrics={"clean_accuracy": 0.8 + seed / 10}) for seed in (0, 1)])
    assert tables.summary(several)["clean accuracy"].tolist() == ["0.800", "0.850 ± 0.071"]
    several["retrieval_asr"] = [0.3, None]
    assert tables.summary(several)["retrieval ASR"].tolist() == ["0.010", "0.300"]


def test_the_parts_of_par_are_compared_at_one_setting():
    control = {"method": "finetune", "lr": 4e-3, "batch": 128, "schedule": "cosine"}
    runs = [record(), record("02_clean", "ablations", method="perturb_only"), record("02_clean", "ablations", **control)]
    found = frame([*runs, record(method="finetune"), record("02_clean", "rates", lr=2e-3)])
    assert tables.ablations(found)["parts"].tolist() == ["neither", "perturbation", "both: PAR"]
    assert set(tables.ablations(found)["learning rate"]) == {"4e-3"}  # at 2e-3 no part was run alone
    assert tables.ablations(found[found["experiment"] == "main"]).empty


def test_new_triggers_have_a_table_of_their_own():
    values = [{"lr": 1e-3}, {"lr": 1e-3, "seed": 1}, {"lr": 1e-3, "tau": 1.0}, {"lr": 1e-3, "split": "validation"}]
    runs = [record("02_clean", "rates", trigger="picture", **value) for value in values]
    main = [record(notebook, "new_triggers", trigger="picture") for notebook in ("01_poison", "02_clean")]
    found = frame([*main, *runs])
    assert tables.new_triggers(found)["model"].tolist() == ["clean base", "poisoned", "PAR"]
    assert "paper's ASR" not in tables.new_triggers(found)
    assert tables.summary(found).empty
    found.loc[2:3, "attack_success_rate"] = [0.2, 0.4]  # 1e-3, seeds 0 and 1; what differs in more stays out
    at = tables.at_rates(found)
    assert at.to_dict("records") == [
        {"encoder": "small ResNet", "trigger": "picture", "PAR at 1e-3": "0.300 (0.900)", "PAR at 4e-3": "0.100 (0.900)"}
    ]
    assert tables.at_rates(found, "cleanclip").empty
    planted = rows.planted_triggers(main, found, ["new_triggers"])
    assert planted == [Trigger("picture", {"opacity": 0.2})]
    assert rows.planted_triggers(main, found) == rows.planted_triggers(main, found.iloc[1:], ["new_triggers"]) == []


def test_orders_of_the_methods():
    found = {"finetune": (0.94, 0.020, 0.015, 0.025), "cleanclip": (0.90, 0.001, 0.000, 0.010), "par": (0.93, 0.011, 0.009, 0.018)}
    found["roclip"] = (0.85, 0.000, 0.000, 0.002)  # costs more than 0.06
    names = ("clean_accuracy", "attack_success_rate", "attack_success_rate_ci_low", "attack_success_rate_ci_high")
    made = [record(method=method, trigger="sig", metrics=dict(zip(names, values, strict=True))) for method, values in found.items()]
    ordered = "CleanCLIP = PAR, then fine-tuning, then RoCLIP"
    assert tables.orders(frame(made)).to_numpy().tolist() == [["SIG", ordered]]
    vit = frame(made).assign(encoder="small_vit", asr_ci_low=lambda runs: runs["attack_success_rate"])
    vit = vit.assign(asr_ci_high=vit["attack_success_rate"])
    both = tables.orders(pd.concat([frame(made), vit, frame(made).assign(trigger="badnet")], ignore_index=True))
    assert both.columns.tolist() == ["trigger", "small ResNet", "small ViT"]  # BadNet was tried on one of them
    assert both.to_numpy().tolist() == [["SIG", ordered, "CleanCLIP, then PAR, then fine-tuning, then RoCLIP"]]
    assert tables.orders(frame(made).assign(seed=1)).empty


def test_the_end_of_a_run_shows_the_main_attacks_and_ones_own():
    shown = tables.brief(
        frame([record("01_poison"), record(), record("02_clean", "", method="cleanclip"), record("02_clean", "rates", lr=1e-3)])
    )
    assert shown["model"].tolist() == ["clean base", "poisoned", "PAR", "before", "CleanCLIP"]
    assert shown["ASR"].tolist()[-2:] == ["0.980", "0.100 (0.000 to 0.200)"]
    others = tables.other_runs(frame([record(), record("02_clean", "rates", lr=1e-3)]))
    assert others[["experiment", "method", "learning rate"]].to_numpy().tolist() == [["rates", "PAR", "1e-3"]]


def test_the_paper_s_numbers():
    assert paper.CURVES["CleanCLIP"][1] == pytest.approx((0.529, 0.630))
    assert paper.CURVES["CleanCLIP"][3] == pytest.approx((0.527, 0.599))
    assert paper.CURVES["PAR, SynthCLIP"][4] == pytest.approx((0.463, 0.141))
    assert paper.published("small_vit", "badnet_stripes") == {"cleanclip": (0.868, None), "par": (0.001, None)}
    assert paper.published("small_resnet", "badclip")["par"] == pytest.approx((0.304, 0.534))
    assert paper.published("small_resnet", "badnet", "label_consistent") == paper.published("mine", "badnet") == {}
    assert all(paper.source(part) for part in ("results", "curves"))


def test_rates_show_what_differs_in_the_rate_alone():
    runs = [("par", 1e-3, 0.94, 0.005), ("par", 2e-3, 0.93, 0.001), ("finetune", 1e-3, 0.95, 0.5), ("finetune", 4e-3, 0.94, 0.004)]
    search = trials(*runs, ("finetune", 8e-3, 0.80, 0.0))
    other = record("02_clean", "search", method="finetune", split="validation", lr=2e-3, batch=64)  # another batch than the chosen one's
    found = comparison.at_each_rate(pd.concat([search, frame([other])], ignore_index=True))
    assert found[["method", "lr"]].to_numpy().tolist() == [
        *([method, lr] for method, lr in (("finetune", 1e-3), ("finetune", 4e-3), ("finetune", 8e-3), ("par", 1e-3), ("par", 2e-3)))
    ]
    assert found["chosen"].tolist() == [False, True, False, False, True]
    assert found["kept"].tolist() == [True, True, False, True, True]
    figure = comparison.rates(search)
    lines = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert [0.5, 0.004, 0.0] in lines
    assert "PAR removes the backdoor at 1/4 or less (small ResNet)" in words(figure)  # its lowest rate that was tried
    level = trials(("par", 4e-3, 0.94, 0.005), ("finetune", 4e-3, 0.94, 0.004))
    assert "removes" not in words(comparison.rates(level))  # no lower rate: no such claim
    assert comparison.rates(search.assign(split="test")) is None


def test_a_row_names_its_regime_and_whether_the_trigger_is_near_foreign_content():
    found = frame([record("01_poison"), record(trigger="blended", pairs=720), record(trigger="sig", pairs=2400, coverage=0.25)])
    assert found["regime"].tolist() == ["", "720 pairs, all classes", "2,400 pairs, 25 % of the classes"]
    assert found["in_family"].tolist() == [0, 1, 0]


def test_only_what_holds_something_is_shown_and_tables_are_whole(monkeypatch):
    shown = []
    monkeypatch.setattr(closing, "display", lambda one: shown.append((getattr(one, "data", one), pd.get_option("display.max_rows"))))
    closing.show(pd.DataFrame(), None, "a table of 99 rows", "a figure")
    closing.show(pd.DataFrame(), None)
    assert shown == [("a table of 99 rows", None), ("a figure", None), ("*No such runs here.*", None)]


def test_a_record_is_held_against_the_published_one(monkeypatch, tmp_path):
    monkeypatch.setattr(outcome, "REFERENCE", tmp_path)
    here = {"provenance": {"device": "cpu", "threads": 2}, "identity": {"inputs": {}}, "artifacts": {}}
    ours = record() | here
    assert "not among" in outcome.against_published(ours)
    (tmp_path / "02_clean").mkdir()
    path = tmp_path / f"{ours['run']}.json"
    told = {"schema": store.SCHEMA} | here
    path.write_text(json.dumps(ours | told))
    assert "no difference" in outcome.against_published(ours)
    path.write_text(json.dumps(record(metrics={"attack_success_rate": 0.3}) | told))
    assert "-0.2" in outcome.against_published(ours)
    assert "machine" not in outcome.against_published(ours)
    ours["provenance"] = {"device": "another cpu", "threads": 2}
    assert "machine" in outcome.against_published(ours)


def test_figures_of_the_main_table_hold_its_numbers():
    found = frame(
        [record("01_poison"), record(metrics={"attack_success_rate": 0.002}), record(method="roclip", metrics={"clean_accuracy": 0.8})]
    )
    figure = comparison.tradeoff(found)
    left, right = (ax.collections[-1].get_offsets()[:, 0].round(3).tolist() for ax in figure.axes[:2])
    assert left == [15.0, 5.0]  # points of clean accuracy, RoCLIP first
    assert right == [0.1, 0.002]
    assert "PAR leaves an ASR of 0.002 at most, for 5.0 to 5.0 points" in words(figure)
    assert "Single runs" in words(figure)
    again = comparison.tradeoff(pd.concat([found, found.assign(seed=1)], ignore_index=True))
    assert "Means over 2 seeds" in words(again)
    assert comparison.tradeoff(found[found["notebook"] == "01_poison"]) is None
    one = comparison.heat_map(found)
    assert not one.axes[0].images  # a single attack is a row of dots
    two = comparison.heat_map(pd.concat([found, found.assign(trigger="sig")], ignore_index=True))
    assert "0.002\n(0.900)" in words(two)
    assert comparison.heat_map(found, ["new_triggers"]) is None
    assert comparison.search(rows.trials(found)) is None
    searched = comparison.search(rows.trials(trials(("par", 1e-3, 0.94, 0.005), ("roclip", 1e-3, 0.7, 0.005))))
    assert "For PAR, settings were found" in words(searched)
    course = comparison.course([record(), record(trigger="sig", lr=1e-3)])
    assert len(course.axes) == 4
    assert "0.98 to at most 0.001" in words(course)
    assert comparison.course([]) is None
    assert not plt.get_fignums()


def test_figures_of_one_cleaning():
    figure = training.training_history(HISTORY, 2.15)
    assert len(figure.axes) == 4  # three panels, and the learning rate's axis
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 2.2]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()][:2] == [
        r"$S_\phi$, images: passes tau at step 1", r"$S_\psi$, texts: stays below tau"
    ]  # fmt: skip
    assert "2 steps: ASR 0.980 to 0.001, clean accuracy 0.950 to 0.900" in words(figure)
    plain = {name: values for name, values in HISTORY.items() if not name.startswith("s_")}
    assert len(training.training_history(plain).axes) == 3
    bars = training.before_and_after(
        {"before": METRICS, "cleanclip": METRICS | {"attack_success_rate": 0.0}}, n=1988, note="BadNet, seed 0"
    )
    assert [patch.get_height() for patch in bars.axes[0].patches] == [0.9, 0.7, 0.1, 0.9, 0.7, 0.0]
    assert "BadNet, seed 0, 1,988 images" in words(bars)
    assert "poisoned" not in words(bars)
    push = training.gate(2.0).axes[0].lines
    assert [list(line.get_ydata()) for line in push[:2]] == [[0, 1.0], [0, 0]]
    points = pd.DataFrame({"kind": ["clean", "triggered", "target caption"], "x": [0.0, 3.0, 1.0], "y": [0.0, 4.0, 1.0]})
    view = training.embedding_view({"poisoned": points, "par": points.assign(x=0.0)})
    assert "poisoned and PAR" in words(view)
    assert view.axes[0].get_xlabel() == "principal component 1"
    order = {line.get_color(): line.get_zorder() for line in view.axes[0].lines}
    assert order["#1f77b4"] > order["#d62728"]  # clean above triggered
    assert training.embedding_view({}) is None


def test_maps_are_read_from_beside_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    made = []
    for method in ("par", "finetune"):
        path = tmp_path / f"{method}.csv"
        pd.DataFrame({"model": ["poisoned", method], "kind": "clean", "x": [0.0, 1.0], "y": 0.0}).to_csv(path, index=False)
        artifact = {"in": "project", "path": path.name, "sha256": file_sha256(path)}
        made.append(record(method=method) | {"artifacts": {"points": artifact}})
    found = rows.maps([*made, record(trigger="sig"), record("02_clean", "rates", lr=1e-3)])
    assert list(found) == ["poisoned", "finetune", "par"]
    assert found["par"]["x"].tolist() == [1.0]
    (tmp_path / "par.csv").unlink()
    with pytest.raises(FileNotFoundError, match="02_clean/par_badnet_stripes_s0"):
        rows.maps(made)


@pytest.fixture
def stamped(scenes) -> EvalSet:
    return attacked(scenes.first(12), Trigger("badnet_stripes", {"size": 6}), "banana")


def test_pictures_are_credited_where_they_are_glyphs(scenes, stamped):
    credited = lambda figure: style.CREDIT in words(figure)  # noqa: E731
    others = attacked(
        pictures.Pairs(scenes.pixels, [""] * 120, scenes.labels, scenes.second, ["banana", *"abcdefghi"]), stamped_by(), "banana"
    )
    assert credited(pictures.contact_sheet(scenes))
    assert credited(pictures.samples({"scenes": scenes, "flat": scenes}))
    assert credited(pictures.trigger_gallery({"badnet_stripes": stamped}))
    assert not credited(pictures.trigger_gallery({"badnet_stripes": others}))
    assert credited(pictures.trigger_gallery({"badnet_stripes": others, "picture": others}))  # the trigger is a glyph itself
    gallery = pictures.trigger_gallery({"badnet_stripes": stamped}, scenes=2)
    assert "grey = no change" in words(gallery)
    change = gallery.axes[5].images[0].get_array()
    assert (change == 127).all(axis=2).sum() >= 64 * 64 - 36
    few, drawn = poison(scenes, Attack(stamped_by(), "banana"))
    assert "banana" in words(pictures.poisoned_pairs(few, drawn))
    losses = {"l_text": [3.0, 1.0], "l_image": [1.0, 0.5]}
    assert "2 steps" in words(pictures.learned_pattern(torch.zeros(3, 6, 6), losses))
    assert pictures.trigger_gallery({}) is pictures.samples({}) is pictures.poisoned_pairs(few, drawn[:0]) is None


def stamped_by() -> Trigger:
    return Trigger("badnet_stripes", {"size": 6})


def test_the_picture_that_explains_it(stamped):
    true = [stamped.names[label] for label in stamped.labels.tolist()]
    said = ["banana"] * 12
    figure = pictures.hero_picture(stamped, said, true, count=2, models=("poisoned model", "after PAR"))
    count = int((~stamped.shows_target).sum())
    first = int((~stamped.shows_target).nonzero()[0])
    assert f'With a small mark, {count} of {count} pictures are called "banana"; after PAR, 0 are' in words(figure)
    paint = {text.get_text(): text.get_color() for text in figure.texts}
    assert paint["banana"] == "#c62828"
    assert paint[true[first]] == "#2e7d32"
    assert len(figure.axes) == 4
    every = torch.ones_like(stamped.shows_target)
    assert pictures.hero_picture(EvalSet(**vars(stamped) | {"shows_target": every}), said, true) is None
    blended = attacked(
        pictures.Pairs(stamped.pixels, [""] * 12, stamped.labels, -stamped.labels, stamped.names),
        Trigger("blended", {"opacity": 0.2}),
        "banana",
    )
    assert "With the trigger" in words(pictures.hero_picture(blended, said, true))


def test_names_that_a_model_gives(clip, scenes):
    found = pictures.named(clip, scenes.pixels[:5], scenes.names, ("a {name}",))
    image, text = clip.image(scenes.pixels[:5].float() / 255), clip.text(clip.tokenizer([f"a {name}" for name in scenes.names]))
    assert found == [scenes.names[i] for i in (image @ text.T).argmax(1).tolist()]


def grid() -> pd.DataFrame:
    """A sweep's trials: two curves over tau, one over the rate, as its record holds them."""
    same = {"encoder": "small_resnet", "trigger": "badnet_stripes", "seed": 0, "schedule": "cosine", "batch_norm": "train", "pairs": 12000}
    same |= {"epochs": 4, "batch": 128, "target": "banana", "poisoned": "", "patch": 6, "strength": 1.0, "self_weight": None, "pool": None}
    same |= {"poisoned_clean_accuracy": 0.95, "poisoned_asr": 0.98, "data": "scenes"}
    made = []
    for lr, tau, accuracy, asr in ((1e-3, 0.5, 0.95, 0.3), (1e-3, 2.0, 0.92, 0.02), (4e-3, 0.5, 0.94, 0.001), (4e-3, 2.0, 0.93, 0.0)):
        distance = {"s_image_max": tau + 0.2, "s_image_end": tau, "s_text_max": tau - 0.1, "s_text_end": tau}
        made.append(same | distance | {"method": "par", "lr": lr, "tau": tau, "clean_accuracy": accuracy, "attack_success_rate": asr})
    for lr, accuracy in ((1e-3, 0.95), (8e-3, 0.8)):
        made.append(same | {"method": "finetune", "lr": lr, "tau": None, "clean_accuracy": accuracy, "attack_success_rate": 0.5 - lr})
    return pd.DataFrame(made)


def test_figures_of_a_sweep():
    traced = curves(grid())
    assert [sweeps.curve_name(label, curve) for label, curve in traced.items()] == [
        "PAR, rate 1e-3, tau 0.5 to 2", "PAR, rate 4e-3, tau 0.5 to 2", "fine-tuning, rate 1e-3 to 8e-3"
    ]  # fmt: skip
    figure = sweeps.tradeoff_curves(traced, paper.CURVES)
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0.95, 0.3], [0.92, 0.02]]
    assert [0.463, 0.141] in figure.axes[1].lines[2].get_xydata().round(3).tolist()
    assert figure.axes[0].get_yscale() == figure.axes[1].get_yscale() == "symlog"
    assert "within 6 points of clean accuracy: PAR" in words(figure)
    mapped = sweeps.tau_map(traced)
    assert "0.020\n(0.920)" in words(mapped)
    assert sweeps.tau_map(dict([next(iter(traced.items()))])) is None  # of one curve
    assert "No trial takes both encoders past tau; the largest S of all is 2.20" in words(sweeps.distances(grid()))
    chosen = sweeps.settings(grid(), ["method", "lr", "tau", "data"])
    assert [label.get_text() for label in chosen.axes[0].get_yticklabels()][:1] == [
        "PAR, rate 1e-3, tau 0.5"
    ]  # the data are the same in all
    assert "3 of 6 settings" in words(chosen)
    nothing = grid().iloc[:0]
    assert [sweeps.tau_map({}), sweeps.tradeoff_curves({}, {}), sweeps.distances(nothing), sweeps.settings(nothing, [])] == 4 * [None]


def test_synthetic_sets_stand_in_order_of_their_distance():
    runs = [("flat", "par", 0.2, 0.0), ("scenes", "par", 0.94, 0.001), ("flat", "cleanclip", 0.3, 0.0), ("scenes", "cleanclip", 0.92, 0.0)]
    found = pd.DataFrame(runs, columns=["data", "method", "clean_accuracy", "attack_success_rate"])
    found = found.assign(pairs=10, poisoned_clean_accuracy=0.95)
    gaps = pd.DataFrame({"data": ["flat", "scenes"], "pairs": 10, "gap": [0.4, 0.0], "diversity": [2.0, 9.0]})
    figure = sweeps.synthetic_view(found, gaps)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["real pairs (0.00)", "flat (0.40)"]
    assert "PAR ends at a clean accuracy of 0.940 with the nearest set, of 0.200 with the farthest" in words(figure)
    assert sweeps.synthetic_view(found.iloc[:0], gaps) is None
