"""Parameters: one source of defaults, clear errors, run ids."""

import ast
from typing import Literal

import nbformat
import pytest
import yaml

from parlib.cache import ROOT
from parlib.train.compute import Compute
from parlib.experiments.ids import run_id, scale_defaults
from parlib.records.status import notebook_path
from parlib.method.methods import ABLATIONS, METHODS
from parlib.experiments.params import NOTEBOOKS, check, literals
from parlib.experiments.presets import TUNED, TUNED_FOR, preset

FILES = sorted((ROOT / "params").glob("*/*.yaml"))


def _parameter_cell(notebook: str) -> str:
    cells = nbformat.read(notebook_path(notebook), 4).cells
    return next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_parameter_cell_repeats_names_types_defaults_and_help(notebook):
    source = _parameter_cell(notebook)
    nodes, lines = ast.parse(source).body, source.splitlines()
    fields = NOTEBOOKS[notebook].model_fields
    assert [node.target.id for node in nodes] == list(fields)
    for node, line in zip(nodes, lines, strict=True):
        field = fields[node.target.id]
        kind = getattr(field.annotation, "__origin__", field.annotation)
        names = {Compute: "dict", Literal: "str"}
        assert node.annotation.id == (names.get(kind) or kind.__name__)
        value = ast.literal_eval(node.value)
        assert (type(field.default)(**value) if isinstance(value, dict) else value) == field.default
        assert line.partition("  # ")[2] == field.description


def test_int_for_a_float_and_tuned_values():
    clean = check("02_clean", {"tau": 2})
    assert clean.tau == 2.0
    assert clean.lr == TUNED["par"]["lr"]
    assert check("02_clean", {"lr": 1e-6}).lr == 1e-6
    assert check("01_poison", {}).patch == preset("badnet_stripes")["patch"]


def test_an_encoder_has_learning_rates_of_its_own(monkeypatch):
    monkeypatch.setitem(TUNED_FOR, "small_vit", {"finetune": {"lr": 3e-4}})
    monkeypatch.setitem(METHODS, "finetune_twice", METHODS["finetune"])
    own = check("02_clean", {"method": "finetune", "encoder": "small_vit"})
    assert {"lr": own.lr, "batch": own.batch, "schedule": own.schedule} == TUNED["finetune"] | {"lr": 3e-4}
    assert check("02_clean", {"method": "finetune_twice", "encoder": "small_vit"}).lr == 3e-4
    assert check("02_clean", {"method": "finetune", "encoder": "small_vit", "lr": 1e-5}).lr == 1e-5
    assert check("02_clean", {"method": "par", "encoder": "small_vit"}).lr == TUNED["par"]["lr"]
    assert check("02_clean", {"method": "finetune"}).lr == TUNED["finetune"]["lr"]


@pytest.mark.parametrize(
    ("notebook", "values", "message"),
    [
        ("02_clean", {"tua": 2.0}, "unknown parameter 'tua', did you mean 'tau'. allowed are: scale, seed, encoder"),
        ("02_clean", {"tau": "2.15"}, "tau = '2.15': input should be a valid number"),
        ("02_clean", {"lr": "1e-5"}, "in YAML write 1.0e-5, not 1e-5"),
        ("02_clean", {"tau": [1.0, 2.0]}, "a list of values is for python -m parlib.cli.run"),
        ("02_clean", {"tau": 5}, "tau = 5: input should be less than or equal to 4"),
        ("02_clean", {"epochs": True}, "epochs = True: input should be a valid integer"),
        ("02_clean", {"method": "pare"}, "unknown method 'pare', did you mean 'par'. known are: finetune, cleanclip, roclip, par"),
        ("02_clean", {"schedule": "linear"}, "schedule = 'linear': input should be 'tuned', 'paper', 'cosine' or 'warmup_cosine'"),
        ("01_poison", {"trigger": "stripes"}, "unknown trigger 'stripes'.* known are: badnet, badnet_stripes"),
        ("01_poison", {"encoder": "small_resent"}, "unknown encoder 'small_resent', did you mean 'small_resnet'"),
        ("01_poison", {"encoder": "RN50"}, "encoder 'RN50' takes images of 224 px; the embedded scenes are of 64 px"),
        ("01_poison", {"target": "bananna"}, "unknown class 'bananna', did you mean 'banana'"),
        ("01_poison", {"rate": -0.1}, "rate = -0.1: input should be greater than or equal to 0"),
        ("02_clean", {"compute": {"precison": "bf16"}}, "unknown parameter 'compute.precison', did you mean 'precision'?"),
        ("02_clean", {"compute": {"precision": "bf8"}}, "compute.precision = 'bf8': input should be 'float32', 'bf16' or 'fp16'"),
        ("02_clean", {"compute": {"chunk": 8}}, "set batch_norm to frozen, or chunk to 0"),
        ("02_clean", {"compute": {"processes": 3}}, "a batch of 128 can't be shared out evenly to 3 processes"),
        ("02_clean", {"normalised": False}, "normalised = False is for a checkpoint of others: name it"),
        ("02_clean", {"retrieval": "coco:data/coco"}, "retrieval comes beside evaluation"),
        ("02_clean", {"evaluation": "cc3m:data/cc3m"}, "cc3m holds captions, not labels"),
        ("02_clean", {"tests": ["bagnet"]}, "unknown trigger 'bagnet', did you mean 'badnet'?"),
        ("02_clean", {"tests": ["badclip"]}, "badclip's pattern is learned: it can be tested as the trigger of a run"),
        ("02_clean", {"trigger": "resistant", "poisoned": "local-dir:x"}, "resistant's pattern is learned"),
        ("01_poison", {"data": "cc3m:data/cc3m"}, "wants a base, such as openai"),
        ("01_poison", {"rate": 1.5}, "rate = 1.5: input should be less than or equal to 1"),
    ],
)
def test_one_clear_line(notebook, values, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(notebook, values)
    assert "\n" not in str(caught.value)


def test_a_method_of_one_s_own_can_be_asked_for(monkeypatch):
    monkeypatch.setitem(METHODS, "finetune_twice", METHODS["finetune"])
    assert check("02_clean", {"method": "finetune_twice"}).lr == TUNED["finetune"]["lr"]
    with pytest.raises(ValueError, match="unknown method 'contrast'"):
        check("02_clean", {"method": "contrast"})


def test_a_trigger_without_a_preset_is_named():
    with pytest.raises(ValueError, match="'stripes' has no preset at 224 px; those that have one are: badnet"):
        preset("stripes", size=224)


def test_a_preset_grows_with_the_image_where_it_is_a_length():
    sizes = {name: preset(name, size=288)["patch"] for name in ("badnet", "wanet", "wanet_smooth")}
    assert sizes == {"badnet": 21, "wanet": 288, "wanet_smooth": 4}  # 16 px of 224, one offset a pixel, 4 x 4 offsets


def test_literals_are_parameters_and_misspelt_ones():
    names = {"tau": 1.0, "tua": 2.0, "_": 1, "print": print, "records": [1], "found": {}, "lr": [1]}
    names |= {"TAU": 1.0, "uat": None}
    assert literals("02_clean", names) == {"tau": 1.0, "tua": 2.0, "lr": [1], "TAU": 1.0, "uat": None}


def test_options_of_other_methods_are_0_and_out_of_the_id():
    found = check("02_clean", {"method": "cleanclip", "tau": 0.5, "self_weight": 0.7})
    assert (found.tau, found.self_weight, found.pool) == (0.0, 0.7, 0.0)
    assert run_id("02_clean", found) == "02_clean/cleanclip_badnet_stripes_s0_self_weight0.7"
    assert check("02_clean", {"method": "finetune", "tau": 0.5}) == check("02_clean", {"method": "finetune"})
    assert check("02_clean", found.model_dump()) == found
    for method in ABLATIONS:
        ablation, par = (check("02_clean", {"method": name}) for name in (method, "par"))
        assert (ablation.lr, ablation.batch, ablation.schedule) == (par.lr, par.batch, par.schedule)


def test_an_encoder_brings_its_pretraining():
    resnet, vit = (check("01_poison", {"encoder": name}) for name in ("small_resnet", "small_vit"))
    assert (resnet.base_lr, resnet.lr) == (2e-3, 3e-3)
    assert vit.base_lr < resnet.base_lr
    assert run_id("01_poison", vit) == "01_poison/badnet_stripes_small_vit_s0"
    assert check("01_poison", {"encoder": "small_vit", "base_lr": 2e-3}).base_lr == 2e-3
    assert check("01_poison", vit.model_dump()) == vit


@pytest.mark.parametrize(
    ("values", "run"),
    [
        ({}, "02_clean/par_badnet_stripes_s0"),
        ({"trigger": "blended_text", "seed": 1, "tau": 3}, "02_clean/par_blended_text_s1_tau3"),
        ({"lr": TUNED["par"]["lr"]}, "02_clean/par_badnet_stripes_s0"),
        (
            {"lr": 1e-3, "method": "finetune", "split": "validation"},
            "02_clean/finetune_badnet_stripes_s0_splitvalidation_lr0.001",
        ),
        ({"encoder": "small_vit"}, "02_clean/par_badnet_stripes_small_vit_s0"),
        ({"scale": "smoke"} | scale_defaults("02_clean", "smoke"), "02_clean/par_badnet_stripes_s0"),
    ],
)
def test_run_ids(values, run):
    assert run_id("02_clean", check("02_clean", values)) == run


def test_a_checkpoint_path_has_a_short_safe_id():
    run = run_id("02_clean", check("02_clean", {"poisoned": "local-dir:/some/where"}))
    assert run.startswith("02_clean/par_badnet_stripes_s0_poisoned")
    assert run.count("/") == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_parameter_files_open_with_words_and_hold_parameters(path):
    text = path.read_text()
    assert text.startswith("# ")
    values = yaml.safe_load(text)
    assert values["scale"] == path.parent.name
    notebook = next(name for name in NOTEBOOKS if path.stem.startswith(name))
    assert set(values) <= set(NOTEBOOKS[notebook].model_fields)
    if path.parent.name == "small" and path.stem in NOTEBOOKS:  # small is what the notebooks' own defaults say
        defaults = {name: field.default for name, field in NOTEBOOKS[notebook].model_fields.items()}
        assert scale_defaults(notebook, "small").items() <= defaults.items()
