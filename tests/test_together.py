"""Several runs at once: in which order, how long on so many workers, and what a second runner on the same machine does."""

import os
import platform

import pytest
from faults import other_process

from parlib.cache import ROOT, cache_dir
from parlib.cli.plan import needs_of, plan
from parlib.cli.run import main
from parlib.cli.together import _gpu_share, cpus, make_together
from parlib.experiments.registry import check
from parlib.records.store import REFERENCE, read_all
from parlib.report import numbers
from parlib.report.schedule import Task, chains, summary, tasks, wall

# A base of 2 s, two poisoned models of 3 and 1 s on it, and a cleaning of 4 s of the second; beside them one of 5 s that waits for nothing.
FEW = {
    "base": Task(2.0),
    "first": Task(3.0, frozenset({"base"})),
    "second": Task(1.0, frozenset({"base"})),
    "cleaned": Task(4.0, frozenset({"second"})),
    "alone": Task(5.0),
}


def test_the_longest_chain_comes_first_and_nothing_before_what_it_builds_on():
    assert chains(FEW) == {"base": 7.0, "first": 3.0, "second": 5.0, "cleaned": 4.0, "alone": 5.0}
    assert [wall(FEW, workers) for workers in (1, 2, 3, 9)] == [15.0, 8.0, 7.0, 7.0]
    assert [row["times"] for row in summary(FEW, (1, 3))] == [1.0, 15 / 7]


def test_the_published_schedule_is_of_every_training_once():
    found = tasks(read_all(REFERENCE))
    trainings = numbers.trainings()
    assert set(found) >= set(trainings["weights"].dropna())
    hours = [row["hours"] for row in summary(found)]
    assert hours[0] == pytest.approx(sum(task.seconds for task in found.values()) / 3600)
    assert hours == sorted(hours, reverse=True)
    assert hours[-1] >= numbers.longest_chain() - 1e-9


def test_runs_wait_for_those_that_they_build_on():
    runs = [run for run in plan(ROOT / "params" / "smoke") if not run.view]
    needs = needs_of(runs)
    assert needs["01_poison/badnet_stripes_s0"] == set()
    assert needs["02_clean/par_badnet_stripes_s0"] == {"01_poison/badnet_stripes_s0"}
    assert needs["03_tau_sweep/grid_badnet_stripes_s0"] == {"01_poison/badnet_stripes_s0"}


def test_the_schedule_of_a_folder_is_printed_and_nothing_is_made(capsys):
    assert main([str(ROOT / "params" / "small" / "scarce.yaml"), "--schedule"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("5 trainings")  # the base, the poisoned model and three that are cleaned
    assert [line.split()[0] for line in lines[1:-1]] == ["1", "2", "4", "8", "16", "32"]


def test_a_cluster_wants_a_number_of_threads(own_outputs):
    with pytest.raises(ValueError, match="--threads"):
        make_together([], address="auto")


@pytest.mark.parametrize(
    ("compute", "at_once", "gpus", "share"),
    [
        ({"device": "cuda"}, 12, 1, 1 / 12),
        ({"device": "cuda"}, 3, 2, 1 / 2),
        ({"device": "cuda"}, 2, 8, 1),
        ({"device": "cuda"}, 2, 0, 0),
        ({"device": "cuda", "processes": 2}, 2, 2, 0),
        ({}, 2, 2, 0),
    ],
)
def test_runs_spread_over_the_gpus(compute, at_once, gpus, share):
    assert _gpu_share(check("02_clean", {"scale": "smoke", "compute": compute, "batch_norm": "frozen"}), at_once, gpus) == share


def test_a_second_runner_waits_for_the_cpus_and_says_for_whom(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with other_process(lambda: cpus(1, "a first")) as (process, _):
        with cpus(1, "a second"):
            assert capsys.readouterr().out == ""  # there is one left for it
        monkeypatch.setattr("time.sleep", lambda seconds: (process.kill(), process.join()))
        with cpus(8, "a third"):
            held = sorted(path.name for path in (cache_dir() / "cpus" / platform.node()).iterdir())
    assert held == ["0.lock", "1.lock"]
    assert f"process {process.pid} (a first)" in capsys.readouterr().out
    assert not list((cache_dir() / "cpus" / platform.node()).iterdir())
