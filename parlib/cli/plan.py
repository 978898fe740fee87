"""From parameter files to runs. experiment: NAME, stored in each record; a block may name another. defaults: parameters of all blocks, as
far as their notebooks know them. extends: another file, whose defaults come first. runs: blocks of a notebook and its parameters; lists in
them are axes, one run for each combination.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, get_origin

import yaml

from parlib.attack.triggers import TRIGGERS
from parlib.cache import ROOT
from parlib.experiments.examined import CONTROLS
from parlib.experiments.params import Params
from parlib.experiments.registry import EXPERIMENTS, FUNCTIONS, check
from parlib.experiments.wording import known
from parlib.method.methods import METHODS
from parlib.records.status import state

REPRODUCED = ROOT / "params" / "small" / "scarce.yaml"  # what make reproduce runs
_KEYS = ("experiment", "extends", "defaults", "runs")


@dataclass(frozen=True)
class Planned:
    """A run to be made: values are what its notebook is told."""

    values: dict[str, Any]
    params: Params

    @cached_property
    def id(self) -> str:
        return self.params.id

    @cached_property
    def needs(self) -> list[Params]:
        """The runs of 01_poison that it starts from."""
        return self.params.needs()

    @cached_property
    def builds_on(self) -> set[str]:
        """The runs that its parameters name as what it, or a trial of it, builds on."""
        names = ("poisoned", "inverted", "cleaned")
        return {getattr(one, name, None) or "" for one in (self.params, *self.params.trials()) for name in names} - {""}

    @property
    def view(self) -> bool:
        """Whether it only reads records and draws."""
        return type(self.params) not in FUNCTIONS

    def state(self) -> str:
        """done, missing, or why it must be made again; a view is always drawn anew."""
        return "view" if self.view else state(self.params)


def plan(path: Path) -> list[Planned]:
    """All runs of a parameter file, or of all files in a folder, in the order in which they can be made. ValueError on a file that holds
    something else, a parameter that doesn't fit, and where a run is asked for twice in different ways.
    """
    if not path.exists():
        folders = ", ".join(f"params/{folder.name}" for folder in sorted((ROOT / "params").iterdir()))
        raise ValueError(f"{path} does not exist; the parameter folders are: {folders}")
    runs: dict[str, Planned] = {}
    for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
        for planned in _all_of(file):
            other = runs.setdefault(planned.id, planned)
            if other.params != planned.params:
                one = "; a label names one run: give each its own, or leave it out" if getattr(planned.params, "label", "") else ""
                raise ValueError(f"{file} asks for {planned.id} a second time, with other parameters or for another experiment{one}")
    if not runs:
        raise ValueError(f"{path} holds no runs")
    return _ordered(runs.values())


class _Loader(yaml.SafeLoader):
    """Plain values alone, and no name twice: YAML would take the last one, and runs would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        there = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in there:
                    raise ValueError(f"{key.value} stands there twice, the second time in line {key.start_mark.line + 1}")
                there.add(key.value)
        return super().construct_mapping(node, deep)


def _all_of(file: Path) -> list[Planned]:
    """A file's runs; errors name it."""
    try:
        return list(_runs(file))
    except ValueError as error:
        raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from None


def _runs(file: Path) -> Iterable[Planned]:
    content = _read(file)
    for block in content.get("runs") or []:
        if not isinstance(block, dict) or "notebook" not in block:
            raise ValueError(f"{file}: each block of runs names its notebook: {', '.join(EXPERIMENTS)}")
        notebook = known("notebook", block["notebook"], EXPERIMENTS)
        fields = EXPERIMENTS[notebook].model_fields
        values = {name: value for name, value in content["defaults"].items() if name in fields}
        values |= {"experiment": content.get("experiment", "")} | {name: value for name, value in block.items() if name != "notebook"}
        axes = {name: _axis(notebook, name, value) for name, value in values.items()}
        for choice in itertools.product(*axes.values()):
            chosen = dict(zip(axes, choice, strict=True))
            yield Planned(chosen, check(notebook, chosen))


def _read(file: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a file holds, with the defaults of the one that it extends."""
    text = ""
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.load(text, _Loader)
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text in UTF-8: it must be a parameter file in YAML") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML{_broken(text, error)}") from None
    except (ValueError, RecursionError, OverflowError) as error:  # of a date or number that is none, and of brackets without end
        raise ValueError(f"{file} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold {', '.join(_KEYS)}, not a {type(content).__name__}")
    for name in content:
        known(f"name in {file}", name, _KEYS)
    for name, kind in (("defaults", dict), ("runs", list)):
        if not isinstance(content.get(name) or kind(), kind):
            raise ValueError(f"{file}: {name} must be a {kind.__name__}, not a {type(content[name]).__name__}")
    shared = content.get("defaults") or {}
    for name in shared:  # a notebook takes those that it knows; one that none knows is misspelt
        known(f"parameter in {file}", name, sorted({field for kind in EXPERIMENTS.values() for field in kind.model_fields}))
    if extends := content.get("extends"):
        other = file.parent / str(extends)
        if not other.is_file() or other == file:
            raise ValueError(f"{file} extends {extends}, which is no other file beside it")
        if other in above:
            raise ValueError(f"{file} extends {extends}, which extends it in its turn")
        shared = _read(other, (*above, file))["defaults"] | shared
    return content | {"defaults": shared}


def _broken(text: str, error: yaml.YAMLError) -> str:
    """Where a parameter file stops being YAML, and what to look for there."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # a character that no YAML holds
        return ": it holds a character that can't be printed"
    lines = text.splitlines() or [""]
    line = lines[min(mark.line, len(lines) - 1)].strip()  # what was left open is noticed at the end
    return f" at line {mark.line + 1}, {line[:60]!r}: lines are 'name: value', indented by spaces; close quotes and brackets before it"


def _axis(notebook: str, name: str, value: Any) -> list[Any]:
    """The values of a parameter that stand in a file: a list is an axis of runs, of a parameter that is a list only a list of lists."""
    field = EXPERIMENTS[notebook].model_fields.get(name)
    takes_list = field is not None and get_origin(field.annotation) is list
    if not isinstance(value, list) or (takes_list and not (value and all(isinstance(item, list) for item in value))):
        return [value]
    if not value:
        raise ValueError(f"{notebook}: {name} is an axis of runs without a value; name one or more")
    return value


def choose(planned: list[Planned], only: list[str]) -> list[Planned]:
    """The runs of these ids: planned, or what a planned one builds on, or with a method, trigger, encoder and seed of their own.
    ValueError, naming near ones, on others.
    """
    by_id = {run.id: run for run in planned}
    if not by_id.keys() >= set(only):  # a second for all of params/small
        by_id = {run.id: run for run in with_needs(planned, planned)}
    for run in only:
        named = by_id.get(run) or _named(run, planned[0].params.scale)
        if named is None:
            near = get_close_matches(run, by_id, n=3, cutoff=0.3) or list(by_id)[:5]
            raise ValueError(f"no parameter file plans {run!r}; near it are: {', '.join(near)}")
        by_id[run] = named
    return [by_id[run] for run in only]


def _named(run: str, scale: str) -> Planned | None:
    """The run of an id that names method, trigger, attack, encoder and seed alone; None where it says more or something else."""
    notebook, _, name = run.partition("/")
    longest = sorted(TRIGGERS, key=len, reverse=True)  # badnet_stripes before badnet
    attacked = rf"(?P<trigger>{'|'.join(longest)})(?:_(?P<attack>label_consistent))?"
    found = re.fullmatch(rf"(?:(?P<method>{'|'.join([*METHODS, *CONTROLS])})_)?{attacked}(?:_(?P<encoder>.+))?_s(?P<seed>\d+)", name)
    if notebook not in EXPERIMENTS or found is None:
        return None
    values = {key: value for key, value in found.groupdict().items() if value is not None} | {"seed": int(found["seed"]), "scale": scale}
    try:
        params = check(notebook, values)
    except ValueError:
        return None
    return Planned(values, params) if params.id == run else None


def _ordered(runs: Iterable[Planned]) -> list[Planned]:
    """By notebook, but what is named as another's model or trigger, and what that needs, before it."""
    by_id, found = {run.id: run for run in runs}, {}

    def add(run: Planned, early: bool, above: tuple[str, ...] = ()) -> None:
        named = run.builds_on | ({need.id for need in run.needs} if early else set())
        for name in sorted(named & by_id.keys() - found.keys() - {run.id}):
            if name in above:
                raise ValueError(f"{name} and {run.id} build on each other: one of them must name another run")
            add(by_id[name], True, (*above, run.id))
        found[run.id] = run

    for run in sorted(by_id.values(), key=lambda planned: planned.params.notebook):
        if run.id not in found:
            add(run, False)
    return list(found.values())


def needs_of(runs: list[Planned]) -> dict[str, set[str]]:
    """Of each run the ids of those among the others that it builds on."""
    ids = {run.id for run in runs}
    return {run.id: ({need.id for need in run.needs} | run.builds_on) & ids - {run.id} for run in runs}


def with_needs(wanted: list[Planned], planned: list[Planned]) -> list[Planned]:
    """The wanted runs and those that they build on, in the order in which they can be made."""
    by_id = {run.id: run for run in planned}
    found: dict[str, Planned] = {}

    def add(run: Planned) -> None:
        if run.id in found:
            return
        found[run.id] = run
        for need in run.needs:
            add(by_id.get(need.id) or Planned(need.model_dump(exclude_unset=True), need))
        for name in sorted(run.builds_on & by_id.keys()):
            add(by_id[name])

    for run in wanted:
        add(run)
    return _ordered(found.values())
