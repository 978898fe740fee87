"""Records and the runner: what is done, missing or stale; nothing is lost, and each way to go wrong is one clear line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import small_records
import torch
from small_records import record

from parlib.attack.adaptive import ATTACKERS
from parlib.attack.triggers import Trigger
from parlib.cache import ROOT, atomic_folder, cache_dir, check_writable, digest, lock
from parlib.cli import export, verify
from parlib.cli.make import expected_seconds
from parlib.cli.plan import Planned, plan
from parlib.cli.run import main
from parlib.experiments.registry import check, make
from parlib.experiments.result import Result, prepare, save
from parlib.experiments.subject import planted_trigger, subject
from parlib.records.status import fresh, state
from parlib.records.store import REFERENCE, artifact_file, outputs, read, read_all, record_path
from parlib.stages import STAGES
from parlib.train.ray import _short_folder

pytestmark = pytest.mark.usefixtures("own_outputs")
POISONED = "01_poison/badnet_stripes_s0"


def _rewrite(run: str, **changes) -> dict:
    """Change a record on disk."""
    path = record_path("small", run)
    held = json.loads(path.read_text())
    held |= changes
    path.write_text(json.dumps(held))
    return held


# Records


def test_a_record_is_complete_and_names_no_machine(own_outputs):
    made = record()
    wanted = "schema run notebook experiment params identity made_from artifacts metrics history n seconds provenance".split()
    assert list(made) == wanted
    assert set(made["identity"]) == {"params", "inputs", "stages", "environment"}
    assert set(made["provenance"]) == {"git", "python", "device", "threads"}
    assert made["run"] == POISONED
    assert read("small", POISONED) == json.loads(json.dumps(made))
    text = record_path("small", POISONED).read_text()
    assert str(own_outputs) not in text
    assert str(cache_dir()) not in text


def test_all_files_of_a_run_with_the_longest_id_can_be_written(own_outputs):
    many = {"data": "csv:a", "evaluation": "imagenet:a", "target": "axe", "split": "validation", "classes": 20, "eval_scenes": 50}
    many |= {"templates": 3, "max_skipped": 0.5, "normalised": False, "base": "openai", "train_scenes": 100, "batch": 10, "lr": 1e-5}
    params = check("01_poison", many)
    assert len(params.id) > 150
    for name in (f"{params.id}.running.ipynb", f"{params.id}_embedding_points.csv", f"{params.id}.01234567.old", f"{params.id}_model"):
        with atomic_folder(outputs("small") / name) as temporary:  # the longest of temporary names
            assert len(temporary.name.encode()) < 255
    check_writable(record_path("small", params.id))
    check_writable(cache_dir() / f"{params.id.partition('/')[2]}_embedding_points.safetensors")


def test_states(own_outputs):
    run = check("01_poison", {})
    assert state(run) == "missing"
    made = record()
    assert state(run) == "done"
    weights = cache_dir() / made["artifacts"]["weights"]["path"]
    weights.write_bytes(b"touched")
    assert state(run) == "its weights is not the file that was written"
    weights.unlink()
    assert state(run) == "its weights is gone"
    _rewrite(POISONED, identity=made["identity"] | {"stages": made["identity"]["stages"] | {"loop": 0}})
    assert state(run) == "stale: loop 0 -> 1"


def test_a_record_from_before_there_was_a_parameter_stays_current():
    made = record()
    held = _rewrite(POISONED, params={name: value for name, value in made["params"].items() if name != "max_skipped"})
    assert state(check("01_poison", held["params"])) == "done"
    assert [one["run"] for one in fresh("small", check)] == [POISONED]


def test_another_run_s_record_is_never_overwritten():
    made = record()
    other = _rewrite(POISONED, identity=made["identity"] | {"params": made["identity"]["params"] | {"rate": 0.5}})
    with pytest.raises(ValueError, match=r"badnet_stripes_s0\.json.*rate 0\.5 -> 0\.08"):
        prepare(check("01_poison", {}))
    with pytest.raises(ValueError, match="rate"):
        make(check("01_poison", {}))
    assert read("small", POISONED) == other


def test_a_missing_run_with_a_label_is_made_from_its_user_s_files():
    with pytest.raises(FileNotFoundError, match="params/own --only 01_poison/planted"):
        check("02_clean", {"poisoned": "01_poison/planted"}).identity()


def test_the_runner_moves_another_run_s_record_aside_and_keeps_it(own_outputs, monkeypatch, capsys):
    made = record(values={"scale": "smoke"})
    path = record_path("smoke", POISONED)
    beside = [path.with_suffix(".ipynb"), path.with_name(f"{path.stem}_tests.csv")]
    table = {"in": "project", "path": beside[1].relative_to(own_outputs).as_posix(), "sha256": ""}
    held = made | {"identity": made["identity"] | {"params": {"rate": 0.5}}, "artifacts": made["artifacts"] | {"tests": table}}
    path.write_text(json.dumps(held))
    for file in beside:
        file.write_text(file.name)
    monkeypatch.setattr("parlib.experiments.registry.make", lambda params: save(small_records.result(values={"scale": "smoke"})))
    monkeypatch.setattr("parlib.cli.make.show", lambda runs: None)
    assert main([str(ROOT / "params" / "smoke"), "--functions", "--only", POISONED]) == 0
    (aside,) = path.parent.glob(f"{path.stem}.????????.old")
    for file in beside:
        assert path.with_name(file.name + aside.name.removeprefix(path.stem)).read_text() == file.name
        assert not file.exists()
    assert aside.name in capsys.readouterr().out
    assert json.loads(aside.read_text()) == held
    assert [one["identity"] for one in read_all(outputs("smoke"))] == [made["identity"]]


def test_a_record_that_is_made_again_says_whether_it_is_equal(capsys):
    record()
    small_records.record(metrics=small_records.METRICS | small_records.BASE | {"base_seconds": 3.0})
    assert "equal to the earlier record" in capsys.readouterr().out
    record(metrics=small_records.METRICS | {"clean_accuracy": 0.8})
    assert "clean_accuracy 0.8 (was 0.9)" in capsys.readouterr().out


def test_what_was_made_again_while_a_run_used_it_is_told(own_outputs):
    record()
    params = check("02_clean", {"poisoned": POISONED})
    made_of = prepare(params)
    weights = read("small", POISONED)["artifacts"]["weights"]
    _rewrite(POISONED, artifacts={"weights": weights | {"sha256": "5" * 64}})
    with pytest.raises(RuntimeError, match=r"again while it ran.*inputs\.poisoned"):
        save(Result(params, metrics={}, n=0), made_of)
    assert not record_path("small", params.id).exists()


def test_a_record_that_is_made_again_stays_the_answer_to_its_question():
    record(values={"experiment": "main"})
    assert record()["experiment"] == "main"
    assert record(values={"experiment": "own"})["experiment"] == "own"


@pytest.mark.parametrize("text", ['{"schema": 1, "ru', "[]", "{}", '{"schema": 1, "params": {}, "identity": {}}', '{"schema": 2}'])
def test_a_damaged_record_is_named(capsys, text):
    record()
    record_path("small", POISONED).write_text(text)
    with pytest.raises(ValueError, match=r"badnet_stripes_s0\.json.*delete it"):
        read("small", POISONED)
    assert main([str(ROOT / "params" / "small"), "--list", "--only", POISONED]) == 1
    assert "badnet_stripes_s0.json" in capsys.readouterr().err


def test_a_small_file_is_kept_beside_the_record(own_outputs, tmp_path):
    (tmp_path / "found.safetensors").write_bytes(b"pattern")
    made = record(files={"pattern": tmp_path / "found.safetensors"})
    kept = own_outputs / "outputs/small/01_poison/badnet_stripes_s0_pattern.safetensors"
    assert made["artifacts"]["pattern"]["in"] == "project"
    assert artifact_file(made, "pattern") == kept
    assert kept.read_bytes() == b"pattern"


def test_a_table_needs_records_and_no_weights(own_outputs):
    made = record()
    record("02_clean")
    (cache_dir() / made["artifacts"]["weights"]["path"]).unlink()
    assert [item["notebook"] for item in fresh("small", check)] == ["01_poison", "02_clean"]
    with pytest.raises(FileNotFoundError, match=f"weights.*--only {POISONED}"):
        subject(check("02_clean", {}))


def test_stale_records_are_left_out_of_a_table(capsys, monkeypatch):
    record()
    record("02_clean")
    monkeypatch.setitem(STAGES, "method/par", 2)
    assert [one["run"] for one in fresh("small", check)] == [POISONED]
    assert "02_clean/par_badnet_stripes_s0 (method/par 1 -> 2)" in capsys.readouterr().out
    monkeypatch.setitem(STAGES, "loop", 2)
    assert fresh("small", check) == []


def test_an_artifact_that_a_record_does_not_keep_is_named():
    weights = record()["artifacts"]["weights"]
    _rewrite(POISONED, artifacts={"weights": weights})
    with pytest.raises(ValueError, match=f"{POISONED}.*base weights.*weights"):
        artifact_file(read("small", POISONED), "base_weights")


# What a run builds on


def test_what_is_missing_is_named_with_the_command_that_makes_it():
    with pytest.raises(FileNotFoundError, match=f"--only {POISONED}"):
        prepare(check("02_clean", {}))
    with pytest.raises(FileNotFoundError, match="--only 01_poison/nothing_s9"):
        prepare(check("02_clean", {"poisoned": "01_poison/nothing_s9"}))
    with pytest.raises(FileNotFoundError, match=r"scale paper.*parlib\.run"):
        fresh("paper", check)
    assert fresh("small", check) == []  # the published ones are there


def test_only_a_poisoned_run_can_be_cleaned():
    record()
    record("02_clean")
    with pytest.raises(ValueError, match="02_clean/par_badnet_stripes_s0.*01_poison"):
        prepare(check("02_clean", {"poisoned": "02_clean/par_badnet_stripes_s0"}))


def test_a_poisoned_run_that_is_named_must_be_of_the_same_attack():
    record(values={"trigger": "blended_text"})
    asked = {"poisoned": "01_poison/blended_text_s0"}
    with pytest.raises(ValueError, match="blended_text_s0.*trigger.*'blended_text'.*'badnet_stripes'"):
        prepare(check("02_clean", asked))
    assert check("02_clean", asked | {"trigger": "blended_text"}).inputs()["poisoned"].run == asked["poisoned"]


def test_an_upstream_that_no_longer_fits_makes_a_run_stale(capsys):
    record()
    record("02_clean")
    record("02_clean", {"poisoned": POISONED})
    _rewrite(POISONED, params=read("small", POISONED)["params"] | {"classes": 20})
    assert state(check("02_clean", {})).startswith(f"stale: {POISONED} was made with classes = 20")
    assert main([str(ROOT / "params" / "small"), "--list", "--only", "02_clean/par_badnet_stripes_s0"]) == 0
    assert "classes = 20, not 200" in capsys.readouterr().out


def test_a_trigger_is_tested_as_it_was_planted():
    made = record(values={"trigger_options": {"size": 11}})
    asked = {"poisoned": made["run"]}
    assert planted_trigger(check("02_clean", asked), made) == Trigger("badnet_stripes", {"size": 11})
    assert planted_trigger(check("02_clean", asked | {"trigger_options": {"size": 4}}), made).options == {"size": 4}
    halved = record(values={"attacker": "places"})
    assert planted_trigger(check("02_clean", {"poisoned": halved["run"]}), halved).columns == ATTACKERS["places"].places[""]


# Disks


def test_unwritable_outputs_end_before_any_work(own_outputs):
    (own_outputs / "outputs").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"outputs/small/01_poison"):
        make(check("01_poison", {}))


def test_an_unwritable_cache_ends_before_any_work(own_outputs, monkeypatch):
    (own_outputs / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("PAR_CACHE", str(own_outputs / "cache"))
    with pytest.raises(OSError, match=r"cannot write .*/cache/"):
        make(check("01_poison", {}))


def test_a_full_disk_leaves_no_half_record(own_outputs, monkeypatch):
    made = small_records.result()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match=r"badnet_stripes_s0\.json.*No space left on device"):
        save(made)
    assert [path.name for path in (own_outputs / "outputs").rglob("*") if path.is_file()] == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def write():
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_digest_is_of_content():
    assert digest([1, "a"]) == digest([1, "a"]) != digest([1, "b"])
    assert digest(torch.zeros(2)) != digest(torch.zeros(2, 1)) != digest(torch.zeros(2, 1, dtype=torch.int32))


# The runner


@pytest.fixture
def published(own_outputs):
    """The published records as this machine's own."""
    (own_outputs / "outputs").mkdir(exist_ok=True)
    shutil.copytree(REFERENCE, outputs("small"), ignore=shutil.ignore_patterns("*.png", "*.svg", "04_*"))


def _listed(capsys, *arguments: str) -> dict[str, str]:
    assert main([str(ROOT / "params" / "small"), "--list", *arguments]) == 0
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


def test_the_list_says_what_a_raised_version_makes_stale(published, monkeypatch, capsys):
    before = _listed(capsys)
    assert not [why for why in before.values() if why.startswith("stale")]
    monkeypatch.setitem(STAGES, "method/par", 2)
    after = _listed(capsys)
    changed = {run: why for run, why in after.items() if why != before[run]}
    assert set(changed.values()) == {"stale: method/par 1 -> 2"}
    resistant = {run for run in before if run.startswith("01_poison/resistant")}  # its pattern is learned against PAR
    of_par = {run for run, why in before.items() if run.startswith("02_clean/par_") and why != "missing"}
    assert of_par | resistant <= set(changed)
    assert not [run for run in set(changed) - of_par - resistant if run.startswith(("01", "02"))]
    assert len(of_par) > 50


def test_what_builds_on_a_changed_run_is_stale(published, monkeypatch, capsys):
    run = "01_poison/blended_text_s2"
    held = read("small", run)
    weights = held["artifacts"]["weights"] | {"sha256": "0" * 64}
    _rewrite(run, artifacts=held["artifacts"] | {"weights": weights})
    stale = {run for run, why in _listed(capsys).items() if why == "stale: inputs.poisoned"}
    assert stale == {f"02_clean/{method}_blended_text_s2" for method in ("finetune", "cleanclip", "roclip", "par")}


def test_help_answers_at_once():
    command = [sys.executable, "-X", "importtime", "-m", "parlib.run", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--functions" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "pydantic", "yaml", "matplotlib"}


def test_a_pipe_that_closes_early_ends_the_list_quietly():
    command = f"{sys.executable} -m parlib.run params/smoke --list | true; exit ${{PIPESTATUS[0]}}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # it would flush line by line
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_notebooks_are_not_run_several_at_once(capsys):
    assert main([str(ROOT / "params" / "smoke"), "--jobs", "2"]) == 1
    assert "--functions" in capsys.readouterr().err


def test_notebooks_are_prepared_with_their_parameters_and_not_run(tmp_path):
    asked = ["02_clean/par_badnet_stripes_s0", "05_evaluate"]
    assert main([str(ROOT / "params" / "smoke"), "--prepare", str(tmp_path / "made"), "--only", *asked]) == 0
    made = sorted((tmp_path / "made").iterdir())
    assert [path.name for path in made] == [
        "00_01_poison_badnet_stripes_s0.ipynb",
        "01_02_clean_par_badnet_stripes_s0.ipynb",
        "02_05_evaluate.ipynb",
    ]
    (injected,) = (cell for cell in nbformat.read(made[1], 4).cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert {'scale = "smoke"', 'method = "par"', 'trigger = "badnet_stripes"'} <= set(injected.source.splitlines())
    assert not outputs("smoke").exists()


def test_views_are_drawn_by_notebooks_alone(capsys, monkeypatch):
    monkeypatch.setattr("parlib.cli.make.show", lambda runs: None)
    assert main([str(ROOT / "params" / "smoke"), "--functions", "--only", "05_evaluate"]) == 0
    assert "05_evaluate: view" in capsys.readouterr().out


def test_a_second_runner_refuses_and_a_dead_one_frees(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import time; from pathlib import Path; from parlib.cache import lock\n"
        f"with lock(Path({str(path)!r}), wait=False, doing='a run'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RuntimeError, match=rf"process {holder.pid} \(a run\)"), lock(path, wait=False, doing="me"):
        pass
    holder.kill()
    holder.wait()
    with lock(path, wait=False, doing="me"):
        assert f"process {os.getpid()} (me)" in path.read_text()


def test_the_runner_refuses_beside_another(capsys):
    with lock(outputs("smoke") / ".lock", wait=False, doing="the first"):
        assert main([str(ROOT / "params" / "smoke")]) == 1
    assert "(the first)" in capsys.readouterr().err


def test_what_a_run_meets_is_one_line_and_its_records_stay(capsys, monkeypatch):
    record(values={"scale": "smoke"})
    monkeypatch.setitem(STAGES, "loop", 2)

    def fail(params):
        raise FloatingPointError("the loss is nan at step 3")

    monkeypatch.setattr("parlib.experiments.registry.make", fail)
    asked = [str(ROOT / "params" / "smoke"), "--functions", "--only", POISONED]
    assert main(asked) == 1
    told = capsys.readouterr()
    assert "stale: loop 1 -> 2" in told.out
    assert told.err.splitlines() == ["error: the loss is nan at step 3"]
    assert read("smoke", POISONED)["identity"]["stages"]["loop"] == 1


# Time


def test_a_run_that_was_never_made_is_timed_by_those_like_it(tmp_path, monkeypatch):
    monkeypatch.setattr("parlib.cli.make.REFERENCE", tmp_path / "none")
    record()
    record("02_clean")
    asked = [{}, {"seed": 1}, {"epochs": 8}, {"method": "roclip"}]
    planned = [Planned(values, check("02_clean", values)) for values in asked]
    assert list(expected_seconds(planned).values()) == [16.5, 16.5, 18.0, None]


def test_a_scale_that_was_never_run_is_not_timed_by_the_published_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PAR_CACHE", str(tmp_path / "empty"))  # the published base isn't there either
    runs = [run for run in plan(ROOT / "params" / "smoke") if not run.view]
    assert set(expected_seconds(runs).values()) == {None}


# Surroundings


def test_an_empty_cache_name_is_the_usual_folder_and_a_relative_one_is_refused(monkeypatch, capsys):
    monkeypatch.delenv("PAR_CACHE")
    usual = cache_dir()
    monkeypatch.setenv("PAR_CACHE", "")
    assert cache_dir() == usual
    monkeypatch.setenv("PAR_CACHE", "some/cache")
    with pytest.raises(ValueError, match="PAR_CACHE.*'some/cache'"):
        cache_dir()
    assert main([str(ROOT / "params" / "smoke"), "--list"]) == 1
    assert "'some/cache'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [lambda: main(["params/smoke"]), lambda: export.main([POISONED]), lambda: verify.main([])])
def test_an_installation_without_the_repository_says_so_in_a_line(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr("parlib.cache.ROOT", tmp_path / "site-packages")
    assert command() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in ("site-packages", "pip install -e ."))


def test_ray_works_in_a_folder_that_its_sockets_can_name(monkeypatch):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert _short_folder() == Path("/tmp")
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert _short_folder() == Path("/var/tmp")
    monkeypatch.setenv("TMPDIR", "/scratch/" + 60 * "x")
    assert _short_folder() == Path("/tmp")
