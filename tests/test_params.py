"""Parameters: one source of defaults, one clear line for each way to go wrong, run ids."""

import numpy as np
import pytest

from parlib.attack.triggers import LEARNED, TRIGGERS, options_of
from parlib.experiments.presets import drawn_triggers, planting, scale_values, trigger_options, tuned
from parlib.experiments.registry import EXPERIMENTS, check
from parlib.method.methods import METHODS


@pytest.mark.parametrize(
    ("notebook", "values", "named"),
    [
        ("02_clean", {"tua": 2.0}, "'tua'.*'tau'.*scale.*seed.*encoder"),
        ("02_clean", {"tau": "2.15"}, "tau.*'2.15'"),
        ("02_clean", {"lr": "1e-5"}, "lr.*1.0e-5"),
        ("02_clean", {"tau": [1.0, 2.0]}, r"tau.*parlib\.run"),
        ("02_clean", {"tau": 5}, "tau = 5.* 4"),
        ("02_clean", {"epochs": True}, "epochs = True"),
        ("02_clean", {"method": "pare"}, "'pare'.*'par'.*finetune.*cleanclip.*roclip"),
        ("02_clean", {"method": "contrast"}, "'contrast'.*finetune"),
        ("02_clean", {"method": ["par"]}, r"method.*parlib\.run"),
        ("02_clean", {"schedule": "linear"}, "schedule.*'linear'.*'paper'.*'cosine'.*'warmup_cosine'"),
        ("02_clean", {"scale": "smll"}, "scale.*'smll'.*'small'"),
        ("01_poison", {"trigger": "stripes"}, "'stripes'.*'badnet_stripes'.*badnet"),
        ("01_poison", {"encoder": "small_resent"}, "'small_resent'.*'small_resnet'"),
        ("01_poison", {"encoder": "RN50"}, "'RN50'.*224.*64"),
        ("01_poison", {"target": "bananna"}, "'bananna'.*'banana'"),
        ("01_poison", {"rate": -0.1}, r"rate = -0\.1"),
        ("01_poison", {"rate": 1.5}, r"rate = 1\.5"),
        ("01_poison", {"data": "cc3m:data/cc3m"}, "cc3m.*base"),
        ("01_poison", {"trigger_options": {"opacity": 0.1}}, "badnet_stripes.*'opacity'.*size"),
        ("01_poison", {"trigger": "blended", "trigger_options": {"opacty": 0.1}}, "'opacty'.*'opacity'"),
        ("01_poison", {"trigger": "blended", "trigger_options": {"opacity": "much"}}, "opacity.*'much'"),
        ("01_poison", {"trigger": "badnet", "trigger_options": {"size": 70}}, "70 px"),
        ("01_poison", {"trigger": "badnet", "trigger_options": {"size": -1}}, "badnet.*-1"),
        ("01_poison", {"trigger": "badnet", "trigger_options": {"size": 6.5}}, r"badnet.*6\.5"),
        ("01_poison", {"trigger": "badnet", "trigger_options": {"pattern": "x.npy"}}, "badnet.*'pattern'"),
        ("02_clean", {"compute": {"precison": "bf16"}}, r"'compute\.precison'.*'precision'"),
        ("02_clean", {"compute": {"precision": "bf8"}}, r"compute\.precision.*'bf8'.*'bf16'"),
        ("02_clean", {"compute": {"chunk": 8}}, "batch_norm.*chunk"),
        ("02_clean", {"compute": {"processes": 3}}, "128.*3 processes"),
        ("02_clean", {"normalised": False}, "normalised"),
        ("02_clean", {"retrieval": "coco:data/coco"}, "retrieval.*evaluation"),
        ("02_clean", {"evaluation": "cc3m:data/cc3m"}, "cc3m.*captions.*labels"),
        ("02_clean", {"data": "sceens"}, "'sceens'.*'scenes'"),
        ("02_clean", {"data": "cc3:data/cc3m"}, "'cc3'.*cc3m"),
        ("02_clean", {"tests": ["bagnet"]}, "'bagnet'.*'badnet'"),
        ("02_clean", {"tests": ["badclip"]}, "badclip"),
        ("02_clean", {"trigger": "resistant", "poisoned": "local-dir:x"}, "resistant"),
        ("02_clean", {"wordnet": "nowhere"}, "wordnet.*cleanclip.*roclip"),
        ("02_clean", {"wordnet": "nowhere", "method": "cleanclip"}, r"wordnet.*nowhere.*data\.noun"),
        ("02_clean", {"label": "my_run"}, "label = 'my_run'.*hyphens"),
        ("03_tau_sweep", {"space": [{"label": ["a", "b"]}]}, "label"),
        ("10_inspect", {"name": "all", "against": [{"label": ["mine"]}]}, "label"),
        ("10_inspect", {"encoder": "ViT-B-32", "data": "csv:a", "words": ["cat", "dog"], "poisoned": "01_poison/mine"}, "evaluation"),
        ("05_evaluate", {"seed": 1}, "'seed'.*scale"),
    ],
)
def test_what_does_not_fit_ends_in_one_line_that_names_it(notebook, values, named):
    with pytest.raises(ValueError, match=named) as caught:
        check(notebook, values)
    assert "\n" not in str(caught.value)


def test_an_int_stands_for_a_float_and_none_for_the_tuned_value():
    clean = check("02_clean", {"tau": 2, "lr": None})
    assert (clean.tau, clean.lr) == (2.0, tuned("par", "small_resnet")["lr"])
    assert check("02_clean", {"lr": 1e-6}).lr == 1e-6
    assert check("01_poison", {}).trigger_options == trigger_options("badnet_stripes")


def test_an_encoder_has_learning_rates_of_its_own():
    usual, own = tuned("finetune", "small_resnet"), tuned("finetune", "small_vit")
    assert own["lr"] != usual["lr"]
    assert own == usual | {"lr": own["lr"]}
    found = check("02_clean", {"method": "finetune", "encoder": "small_vit"})
    assert {"lr": found.lr, "batch": found.batch, "schedule": found.schedule} == own
    assert check("02_clean", {"method": "finetune", "encoder": "small_vit", "lr": 1e-5}).lr == 1e-5
    assert tuned("finetune", "RN50") == usual


def test_a_method_of_your_own_starts_from_plain_fine_tuning(monkeypatch):
    monkeypatch.setitem(METHODS, "finetune_twice", METHODS["finetune"])
    assert check("02_clean", {"method": "finetune_twice"}).lr == tuned("finetune", "small_resnet")["lr"]
    assert check("02_clean", {"method": "finetune_twice", "encoder": "small_vit"}).lr == tuned("finetune", "small_vit")["lr"]


def test_parts_of_par_take_its_settings():
    for method in ("finetune_augmented", "perturb_only"):
        part, par = (check("02_clean", {"method": name}) for name in (method, "par"))
        assert (part.lr, part.batch, part.schedule) == (par.lr, par.batch, par.schedule)


def test_an_encoder_brings_its_pretraining_and_a_trigger_its_planting():
    resnet, vit = (check("01_poison", {"encoder": name}) for name in ("small_resnet", "small_vit"))
    assert (resnet.base_lr, resnet.lr) == (2e-3, 3e-3)
    assert vit.base_lr < resnet.base_lr
    assert vit.trigger_options["size"] > resnet.trigger_options["size"]
    assert check("01_poison", {"trigger": "blended_text"}).epochs > resnet.epochs
    assert check("01_poison", {"attack": "label_consistent"}).rate == planting("small_resnet", "badnet_stripes", "label_consistent")["rate"]
    assert check("01_poison", {"encoder": "small_vit", "base_lr": 2e-3}).base_lr == 2e-3


def test_usual_options_are_those_of_each_trigger_and_lengths_grow_with_the_image():
    assert set(drawn_triggers()) == set(TRIGGERS)
    for name in TRIGGERS:
        for side in (64, 224, 288, 336):
            assert set(trigger_options(name, side)) == set(options_of(name))
    assert trigger_options("badnet", 288)["size"] == 21  # 16 px of 224
    assert trigger_options("wanet", 288)["offsets"] == 288  # one a pixel
    assert trigger_options("wanet_smooth", 288)["offsets"] == 4  # 4 x 4 of them at any size
    with pytest.raises(ValueError, match="'stripes'.*badnet"):
        trigger_options("stripes")


def test_a_file_of_a_pattern_is_looked_at_before_anything_is_trained(tmp_path):
    good, bad = tmp_path / "good.npy", tmp_path / "bad.npy"
    np.save(good, np.zeros((4, 4, 2), dtype=np.float32))
    np.save(bad, np.zeros((4, 5, 2), dtype=np.float32))
    found = check("01_poison", {"trigger": "wanet", "trigger_options": {"pattern": str(good)}})
    assert found.trigger_with(found.trigger_options).options["offsets"] == 4
    with pytest.raises(ValueError, match=r"wanet|bad\.npy"):
        check("01_poison", {"trigger": "wanet", "trigger_options": {"pattern": str(bad)}})
    absent = check("01_poison", {"trigger": "wanet", "trigger_options": {"pattern": str(tmp_path / "absent.npy")}})
    with pytest.raises(FileNotFoundError, match=r"absent\.npy"):
        absent.identity()


@pytest.mark.parametrize(
    ("values", "run"),
    [
        ({}, "02_clean/par_badnet_stripes_s0"),
        ({"trigger": "blended_text", "seed": 1, "tau": 3}, "02_clean/par_blended_text_s1_tau3"),
        ({"lr": tuned("par", "small_resnet")["lr"]}, "02_clean/par_badnet_stripes_s0"),
        ({"lr": 1e-3, "method": "finetune", "split": "validation"}, "02_clean/finetune_badnet_stripes_s0_splitvalidation_lr0.001"),
        ({"encoder": "small_vit"}, "02_clean/par_badnet_stripes_small_vit_s0"),
        ({"attack": "label_consistent"}, "02_clean/par_badnet_stripes_label_consistent_s0"),
        ({"trigger": "badnet", "trigger_options": {"size": 8}}, "02_clean/par_badnet_s0_size8"),
        ({"scale": "smoke"}, "02_clean/par_badnet_stripes_s0"),
        ({"scale": "smoke"} | scale_values("02_clean", "smoke"), "02_clean/par_badnet_stripes_s0"),
        ({"experiment": "mine"}, "02_clean/par_badnet_stripes_s0"),
        ({"label": "mine", "tau": 3, "trigger": "sig"}, "02_clean/mine"),
    ],
)
def test_a_run_id_says_what_differs_from_the_usual(values, run):
    assert check("02_clean", values).id == run


def test_options_that_a_method_does_not_take_are_none_and_in_no_id():
    found = check("02_clean", {"method": "cleanclip", "tau": 0.5, "self_weight": 0.7})
    assert (found.tau, found.self_weight, found.pool) == (None, 0.7, None)
    assert found.id == "02_clean/cleanclip_badnet_stripes_s0_self_weight0.7"
    assert check("02_clean", {"method": "finetune", "tau": 0.5}) == check("02_clean", {"method": "finetune"})


@pytest.mark.parametrize("notebook", EXPERIMENTS)
def test_checked_parameters_stay_what_they_are_when_checked_again(notebook):
    for values in ({}, {"scale": "smoke"}):
        found = check(notebook, values)
        assert check(notebook, found.model_dump()) == found


def test_a_path_has_a_short_safe_id():
    run = check("02_clean", {"poisoned": "local-dir:/some/where else/" + 200 * "x"}).id
    assert run.startswith("02_clean/par_badnet_stripes_s0_poisoned")
    assert run.count("/") == 1
    assert len(run) < 100
    many = {"tests": ["badnet"], "tau": 1.0, "lr": 1e-5, "pairs": 100, "epochs": 9, "batch": 10, "classes": 20, "eval_scenes": 50}
    many |= {"target": "axe", "templates": 3, "max_skipped": 0.5, "batch_norm": "frozen", "schedule": "paper", "split": "validation"}
    long, longer = (check("02_clean", many | {"compute": {"workers": n}}).id for n in (1, 2))
    assert len(long) < 170
    assert long != longer


def test_a_scale_gives_what_is_left_open_and_a_method_or_encoder_more():
    smoke, paper = check("02_clean", {"scale": "smoke"}), check("02_clean", {"scale": "paper", "encoder": "RN50"})
    assert (smoke.pairs, smoke.epochs, smoke.tau) == (200, 2, 2.15)
    assert check("02_clean", {"scale": "smoke", "pairs": 12000}).pairs == 12000  # asked for, though it is small's default
    assert (paper.batch, paper.lr, paper.compute.processes) == (2048, 3e-5, 4)
    own = check("02_clean", {"scale": "paper", "encoder": "RN50", "method": "cleanclip"})
    assert (own.batch, own.self_weight, own.compute.processes) == (64, 1.0, 1)
    large = check("02_clean", {"scale": "paper", "encoder": "ViT-L-14-336"})
    assert large.compute.checkpointing


def test_learned_triggers_take_a_published_pattern_where_there_is_one():
    assert set(LEARNED) == {"badclip", "resistant"}
    with pytest.raises(ValueError, match="resistant.*pattern"):
        check("01_poison", {"trigger": "resistant", "trigger_options": {"pattern": "x.npy"}})
