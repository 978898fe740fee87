"""Records and the runner: what is done, stale or missing; one clear error for each way to go wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

from parlib import keys, lineage, records, report, run, tables
from parlib.cache import ROOT, atomic_folder, code_fingerprint, digest, lock
from parlib.experiments.ids import run_id
from parlib.method.methods import METHODS, contrast
from parlib.experiments.notebook import Run, start
from parlib.experiments.params import check
from parlib.attack.triggers import TRIGGERS

METRICS = {
    "clean_accuracy": 0.9,
    "clean_accuracy_ci_low": 0.85,
    "clean_accuracy_ci_high": 0.95,
    "attack_success_rate": 0.1,
    "attack_success_rate_ci_low": 0.0,
    "attack_success_rate_ci_high": 0.2,
}


@pytest.fixture(autouse=True)
def _own_outputs(tmp_path, monkeypatch):
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "params").symlink_to(ROOT / "params")
    for module in ("records", "notebook"):
        monkeypatch.setattr(f"parlib.{module}.ROOT", tmp_path)


def _record(tmp_path, notebook="01_poison", **values) -> dict:
    weights = tmp_path / "weights"
    weights.write_bytes(b"weights")
    started = start(notebook, values)
    history = {"s_image": [0.5, 3.0], "s_text": [0.1, 0.2]} if notebook == "02_clean" else {}
    return started.save(metrics=METRICS, seconds=1.5, n=10, history=history, weights=weights)


def test_record_is_flat_and_complete(tmp_path):
    record = _record(tmp_path)
    assert set(record) >= set("schema run notebook params inputs artifacts metrics history seed n seconds device versions git".split())
    assert record["run"] == "01_poison/badnet_stripes_s0"
    assert record["artifacts"]["weights"]["path"] == "weights"
    assert str(tmp_path) not in json.dumps(record)
    assert records.read("small", record["run"]) == json.loads(json.dumps(record))


def test_states(tmp_path):
    record = _record(tmp_path)
    name, key = record["run"], record["key"]
    assert keys.state("small", name, key) == "done"
    assert keys.state("small", "01_poison/blended_s0", key) == "missing"
    assert keys.state("small", name, "other").startswith("stale")
    (tmp_path / "weights").write_bytes(b"touched")
    assert keys.state("small", name, key) == "its weights is not the file that was written"
    (tmp_path / "weights").unlink()
    assert keys.state("small", name, key) == "its weights is gone"


def test_key_changes_with_parameters_and_inputs():
    base = keys.key("01_poison", check("01_poison", {}), {})
    assert base == keys.key("01_poison", check("01_poison", {"rate": 0.08}), {})
    assert base != keys.key("01_poison", check("01_poison", {"rate": 0.09}), {})
    assert base != keys.key("01_poison", check("01_poison", {}), {"poisoned": {"sha256": "1"}})


def test_fingerprint_sees_code_and_not_words(tmp_path, monkeypatch):
    from parlib import cache

    (tmp_path / "parlib").mkdir()
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    module, other = tmp_path / "parlib" / "a.py", tmp_path / "parlib" / "b.py"
    other.write_text("x = {1: 1}\n")
    start = "from parlib.b import x\ndef f():\n"
    seen = []
    for text in (
        f'{start}  """One."""\n  return x\n',
        f'{start}  """Two."""\n  # words\n  return x\n\ndef unrelated(): ...\nMETHODS = {{}}\n',
        f"{start}  return METHODS, x\n\nMETHODS = {{1: 2}}\n",
        f"{start}  return METHODS, x\n\nMETHODS = {{1: 3}}\n",
    ):
        module.write_text(text)
        os.utime(module, ns=(len(seen), len(seen)))
        seen.append(code_fingerprint("a.f"))
    assert seen[0] == seen[1] != seen[2] == seen[3]
    other.write_text("x = {1: 1}\nx[2] = 2\n")
    assert code_fingerprint("a.f") != seen[3]
    with pytest.raises(KeyError):
        code_fingerprint("a.gone")


def test_a_key_names_the_entries_of_the_registries_that_it_uses(monkeypatch):
    params = check("02_clean", {"method": "cleanclip"})
    before, usual = keys.key("02_clean", params, {}), METHODS["cleanclip"]
    assert keys.key("02_clean", params, {}) == before
    for changed in ({"weight_decay": 0.2}, {"learns_scale": False}, {"needs_reference": True}, {"reword": None}, {"loss": contrast}):
        monkeypatch.setitem(METHODS, "cleanclip", replace(usual, **changed))
        assert keys.key("02_clean", params, {}) != before, changed
    monkeypatch.setitem(METHODS, "cleanclip", usual)
    monkeypatch.setitem(METHODS, "par", replace(METHODS["par"], weight_decay=0.2))  # not its own
    assert keys.key("02_clean", params, {}) == before
    assert METHODS["par"].code == ["methods.par", "augment.noise_and_cutout"]
    assert METHODS["cleanclip"].code == ["methods.cleanclip", "augment.auto_augment", "eda.reword"]


def test_other_parameters_are_never_overwritten(tmp_path, monkeypatch):
    record = _record(tmp_path)
    path = records.record_path("small", record["run"])
    held = json.loads(path.read_text())
    held["params"]["rate"] = 0.5
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"holds a run with other parameters .*rate.*move it away first"):
        start("01_poison", {})
    assert json.loads(path.read_text()) == held
    del held["params"]["rate"]  # as in a record from before there was such a parameter
    path.write_text(json.dumps(held))
    assert start("01_poison", {}).id == record["run"]


def test_the_runner_moves_other_parameters_aside_and_keeps_them(tmp_path):
    record = _record(tmp_path)
    path = records.record_path("small", record["run"])
    assert records.move_aside(check("01_poison", {}), record["run"]) is None
    path.write_text(json.dumps(record | {"params": record["params"] | {"rate": 0.5}}))
    moved = records.move_aside(check("01_poison", {}), record["run"])
    assert not path.exists()
    assert json.loads((tmp_path / moved).read_text())["params"]["rate"] == 0.5
    assert records.read_all(tmp_path / "outputs" / "small") == []


def test_a_damaged_record_is_named(tmp_path):
    record = _record(tmp_path)
    path = records.record_path("small", record["run"])
    path.write_text('{"schema": 1, "ru')
    with pytest.raises(ValueError, match=r"badnet_stripes_s0\.json is not a record .*delete it and run it again"):
        records.read("small", record["run"])


def test_a_table_needs_records_and_no_weights(tmp_path):
    _record(tmp_path)
    _record(tmp_path, "02_clean")
    (tmp_path / "weights").unlink()
    assert [item["notebook"] for item in keys.fresh("small")] == ["01_poison", "02_clean"]
    with pytest.raises(FileNotFoundError, match="the weights of 01_poison/badnet_stripes_s0 are gone or damaged; make them again with"):
        lineage.upstream(check("02_clean", {}))


def test_only_a_poisoned_run_can_be_cleaned(tmp_path):
    _record(tmp_path)
    _record(tmp_path, "02_clean")
    with pytest.raises(ValueError, match="02_clean/par_badnet_stripes_s0 is no poisoned model"):
        start("02_clean", {"poisoned": "02_clean/par_badnet_stripes_s0"})


def test_an_upstream_that_no_longer_fits_makes_a_run_stale(tmp_path):
    _record(tmp_path)
    planned = run.Planned("02_clean", {"classes": 20}, check("02_clean", {"classes": 20}))
    assert planned.state().startswith("stale: 01_poison/badnet_stripes_s0 was made with classes = 200, not 20")


def test_a_small_file_is_kept_beside_the_record(tmp_path):
    (tmp_path / "found.safetensors").write_bytes(b"pattern")
    started = start("01_poison", {})
    kept = started.file("pattern", tmp_path / "found.safetensors")
    assert kept == tmp_path / "outputs/small/01_poison/badnet_stripes_s0_pattern.safetensors"
    record = started.save(metrics=METRICS, seconds=1.5, n=10)
    assert record["artifacts"]["pattern"]["in"] == "project"
    assert lineage.intact(record, "pattern").read_bytes() == b"pattern"


def test_rerun_says_whether_it_is_equal(tmp_path, capsys):
    _record(tmp_path)
    _record(tmp_path)
    assert "equal to the earlier record" in capsys.readouterr().out


def test_missing_upstream_names_the_command():
    with pytest.raises(FileNotFoundError, match="--only 01_poison/badnet_stripes_s0"):
        start("02_clean", {})
    with pytest.raises(FileNotFoundError, match="--only 01_poison/nothing_s9"):
        start("02_clean", {"poisoned": "01_poison/nothing_s9"})
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        start("05_evaluate", {})


def test_a_named_poisoned_run_must_be_of_the_same_attack(tmp_path):
    _record(tmp_path, trigger="blended_text")
    with pytest.raises(ValueError, match="01_poison/blended_text_s0 was made with trigger = 'blended_text', not 'badnet_stripes'"):
        start("02_clean", {"poisoned": "01_poison/blended_text_s0"})
    named = start("02_clean", {"poisoned": "01_poison/blended_text_s0", "trigger": "blended_text"})
    assert named.inputs["poisoned"]["run"] == "01_poison/blended_text_s0"


def test_a_trigger_is_tested_as_it_was_planted(tmp_path):
    _record(tmp_path, patch=11)
    record = records.read("small", "01_poison/badnet_stripes_s0_patch11")
    params = check("02_clean", {"poisoned": record["run"]})
    assert lineage.planted(params, record)["patch"] == 11
    assert keys.inputs(params)["poisoned"]["patch"] == 11
    assert lineage.planted(check("02_clean", {"poisoned": record["run"], "patch": 4}), record)["patch"] == 4


def test_stale_records_are_left_out_of_the_table(tmp_path, capsys):
    record = _record(tmp_path)
    assert [item["run"] for item in keys.fresh("small")] == [record["run"]]
    path = records.record_path("small", record["run"])
    path.write_text(json.dumps(record | {"key": "of older code"}))
    with pytest.raises(FileNotFoundError):
        keys.fresh("small")
    assert "left out, because it is stale: 01_poison/badnet_stripes_s0" in capsys.readouterr().out


def test_unwritable_outputs_end_before_any_work(tmp_path):
    (tmp_path / "outputs").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cannot write .*01_poison"):
        start("01_poison", {})


def test_an_unwritable_cache_ends_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "cache"))
    with pytest.raises(OSError, match="cannot write .*cache/"):
        start("01_poison", {})


def test_a_full_disk_leaves_no_half_record(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    started = start("01_poison", {})
    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left on device"):
        started.save(metrics=METRICS, seconds=1.0, n=1)
    assert [path.name for path in (tmp_path / "outputs").rglob("*") if path.is_file()] == []


def test_folder_appears_whole_or_not_at_all(tmp_path):
    def write():
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not (tmp_path / "model").exists()


def test_table_has_the_columns_and_main_rows(tmp_path):
    found = [_record(tmp_path), _record(tmp_path, "02_clean"), _record(tmp_path, "02_clean", tau=1.0)]
    frame = report.table(found)
    assert list(frame.columns) == report.COLUMNS
    assert frame["table"].tolist() == [1, 1, 0]
    assert frame["method"].tolist() == ["none", "par", "par"]
    assert frame["share_above_tau_image"].tolist()[1:] == [0.5, 0.5]
    assert frame["share_above_tau_text"].tolist()[1:] == [0.0, 0.0]
    assert len(tables.summary(frame)) == 2


def test_summary_opens_with_the_clean_base_and_ablations_have_a_table_of_their_own(tmp_path):
    base = {"base_clean_accuracy": 0.8, "base_asr": 0.004, "base_triggered_accuracy": 0.7, "base_retrieval_asr": 0.01}
    planted = start("01_poison", {})
    found = [planted.save(metrics=METRICS | base, seconds=1.5, n=10)]
    (tmp_path / "weights").write_bytes(b"weights")
    control = {"method": "finetune", "lr": 4e-3, "batch": 128, "schedule": "cosine"}
    for values in ({"method": "par"}, {"method": "finetune"}, {"method": "perturb_only"}, control, {"method": "par", "lr": 2e-3}):
        params = check("02_clean", values)
        started = Run("02_clean", run_id("02_clean", params), params)
        found.append(started.save(metrics=METRICS, seconds=1.5, n=10))
    frame = report.table(found)
    assert frame["table"].tolist() == [1, 1, 1, 2, 0, 0]
    main, parts = tables.summary(frame), tables.ablations(frame)
    assert main["model"].tolist() == ["clean base", "poisoned", "fine-tuning", "PAR"]
    assert main["ASR"].tolist() == ["0.004", *3 * ["0.100 (0.000 to 0.200)"]]
    assert main["paper's ASR"].tolist() == ["", "0.992", "", "0.424"]
    assert tables.overview(frame).to_dict("records") == [
        {
            "encoder": "small_resnet",
            "trigger": "badnet_stripes",
            "size (paper's)": "6 px (5 px)",
            "clean base": "0.004 (0.800)",
            "poisoned": "0.100 (0.900)",
            "fine-tuning": "0.100 (0.900)",
            "PAR": "0.100 (0.900)",
            "paper's CleanCLIP": "0.623",
            "paper's RoCLIP": "0.820",
            "paper's PAR": "0.424 (0.530)",
        }
    ]
    assert tables.overview(frame, kind=3).empty
    assert parts["model"].tolist() == ["neither", "perturbation", "both: PAR"]  # all at PAR's settings, or they don't compare
    assert set(parts["lr"]) == {4e-3}  # at 2e-3 no part was run alone
    assert tables.ablations(frame[frame["table"] < 2]).empty


def test_orders_of_the_methods():
    rows = [  # accuracy (0.95 before), ASR and its interval
        ("finetune", 0.94, 0.020, 0.015, 0.025),
        ("cleanclip", 0.90, 0.001, 0.000, 0.010),
        ("roclip", 0.85, 0.000, 0.000, 0.002),  # costs more than 0.06
        ("par", 0.93, 0.011, 0.009, 0.018),
    ]
    names = ["method", "clean_accuracy", "attack_success_rate", "asr_ci_low", "asr_ci_high"]
    frame = pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows], columns=report.COLUMNS)
    frame = frame.assign(
        notebook="02_clean", table=1, attack="dirty_label", seed=0, encoder="small_resnet", trigger="sig", poisoned_clean_accuracy=0.95
    )
    ordered = "CleanCLIP = PAR, then fine-tuning, then RoCLIP"
    assert tables.orders(frame).to_numpy().tolist() == [["sig", ordered]]
    others = frame.assign(encoder="small_vit", asr_ci_low=frame["attack_success_rate"], asr_ci_high=frame["attack_success_rate"])
    alone = frame.assign(trigger="badnet")  # one encoder has not been attacked so
    both = tables.orders(pd.concat([frame, others, alone], ignore_index=True))
    assert both.columns.tolist() == ["trigger", "small_resnet", "small_vit"]
    assert both.to_numpy().tolist() == [["sig", ordered, "CleanCLIP, then PAR, then fine-tuning, then RoCLIP"]]
    assert tables.orders(frame[frame["seed"] == 1]).empty


def _trials(*rows: tuple[str, float, float]) -> pd.DataFrame:
    values = [{"method": method, "clean_accuracy": ca, "attack_success_rate": asr, "lr": i} for i, (method, ca, asr) in enumerate(rows)]
    frame = pd.DataFrame(values, columns=report.COLUMNS)
    return frame.assign(notebook="02_clean", split="validation", encoder="small_resnet", poisoned_clean_accuracy=0.95)


def test_the_rule_that_chooses_a_trial():
    kept = _trials(("par", 0.95, 0.3), ("par", 0.90, 0.01), ("par", 0.91, 0.01), ("par", 0.88, 0.0), ("finetune", 0.80, 0.0))
    assert report.trials(kept)["chosen"].tolist() == [True, False, False, True, False]
    assert report.trials(kept)["method"].tolist() == ["finetune"] + 4 * ["par"]
    none = _trials(("par", 0.80, 0.3), ("par", 0.70, 0.1), ("par", 0.85, 0.9))
    assert report.trials(none)["chosen"].tolist() == [False, True, False]  # the highest CA - ASR
    assert report.trials(kept.assign(split="test")).empty
    just = _trials(("par", 0.751, 0.3), ("par", 0.691, 0.1), ("par", 0.6905, 0.0)).assign(poisoned_clean_accuracy=0.751)
    assert 0.691 < 0.751 - 0.06  # in floating point
    assert report.trials(just)["chosen"].tolist() == [False, True, False]  # a cost of just 0.06 is within
    both = report.trials(pd.concat([kept, none.assign(encoder="small_vit", poisoned_clean_accuracy=0.75)], ignore_index=True))
    chosen = both[both["chosen"]]
    assert chosen["encoder"].tolist() == ["small_resnet", "small_resnet", "small_vit"]  # one a method and encoder
    assert chosen["clean_accuracy"].tolist() == [0.80, 0.91, 0.70]
    assert chosen["limit"].round(2).tolist() == [0.89, 0.89, 0.69]


def test_new_triggers_have_a_table_of_their_own(tmp_path):
    planted = Run("01_poison", "01_poison/picture_s0", check("01_poison", {"trigger": "picture"}))
    found = [planted.save(metrics=METRICS, seconds=1.5, n=10)]
    for values in (
        {},
        {"lr": 1e-3},
        {"lr": 1e-3, "seed": 1},
        {"lr": 1e-3, "tau": 1.0},
        {"lr": 1e-3, "split": "validation"},
        {"lr": 1e-3, "schedule": "paper"},
        {"method": "finetune"},
    ):
        params = check("02_clean", {"trigger": "picture"} | values)
        found.append(Run("02_clean", run_id("02_clean", params), params).save(metrics=METRICS, seconds=1.5, n=10))
    frame = report.table(found)
    assert frame["table"].tolist() == [3, 3, 0, 0, 0, 0, 0, 3]
    assert tables.new_triggers(frame)["model"].tolist() == ["poisoned", "fine-tuning", "PAR"]
    assert tables.summary(frame).empty
    frame.loc[2:3, "attack_success_rate"] = [0.2, 0.4]  # 1e-3, seeds 0 and 1; what differs in more stays out
    rates = tables.at_rates(frame)
    assert rates.columns.tolist() == ["encoder", "trigger", "PAR at 0.001", "PAR at 0.004"]
    assert rates.to_numpy().tolist() == [["small_resnet", "picture", "0.300 (0.900)", "0.100 (0.900)"]]
    assert tables.at_rates(frame, "cleanclip").empty
    assert [options["trigger"] for options in report.planted_triggers(found, frame, kind=3)] == ["picture"]
    with pytest.raises(ValueError, match="no such trigger has been planted yet"):
        report.planted_triggers(found, frame)


def test_summary_is_mean_and_sample_std(tmp_path):
    frame = report.table([_record(tmp_path, seed=seed) for seed in (0, 1)])
    frame["clean_accuracy"] = [0.8, 0.9]
    assert tables.summary(frame)["clean accuracy"].tolist() == ["0.850 ± 0.071"]
    assert tables.overview(frame)["poisoned"].tolist() == ["0.100 ± 0.000 (0.850)"]
    frame["retrieval_asr"] = [0.3, None]
    assert tables.summary(frame)["retrieval ASR"].tolist() == ["0.300"]
    assert tables.summary(frame.assign(retrieval_asr=float("nan")))["retrieval ASR"].tolist() == [""]


def test_plan_expands_lists_and_orders():
    planned = run.plan(ROOT / "params" / "smoke")
    ids = [item.id for item in planned]
    assert ids == [
        "01_poison/badnet_stripes_s0",
        "01_poison/resistant_s0",
        "02_clean/finetune_badnet_stripes_s0",
        "02_clean/cleanclip_badnet_stripes_s0",
        "02_clean/roclip_badnet_stripes_s0",
        "02_clean/par_badnet_stripes_s0",
        "02_clean/finetune_resistant_s0",
        "03_tau_sweep/grid_badnet_stripes_s0",
        "03_tau_sweep/optuna_badnet_stripes_s0",
        "04_synthetic/badnet_stripes_s0_datascenes-outline-painted_methodpar_seeds0",
        "05_evaluate",
        "06_new_triggers",
    ]


def test_only_adds_what_is_needed():
    planned = run.plan(ROOT / "params" / "small")
    wanted = run.choose(planned, ["02_clean/par_badnet_stripes_s1"])
    assert [item.id for item in run.with_needs(wanted, planned)] == [
        "01_poison/badnet_stripes_s1",
        "02_clean/par_badnet_stripes_s1",
    ]
    for trigger in TRIGGERS:  # some begin with another's name
        unplanned = run.choose(planned, [f"02_clean/par_{trigger}_s7"])
        assert [item.id for item in run.with_needs(unplanned, planned)] == [f"01_poison/{trigger}_s7", f"02_clean/par_{trigger}_s7"]
    with pytest.raises(ValueError, match="no parameter file plans '02_clean/part_badnet_stripes_s1'; near it are: .*02_clean/par_badnet"):
        run.choose(planned, ["02_clean/part_badnet_stripes_s1"])


def test_a_list_is_an_axis_unless_the_parameter_is_one(tmp_path):
    path = tmp_path / "02_clean_two.yaml"
    path.write_text("tau: [0.5, 1.0]\ntests: [blended, sig]\n")
    assert [(item.params.tau, item.params.tests) for item in run.plan(path)] == [(0.5, ["blended", "sig"]), (1.0, ["blended", "sig"])]
    path.write_text("tests: [[blended], [sig]]\n")
    with pytest.raises(ValueError, match="asks twice for 02_clean/par_badnet_stripes_s0: compute and tests don't make two runs"):
        run.plan(path)
    path.write_text("tests: []\n")
    assert run.plan(path)[0].params.tests == []
    path.write_text("seed: []\n")
    with pytest.raises(ValueError, match="seed is an axis of runs without a value; name one or more"):
        run.plan(path)


def test_a_folder_is_planned_without_what_is_to_be_filled_in_first(capsys):
    planned = {item.id for item in run.plan(ROOT / "params" / "paper")}
    (own,) = run.plan(ROOT / "params" / "paper" / "02_clean_own.yaml")
    assert planned
    assert own.id not in planned
    assert "02_clean_own.yaml is left out: fill it in and run it by its name" in capsys.readouterr().out
    assert own.params.tests


def test_command_line_errors(tmp_path, capsys):
    assert run.main([str(tmp_path / "params" / "large")]) == 1
    assert "does not exist; the parameter folders are: params/paper, params/small, params/smoke" in capsys.readouterr().err
    (tmp_path / "02_clean_typo.yaml").write_text("tau: high\n")
    assert run.main([str(tmp_path / "02_clean_typo.yaml")]) == 1
    assert "02_clean: tau = 'high'" in capsys.readouterr().err
    (tmp_path / "02_clean_list.yaml").write_text("- tau\n")
    assert run.main([str(tmp_path / "02_clean_list.yaml")]) == 1
    assert "must hold names and values, not a list" in capsys.readouterr().err
    (tmp_path / "02_clean_broken.yaml").write_text("tau: [1.0\n")
    assert run.main([str(tmp_path / "02_clean_broken.yaml")]) == 1
    assert "is not YAML" in capsys.readouterr().err
    (tmp_path / "cleaning.yaml").write_text("tau: 1.0\n")
    assert run.main([str(tmp_path / "cleaning.yaml")]) == 1
    assert "must begin with the name of a notebook: 01_poison" in capsys.readouterr().err


def test_second_runner_refuses_and_a_dead_one_frees(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import time; from pathlib import Path; from parlib.cache import lock\n"
        f"with lock(Path({str(path)!r}), wait=False, doing='a run'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(RuntimeError, match=rf"process {holder.pid} \(a run\) is at work on this already"),
        lock(path, wait=False, doing="me"),
    ):
        pass
    holder.kill()
    holder.wait()
    with lock(path, wait=False, doing="me"):
        assert f"process {os.getpid()} (me)" in path.read_text()


def test_runner_refuses_beside_another(tmp_path, capsys):
    with lock(records.outputs("smoke") / ".lock", wait=False, doing="the first"):
        assert run.main([str(ROOT / "params" / "smoke")]) == 1
    assert "(the first) is at work on this already" in capsys.readouterr().err


def test_an_artifact_that_a_record_does_not_keep_is_named(tmp_path):
    with pytest.raises(ValueError, match="01_poison/badnet_stripes_s0 keeps no base weights; it keeps: weights"):
        lineage.base(check("02_clean", {"poisoned": _record(tmp_path)["run"]}))


def test_code_that_reads_data_of_others_counts_for_runs_that_do():
    assert code_fingerprint("synthetic.load_pairs") != code_fingerprint("synthetic.load_pairs", outside=False)
    assert code_fingerprint("losses.distance") == code_fingerprint("losses.distance", outside=False)


@pytest.mark.parametrize(
    ("notebook", "values", "expected"),
    [
        ("01_poison", {}, False),
        ("01_poison", {"encoder": "RN50", "base": "openai", "data": "cc3m:x", "evaluation": "imagenet:x"}, True),
        ("02_clean", {}, False),
        ("02_clean", {"poisoned": "01_poison/badnet_stripes_s1"}, False),
        ("02_clean", {"poisoned": "local-dir:x"}, True),
        ("02_clean", {"evaluation": "folder:x"}, True),
        ("03_tau_sweep", {}, False),
        ("03_tau_sweep", {"space": [{"data": ["flat", "cc3m:x"]}]}, True),
        ("05_evaluate", {}, False),
    ],
)
def test_a_key_knows_whether_a_run_reads_what_others_made(notebook, values, expected, monkeypatch):
    params = check(notebook, values)
    before = keys.key(notebook, params, {})
    monkeypatch.setattr(keys, "code_fingerprint", lambda *roots, outside: f"{outside} {'streams.labelled' in roots}")
    assert keys.key(notebook, params, {}) != before
    monkeypatch.setattr(keys, "digest", lambda *parts: parts)
    assert f"{expected} {expected}" in keys.key(notebook, params, {})


def test_digest_is_of_content():
    assert digest([1, "a"]) == digest([1, "a"]) != digest([1, "b"])
    assert digest(torch.zeros(2)) != digest(torch.zeros(2, 1)) != digest(torch.zeros(2, 1, dtype=torch.int32))


def test_a_run_that_was_never_made_is_timed_by_those_like_it(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "REFERENCE", tmp_path / "none")
    _record(tmp_path)
    _record(tmp_path, "02_clean")
    asked = [{"seed": 1}, {"epochs": 8}, {"method": "roclip"}]
    planned = [run.Planned("02_clean", values, check("02_clean", values)) for values in [{}, *asked]]
    assert list(run.expected_seconds(planned).values()) == [16.5, 16.5, 18.0, None]


def test_a_scale_that_was_never_run_is_not_timed_by_the_published_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "empty"))  # the published base isn't there either
    assert set(run.expected_seconds(run.plan(ROOT / "params" / "smoke")).values()) == {None}
