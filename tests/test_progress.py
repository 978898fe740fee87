"""Progress: whole lines in a log, a bar on a terminal, one output that changes in a notebook."""

import os
import subprocess
import sys

import pytest

from parlib import progress as module
from parlib.cache import ROOT
from parlib.progress import progress


@pytest.fixture
def at_once(monkeypatch):
    """Every step is shown."""
    monkeypatch.setattr(module, "_EVERY", dict.fromkeys(module._EVERY, 0.0))


def _all(title: str = "cleaning", **options) -> None:
    bar = progress(range(3), title, unit="steps", **options)
    for i in bar:
        bar.set_postfix({"loss": i}, refresh=False)


def test_lines_are_whole_lines(at_once, monkeypatch, capsys):
    monkeypatch.setenv("PAR_PROGRESS", "lines")
    print("before")
    _all()
    print("after")
    shown = capsys.readouterr().out
    assert "\r" not in shown
    first, *lines, last = shown.splitlines()
    assert (first, last) == ("before", "after")
    assert len(lines) == 2  # neither the first state nor the last
    assert all("cleaning" in line and "/3" in line for line in lines)
    assert "loss" in lines[-1]


def test_a_bar_is_drawn_in_one_line_and_leaves_nothing(at_once, monkeypatch, capsys):
    monkeypatch.setenv("PAR_PROGRESS", "bar")
    _all()
    shown = capsys.readouterr().out
    assert "\r" in shown
    assert "\n" not in shown
    assert shown.rsplit("\r", 1)[-1].strip() == ""


def test_a_notebook_s_output_changes_and_ends_with_how_long_it_took(at_once, monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            shown[-1].append(data["text/plain"])

    def display(data, raw, display_id):
        shown.append([data["text/plain"]])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setenv("PAR_PROGRESS", "display")
    _all()
    ((*states, last),) = shown  # one output
    assert "0/3" in states[0]
    assert "3/3" in states[-1]
    assert last.startswith("cleaning: 3 steps in ")
    _all("poisoning")
    assert len(shown) == 2


@pytest.mark.parametrize("how", ["bar", "lines", "display"])
def test_what_is_not_to_be_shown_is_not(at_once, monkeypatch, capsys, how):
    monkeypatch.setenv("PAR_PROGRESS", how)
    _all(shown=False)
    assert capsys.readouterr().out == ""


def test_a_log_that_is_redirected_gets_lines_and_an_unknown_way_is_named():
    code = "from parlib import progress as p; p._EVERY['lines'] = 0.0; list(p.progress(range(3), 'cleaning'))"
    environment = {name: value for name, value in os.environ.items() if name != "PAR_PROGRESS"}
    for further, error in (({}, ""), ({"PAR_PROGRESS": "baar"}, "baar")):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment | further, capture_output=True, text=True)
        assert error in done.stderr
        assert bool(done.stderr) == bool(error)
        assert "\r" not in done.stdout
        assert done.stdout.count("\n") == done.stdout.count("cleaning") == (0 if error else 2)
