"""What a result is: a new default makes nothing stale, a raised version just what uses it, code nothing; and no two runs share an id."""

import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from math import nextafter
from typing import Any

import pytest
from pydantic import Field

from parlib.attack.triggers import LEARNED, TRIGGERS, options_of
from parlib.cache import ROOT, digest
from parlib.experiments.clean_params import Clean
from parlib.experiments.params import Params
from parlib.experiments.poison import Poison
from parlib.experiments.synthetic import Synthetic
from parlib.experiments.trials import Sweep
from parlib.method.methods import METHODS, Recipe, cleaners
from parlib.records.identity import differences, environment, identity
from parlib.records.status import stale
from parlib.stages import ENVIRONMENT, STAGES
from parlib.train import cached

POISONED = {"run": "01_poison/badnet_stripes_s0", "artifacts": {"weights": {"sha256": "5" * 64}}}
RUNS = [
    Poison.check({}),
    Poison.check({"trigger": "badclip"}),
    Clean.check({}),
    Clean.check({"method": "finetune"}),
    Clean.check({"method": "cleanclip", "data": "outline"}),
    Clean.check({"trigger": "wanet", "tests": ["sig"]}),
]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Every cleaning starts from one poisoned model."""
    monkeypatch.setattr(Clean, "poisoning", lambda self: POISONED)


def test_a_new_parameter_with_a_neutral_default_makes_nothing_stale():
    class More(Clean):
        momentum: float = Field(0.0, ge=0)

    for values in ({}, {"tau": 3.0, "tests": ["sig"]}, {"scale": "smoke"}):
        assert More.check(values).identity() == Clean.check(values).identity()
        assert More.check(values).id == Clean.check(values).id
    changed = More.check({"momentum": 0.5})
    assert changed.id != Clean.check({}).id
    assert differences(Clean.check({}).identity(), changed.identity()) == ["momentum default -> 0.5"]


def test_a_new_option_of_a_recipe_with_a_neutral_default_trains_nothing_again(clip, scenes, monkeypatch):
    @dataclass(frozen=True)
    class More(Recipe):
        momentum: float = 0.0

    def made(recipe: Recipe) -> dict[str, Any]:
        return cached.training_identity(clip, feed, recipe, reference=clip, watch=None)

    feed, given = scenes.feed(clip), ("par", 2, 40, 1e-3, 3)
    before = made(Recipe(*given, tau=2.15))
    monkeypatch.setattr(cached, "Recipe", More)
    assert made(More(*given, tau=2.15)) == before
    assert differences(before, made(More(*given, tau=2.15, momentum=0.5))) == ["momentum default -> 0.5"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_raised_version_makes_stale_just_the_runs_that_use_it(stage, monkeypatch):
    before = [run.identity() for run in RUNS]
    monkeypatch.setitem(STAGES, stage, STAGES[stage] + 1)
    told = [f"{stage} {STAGES[stage] - 1} -> {STAGES[stage]}"]
    assert [differences(made, run.identity()) for made, run in zip(before, RUNS, strict=True)] == [
        told if stage in run.stages() else [] for run in RUNS
    ]


def test_stages_are_those_of_what_a_run_computes():
    assert Clean.check({}).identity()["stages"].keys() == {"loop", "method/par", "trigger/badnet_stripes", "scenes", "metrics"}
    assert {"synthetic/outline", "method/cleanclip"} <= set(RUNS[4].stages())
    assert {"trigger/wanet", "trigger/sig"} <= set(RUNS[5].stages())
    assert {"learned", "trigger/badclip", "poison", "method/contrast"} <= set(RUNS[1].stages())
    for method in METHODS:
        assert f"method/{method}" in STAGES
    for trigger in TRIGGERS:
        assert f"trigger/{trigger}" in STAGES
    with pytest.raises(KeyError, match="method/pare"):
        identity(params={}, inputs={}, stages=["method/pare"])


def test_what_differs_is_told_by_name(monkeypatch):
    made, run = Clean.check({}).identity(), Clean.check({"tau": 3.0, "tests": ["wanet"]})
    told = differences(made, run.identity())
    assert any(re.search("tau.*3.0", one) for one in told)
    assert any(re.search("tests.*wanet", one) for one in told)
    monkeypatch.setitem(POISONED["artifacts"]["weights"], "sha256", "6" * 64)
    assert differences(made, Clean.check({}).identity()) == ["inputs.poisoned"]
    monkeypatch.setitem(STAGES, "method/par", 2)
    record = {"identity": made}
    assert all(name in stale(record, Clean.check({})) for name in ("inputs.poisoned", "method/par 1 -> 2"))
    other = made | {"environment": made["environment"] | {"torch": "1.0.0"}}
    assert any("torch" in one for one in differences(other, Clean.check({}).identity()))


def test_the_environment_is_versions_without_a_local_suffix():
    assert set(environment()) == set(ENVIRONMENT)
    assert all(re.fullmatch(r"\d+(\.\d+){0,2}", version) for version in environment().values())


def test_where_a_run_is_kept_shown_and_computed_is_no_part_of_its_identity():
    plain = Clean.check({})
    for values in ({"experiment": "ablations"}, {"compute": {"ray_address": "auto"}}):
        assert Clean.check(values).identity() == plain.identity()
        assert Clean.check(values).id == plain.id
    labelled = Clean.check({"label": "mine-2"})
    assert (labelled.identity(), labelled.id) == (plain.identity(), "02_clean/mine-2")


_DIGEST = """
import sys
from parlib.cache import digest
from parlib.experiments.clean_params import Clean
Clean.poisoning = lambda self: {"run": "01_poison/badnet_stripes_s0", "artifacts": {"weights": {"sha256": "5" * 64}}}
print(Clean.__module__, sys.modules["parlib"].__file__)
print(digest(Clean.check({}).identity()))
"""


def test_code_is_no_part_of_an_identity(tmp_path):
    """Every file of the package gets a function more, and a figure's function another name."""
    shutil.copytree(ROOT / "parlib", tmp_path / "parlib", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (tmp_path / "parlib").rglob("*.py"):
        text = re.sub(r"^def (\w+)", r"def renamed_\1", path.read_text(), flags=re.M) if path.parent.name == "report" else path.read_text()
        path.write_text(f"{text}\n\ndef _one_more():\n    return 1\n")
    done = subprocess.run([sys.executable, "-c", _DIGEST], cwd=tmp_path, capture_output=True, text=True, check=True)
    *_, where, found = done.stdout.splitlines()
    assert str(tmp_path) in where
    assert found == digest(Clean.check({}).identity())


# Values that are easily taken for one another, by parameter.
_NAMES = ["cc3m:data/cc3m", "cc3m:data/cc3m_", "cc3m:data/cc 3m", "csv:é", "csv:e\u0301", "csv:A", "csv:a", "csv:a/", "csv:a-b", "csv:a_b"]
_FLOATS = [2.15, nextafter(2.15, 3), 2.1500001, 2.149999999, 0.1, 1, 1.0, 1e-5, 1.0000001e-5, 1e-05, nextafter(1.0, 2), 0.003, 3e-3]
_SHARES = [value for value in _FLOATS if value <= 1]
_COMPUTE = [{}, {"chunk": 1}, {"chunk": 11}, {"workers": 1}, {"workers": 11}, {"device": "cuda"}, {"precision": "bf16"}, {"compiled": True}]
_COMMON = {
    "scale": ["small", "small", "paper", "smoke"],
    "seed": [0, 1, 11],
    "encoder": ["small_resnet", "small_vit", "ViT-B-32", "RN50"],
    "trigger": list(TRIGGERS),
    "attack": ["dirty_label", "label_consistent"],
    "planted": ["finetuning", "pretraining"],
    "attacker": ["plain", "flat", "offset", "rare"],
    "base_epochs": [1, 11],
    "target": ["banana", "snake", "rat", "red apple", "banana ", "Banana", "s0", "香蕉" * 80],
    "split": ["test", "validation"],
    "classes": [200, 20, 2],
    "eval_scenes": [2000, 200, 20],
    "evaluation": ["", "imagenet:data/imagenet", "imagenet:data/imagenet ", "imagenet:data", "folder:data"],
    "retrieval": ["", *_NAMES],
    "resize": ["own", "squash"],
    "templates": [80, 8, 1],
    "max_skipped": _SHARES,
    "normalised": [True, False],
    "compute": _COMPUTE,
    "batch": [128, 12, 28],
    "epochs": [1, 2, 12],
    "lr": _FLOATS,
}
_VALUES = {
    Poison: _COMMON
    | {
        "rate": _SHARES,
        "base": ["", "openai", "OpenAI", "open ai", "open_ai", "hf-hub:a", "hf-hub_a", "epochs5", "laion2b_s34b_b79k", "", ""],
        "data": ["scenes", *_NAMES],
        "train_scenes": [24000, 2400, 24],
        "base_batch": [128, 28],
        "base_lr": _FLOATS,
        "base_seed": [1, 11],
    },
    Clean: _COMMON
    | {
        "poisoned": ["", "01_poison/a_s0", "01_poison/a_s01", "local-dir:a", "local-dir:a_b", "local-dir:a/b", "file:a.pt", "a", "A"],
        "data": ["scenes", "flat", "outline", *_NAMES],
        "pairs": [12000, 1200, 120],
        "coverage": [1.0, 0.5, nextafter(0.5, 1)],
        "steps": [1, 36, 360],
        "tests": [[], ["sig"], ["sig", "wanet"], ["wanet", "sig"], [name for name in TRIGGERS if name not in LEARNED] * 3],
        "method": cleaners(),
        "tau": _FLOATS,
        "self_weight": _FLOATS,
        "rho": _FLOATS,
        "alpha": _FLOATS,
        "coefficient": _FLOATS,
        "inverted": ["", "10_inspect/a_s0", "10_inspect/a_s01", "a.safetensors", "b/a.safetensors"],
        "interpolation": [0.0, 0.5, nextafter(0.5, 1)],
        "refresh": [False, True],
        "pool": _SHARES,
        "varied": _SHARES,
        "wordnet": [""],
        "schedule": ["paper", "cosine", "warmup_cosine"],
        "batch_norm": ["frozen", "train"],
    },
}


def _drawn(kind: type[Params], draw: random.Random) -> dict:
    """Values of a run; most of its parameters stay at their defaults."""
    few = draw.choice([1, 1, 2, 3, 5, 12])
    values = {name: draw.choice(_VALUES[kind][name]) for name in draw.sample(list(_VALUES[kind]), few)}
    options = options_of(values.get("trigger", "badnet_stripes"))
    if draw.random() < 0.5:
        values["trigger_options"] = {name: draw.choice([4, 6, 11, 1, *_FLOATS]) for name in options if draw.random() < 0.7}
    if values.get("encoder", "small") not in ("small", "small_resnet", "small_vit") or draw.random() < 0.2:
        values |= {"data": draw.choice(_NAMES), "evaluation": draw.choice(_COMMON["evaluation"])}
        values |= {"base": "openai"} if kind is Poison else {}
    return values


@pytest.mark.parametrize("kind", [Poison, Clean])
def test_no_two_different_runs_share_an_id(kind):
    draw, seen, refused = random.Random(0), {}, 0
    for _ in range(2000):
        values = _drawn(kind, draw)
        try:
            run = kind.check(values)
        except ValueError:
            refused += 1
            continue
        before, first = seen.setdefault((run.scale, run.id), (run.asked(), values))
        assert run.asked() == before, f"{run.id} is both {first} and {values}"
        assert re.fullmatch(rf"{kind.notebook}/[\w.-]+", run.id)
        assert len(run.id.encode()) <= 170, values  # of the 255 bytes of a file's name
    assert refused < 1000
    assert len(seen) > 500


@pytest.mark.parametrize("kind", [Poison, Clean])
def test_each_parameter_alone_makes_another_id(kind):
    usual = {"data": "csv:a", "evaluation": "imagenet:a"} | ({"base": "openai"} if kind is Poison else {"poisoned": "local-dir:a"})
    for name in set(kind.model_fields) - {"scale", "experiment", "label", "trigger_options"}:
        method = next((method for method, one in METHODS.items() if name in one.options or (name == "inverted" and one.stamps)), "par")
        one = usual | ({} if kind is Poison else {"method": method})
        for value in _VALUES[kind][name]:
            try:
                run, other = kind.check(one), kind.check(one | {name: value})
            except ValueError:
                continue
            assert (run.id == other.id) is (run.asked() == other.asked()), (name, value)


@pytest.mark.parametrize("kind", [Sweep, Synthetic])
def test_an_id_that_is_shortened_is_of_one_run_alone(kind):
    """Whatever comes last, and however long a name is; what is short stays whole."""
    many = {"evaluation": "imagenet:a", "split": "validation", "target": "banana", "max_skipped": 0.5, "templates": 3, "classes": 20}
    many |= {
        "eval_scenes": 50,
        "epochs": 9,
        "pairs": 100,
        "coverage": 1.0,
        "steps": 5,
        "cpus": 2,
        "gpus": 0.5,
        "trigger": "blended_triangles",
    }
    runs = [kind.check(many | {"attack": "label_consistent", "base_epochs": 3, "steps": steps}) for steps in range(1, 40)]
    ids = {run.id for run in runs}
    assert len(ids) == len(runs)
    assert all(len(run.id.encode()) <= 170 for run in runs)
    if kind is Sweep:
        named = [kind.check({"name": 300 * "a" + end}) for end in ("a", "b")]
        assert len({run.id for run in named}) == 2
        assert all(len(run.id) <= 170 for run in named)
        assert re.search("_[0-9a-f]{8}$", named[0].id)


def test_runs_of_a_large_encoder_have_ids():
    external = {"data": "csv:a", "evaluation": "imagenet:a", "encoder": "ViT-B-32"}
    assert "ViT-B-32" in Poison.check(external | {"base": "openai"}).id
    assert "ViT-B-32" in Clean.check(external | {"poisoned": "local-dir:a"}).id


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (Clean, {"tau": 2.15}, {"tau": nextafter(2.15, 3)}),
        (Clean, {"tests": ["sig", "wanet"]}, {"tests": ["wanet", "sig"]}),
        (Clean, {"poisoned": "01_poison/a_b"}, {"poisoned": "01_poison/a/b"}),
        (Clean, {"poisoned": "01_poison/a"}, {"poisoned": digest("01_poison/a")[:8]}),  # a text that is another one's digest
        (Poison, {"trigger": "wanet", "trigger_options": {"s": 1.0}}, {"trigger": "wanet", "seed": 1}),
        (Poison, {"trigger_options": {"size": 8}}, {"trigger_options": {"size": 18}}),
        (Poison, {"base": "openai"}, {"base": "OpenAI"}),
    ],
)
def test_runs_that_are_nearly_the_same_have_ids_of_their_own(kind, one, other):
    assert kind.check(one).id != kind.check(other).id


@pytest.mark.parametrize("value", ["8", 8.5, True, None, [8]])
def test_an_option_of_another_type_is_refused(value):
    """Else 8 and "8" were one id and two runs."""
    with pytest.raises(ValueError, match="size|trigger_options"):
        Poison.check({"trigger_options": {"size": value}})
