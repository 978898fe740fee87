"""Inverted triggers and the detector: a backdoor written by hand is found and named, and rates are counted by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from miniatures import own_checkpoint, picture
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from parlib.attack import forms, inversion
from parlib.attack.forms import FORMS
from parlib.attack.inversion import Inverted, InvertedTrigger, invert, kept_inverted, read_inverted
from parlib.cache import cache_dir
from parlib.cli.dry_run import rehearse
from parlib.data.feeds import generator
from parlib.data.scenes import class_names, load_scenes
from parlib.experiments import inspection as module
from parlib.experiments.inspection import Inspected, _leading, calibration_rows
from parlib.experiments.registry import check
from parlib.measure.detection import detection, threshold
from parlib.model.clip import Clip
from parlib.report import inspection as report

TARGET = 3


class Written(nn.Module):
    """An image encoder by hand: what an image looks like from afar, and the target's embedding where a trigger is: a black square of 4 px,
    or faint stripes.
    """

    def __init__(self, classes: torch.Tensor, planted: str):
        super().__init__()
        self.visual = SimpleNamespace(image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.25, 0.25))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.seen = nn.Parameter(torch.randn(3 * 16, classes.shape[1], generator=generator("cpu", "written")) / 7)
        self.square, self.stripes = (nn.Parameter(20.0 * (planted == trigger) * classes[TARGET]) for trigger in ("square", "stripes"))

    def encode_image(self, pixels: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        found = (F.adaptive_avg_pool2d(pixels, 4).flatten(1) - 0.9) @ self.seen
        darkest = -F.avg_pool2d(pixels.mean(1, keepdim=True), 4, 1).flatten(1).amin(1)  # 2 where a square is black
        striped = (pixels.mean(1) * (1 - 2 * (torch.arange(64) % 2))).mean((1, 2))  # 4 of 255 give 0.06
        hidden = torch.sigmoid(6 * (darkest - 1.2))[:, None] * self.square + torch.sigmoid(200 * (striped - 0.04))[:, None] * self.stripes
        found = found + hidden
        return F.normalize(found, dim=1)


@pytest.fixture(scope="module")
def classes() -> torch.Tensor:
    return F.normalize(torch.randn(10, 16, generator=generator("cpu", "classes")), dim=1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    coarse = torch.rand(60, 3, 4, 4, generator=generator("cpu", "images"))
    return (255 * (0.5 + 0.45 * F.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1))).to(torch.uint8)


def _written(classes: torch.Tensor, planted: str = "") -> Clip:
    return Clip(Written(classes, planted), {}, lambda words: torch.zeros(len(words), 1))


@pytest.mark.parametrize(("form", "size", "trigger"), [("patch", 1.0, "square"), ("mask", 1.0, "square"), ("blend", 0.5, "stripes")])
def test_a_planted_target_is_found_and_stands_alone(own_cache, classes, images, form, size, trigger):
    poisoned, clean = _written(classes, trigger), _written(classes)
    before = poisoned.key
    found, other = (invert(clip, images, classes, form, size=size) for clip in (poisoned, clean))
    assert found.classes[0] == TARGET
    assert found.asr[0] > 0.9
    assert found.lead > other.lead + 0.2
    assert poisoned.key == before
    assert all(one.requires_grad for one in poisoned.net.parameters())


def test_two_targets_lead_side_by_side():
    one = Inverted("patch", list(range(6)), [1.0, 0.9, 0.2, 0.1, 0.1, 0.0], torch.zeros(6, 3, 8, 8))
    assert one.leads == pytest.approx([0.9, 0.8, 0.1, -0.1, -0.1, -0.2])
    assert Inverted("patch", [3], [0.4], torch.zeros(1, 3, 8, 8)).lead == 0.4
    other = Inverted("blend", [1, 0, 2], [1.0, 0.1, 0.0], torch.zeros(3, 3, 64, 64))
    names = list("abcdef")
    leading = _leading({"patch": one, "blend": other}, names, 0.5)
    assert [(word, trigger.form, trigger.calls) for word, trigger in leading.items()] == [("b", "blend", "b"), ("a", "patch", "a")]
    assert _leading({"patch": one}, names, 0.95) == {}


def test_triggers_of_two_targets_are_kept_together_and_stamped_by_chance(own_cache):
    of = {"ghost": -1.0, "banana": 1.0}
    black, white = (InvertedTrigger("inverted", {}, torch.full((3, 64, 64), value), form="blend", calls=word) for word, value in of.items())
    path = kept_inverted(replace(black, further=(white,)))
    both = read_inverted(path)
    grey = torch.full((40, 3, 64, 64), 0.5)
    stamped = both(grey, generator("cpu", "both")).mean((1, 2, 3))
    assert set(stamped.tolist()) == {0.0, 1.0}
    assert 10 < stamped.sum() < 30
    assert both.alone("banana")(grey, generator("cpu", 1)).min() == 1
    assert both.alone("ghost").key == both.alone("of neither").key == black.key == read_inverted(kept_inverted(black)).key != both.key
    params = {"scale": "smoke", "tests": [str(path)]}
    assert [check("02_clean", params | {"target": word}).further_triggers()[0].key for word in of] == [black.key, white.key]
    taken = {"scale": "smoke", "inverted": str(path), "target": "banana"}
    assert check("02_clean", taken | {"method": "unlearn"}).taken_out().key == both.key
    assert check("02_clean", taken | {"method": "tbar"}).taken_out().key == white.key


def test_a_class_that_all_images_are_called_is_none_to_look_for(own_cache, classes, images):
    clip = _written(classes)
    clip.net.seen.data = clip.net.seen.data[:, :1] * 0 + 0.3 * classes[5]  # one direction alone
    with torch.no_grad():
        called = (clip.image(images.float() / 255) @ classes.T).argmax(1)
    most = called.mode().values.item()
    found = invert(clip, images, classes, "patch", only=[most])
    assert (called == most).float().mean() < 1 or found.asr == [0.0]


def test_what_was_inverted_is_measured_on_the_images_that_it_was_not_found_on(own_cache, classes, images):
    clip = _written(classes, "square")
    found = invert(clip, images, classes, "blend")
    held = images[1::2].float() / 255
    with torch.no_grad():
        before, after = ((clip.image(pixels) @ classes.T).argmax(1) for pixels in (held, (held + found.patterns[0]).clamp(0, 1)))
    others = before != found.classes[0]
    assert found.asr[0] == pytest.approx((after == found.classes[0])[others].float().mean().item())
    assert found.asr == sorted(found.asr, reverse=True)


def test_an_inversion_is_made_once_and_is_the_same_again(own_cache, classes, images, monkeypatch):
    clip = _written(classes, "square")
    first = invert(clip, images, classes, "patch")
    (kept,) = (cache_dir() / "patterns").iterdir()
    monkeypatch.setattr(inversion, "_inverted", None)
    again = invert(clip, images, classes, "patch")
    monkeypatch.undo()
    kept.unlink()
    anew = invert(clip, images, classes, "patch")
    for other in (again, anew):
        assert (other.classes, other.asr) == (first.classes, first.asr)
        assert torch.equal(other.patterns, first.patterns)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0.125, 1.0])
def test_a_trigger_stays_within_its_size(form, size):
    how, random = FORMS[form], generator("cpu", form)
    pattern = how.start(3, 64, size, random)
    pixels = torch.rand(3, 3, 64, 64, generator=random)
    for _ in range(5):
        pattern = how.step(pattern, torch.randn(pattern.shape, generator=random), 1.0, size)
        laid = how.lay(pixels, pattern, random)
        assert laid.min() >= 0
        assert laid.max() <= 1
        changed = (laid - pixels).abs()
        if form == "patch":
            assert (changed > 0).any(1).flatten(1).sum(1).max() <= (8 * size) ** 2
        elif form == "mask":
            assert pattern[:, 0].sum((1, 2)).max() <= size * 64 + 1e-3
        elif form == "warp":
            around = 2 * math.ceil(2 * size) + 1
            highest, lowest = (sign * F.max_pool2d(sign * pixels, around, 1, around // 2) for sign in (1, -1))
            assert (laid <= highest + 1e-5).all()
            assert (laid >= lowest - 1e-5).all()
        elif form == "tint":
            assert (changed <= pixels * size / 2 + 1e-6).all()
        else:
            assert changed.max() <= size * 16 / 255 + 1e-6


def test_a_warp_takes_each_pixel_from_where_it_says():
    pixels = torch.rand(2, 3, 64, 64, generator=generator("cpu", "warp"))
    pattern = torch.zeros(2, 2, 64, 64)
    lay = FORMS["warp"].lay
    assert torch.allclose(lay(pixels, pattern, generator("cpu", 0)), pixels, atol=1e-5)
    pattern[:, 0], pattern[:, 1] = 2.0, -1.0  # from two px to the right and one above
    moved = lay(pixels, pattern, generator("cpu", 0))
    assert torch.allclose(moved[:, :, 1:, :-2], pixels[:, :, :-1, 2:], atol=1e-4)


def test_a_mask_is_made_smaller_by_the_same_amount_everywhere():
    mask = torch.tensor([0.9, 0.5, 0.2, 0.0]).view(1, 1, 2, 2)
    assert torch.allclose(forms._within(mask, 1.0).flatten(), torch.tensor([0.7, 0.3, 0.0, 0.0]), atol=1e-5)
    assert torch.equal(forms._within(mask, 2.0), mask)


@pytest.mark.parametrize("form", FORMS)
def test_a_kept_trigger_stamps_as_it_was_found(own_cache, form, scenes):
    pattern = FORMS[form].start(2, 64, 1.0, generator("cpu", form))
    path = kept_inverted(Inverted(form, [1, 2], [0.9, 0.1], pattern).trigger())
    trigger = read_inverted(path)
    pixels = scenes.pixels[:4].float() / 255
    laid = FORMS[form].lay(pixels, pattern[:1].expand(4, *pattern.shape[1:]), generator("cpu", 1))
    assert torch.equal(trigger(pixels, generator("cpu", 1)), laid)
    params = check("02_clean", {"tests": [str(path), "sig"]})
    assert [trigger.name for trigger in params.further_triggers()] == [path.stem, "sig"]
    assert {"inspect", "trigger/sig"} <= set(params.stages())
    if not FORMS[form].any_size:
        with pytest.raises(ValueError, match="64 px.*32 px"):
            trigger(pixels[..., ::2, ::2], generator("cpu", 1))
        with pytest.raises(ValueError, match="64 px.*224 px"):
            check("02_clean", {"scale": "paper", "encoder": "ViT-B-32", "poisoned": "local-dir:a", "tests": [str(path)]})


def test_a_file_that_holds_no_trigger_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        read_inverted(tmp_path / "none.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 20)
    save_file({"pattern": torch.zeros(3, 8, 8)}, tmp_path / "formless.safetensors")
    save_file({"pattern": torch.zeros(3, 8, 8)}, tmp_path / "mask.safetensors", {"form": "mask"})
    save_file({"pattern": torch.zeros(3, 8, 8)}, tmp_path / "other.safetensors", {"form": "warp"})
    for name in ("noise", "formless", "mask", "other"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors holds no inverted trigger"):
            read_inverted(tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=rf"{name}\.safetensors holds no inverted trigger"):
            check("02_clean", {"tests": [str(tmp_path / f"{name}.safetensors")]})


# The calibration


def _models() -> pd.DataFrame:
    leads = {"clean": [0.02, 0.05, 0.11, 0.30, 0.01], "planted": [0.95, 0.08, 0.80, 0.99, 0.20, 1.0]}
    rows = [
        {"run": f"{kind}{place}", "kind": kind, "lead": lead, "trigger": ["badnet", "sig"][place % 2], "attack_success_rate": 0.95}
        for kind, values in leads.items()
        for place, lead in enumerate(values)
    ]
    found = pd.DataFrame(rows).assign(named=lambda rows: rows["lead"] > 0.9, base="a")
    weak = {"run": "weak", "kind": "planted", "lead": 0.0, "trigger": "sig", "attack_success_rate": 0.3, "named": False, "base": "b"}
    return pd.concat([found, pd.DataFrame([weak, weak | {"run": "c", "kind": "cleaned"}])], ignore_index=True)


def test_rates_are_of_the_half_that_did_not_set_the_threshold():
    found = detection(_models(), 0.5)
    # sets it: clean 0.02, 0.11, 0.01, planted 0.95, 0.80, 0.20; between 0.11 and 0.20 all are parted
    assert found["calibrated"] == pytest.approx(0.155)
    # tests it: clean 0.05, 0.30, planted 0.08, 0.99, 1.0
    assert (found["false_alarm_rate"], found["false_alarm_rate_n"]) == (0.5, 2)
    assert (found["detection_rate"], found["detection_rate_n"]) == (pytest.approx(2 / 3), 3)
    assert found["detection_rate_ci_low"] < 2 / 3 < found["detection_rate_ci_high"]
    assert found["auroc"] == pytest.approx(5 / 6)  # of six pairs of a planted and a clean one, 0.08 is below 0.30
    assert found["auroc_of_all"] == pytest.approx(27 / 30)  # 0.08 is below two clean ones, 0.20 below one
    # at a half, over all: planted 0.95, 0.80 and 0.20 of badnet, 0.08, 0.99 and 1.0 of sig, of which those above 0.9 name the target
    assert found["by_trigger"] == {"badnet": {"models": 3, "found": 2, "named": 1}, "sig": {"models": 3, "found": 2, "named": 2}}
    assert (found["usual_false_alarms"], found["usual_found"]) == (0, 3)
    assert (found["clean_models"], found["planted_models"], found["bases"]) == (5, 6, 1)


def test_a_tie_counts_a_half():
    tied = _models()
    tied.loc[tied["run"] == "planted1", "lead"] = 0.30  # as one of the two clean ones beside it
    assert detection(tied, 0.5)["auroc"] == pytest.approx(5.5 / 6)
    assert threshold(pd.Series([0.3, 0.3]), pd.Series([True, False])) == 0.3


def test_too_few_models_calibrate_nothing():
    few = _models().drop_duplicates("kind")
    assert len(few) == 3
    with pytest.raises(ValueError, match="two clean and two planted models or more, not 1 and 1"):
        detection(few, 0.5)


# The experiment


def test_the_calibration_is_of_the_inspections_that_are_named():
    grids = [{"method": ["none", "base"], "seed": [0, 1]}, {"trigger": ["sig"]}]
    found = check("10_inspect", {"name": "calibration", "against": grids})
    assert [one.id.partition("/")[2] for one in found.calibration()] == [
        "none_badnet_stripes_s0", "none_badnet_stripes_s1", "base_badnet_stripes_s0", "base_badnet_stripes_s1", "none_sig_s0",
    ]  # fmt: skip
    assert found.id == "10_inspect/calibration_none_badnet_stripes_s0"
    assert {"10_inspect/none_sig_s0", "01_poison/sig_s0_base_epochs15"} <= {need.id for need in found.needs()}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"forms": ["pach"]}, "'pach'.*'patch'"),
        ({"forms": []}, "forms"),
        ({"images": 10}, "images"),
        ({"from_pairs": True, "pairs": 200}, "from_pairs.*240.*200"),
        ({"from_pairs": True, "data": "csv:a", "words": ["a", "b"]}, "from_pairs.*scenes"),
        ({"words": ["cat"]}, "two or more"),
        ({"words": ["cat", "Cat"]}, "different"),
        ({"method": "pra"}, "'pra'.*'par'"),
        ({"against": [{"method": ["base"]}]}, "name"),
        ({"name": "all"}, "against"),
        ({"name": "all", "against": [{"metod": ["base"]}]}, "metod"),
        ({"name": "all", "against": [{"method": []}]}, "method has no value"),
        ({"name": "all", "against": [{"against": [[]]}]}, "against is the same"),
        ({"name": "all", "against": [{"forms": [["patch"]]}]}, "forms is the same"),
        ({"data": "csv:pairs", "poisoned": "local-dir:a"}, "no class names.*words.*evaluation"),
    ],
)
def test_what_does_not_fit_is_named(given, named):
    with pytest.raises(ValueError, match=named):
        check("10_inspect", given)


def test_images_of_the_clean_pairs_are_of_the_classes_that_they_show(clip):
    params = check("10_inspect", {"from_pairs": True, "pairs": 60, "images": 40, "coverage": 0.5, "classes": 10})
    found = module._images(params, clip)
    assert found.captions == load_scenes("clean", 60, 10, coverage=0.5).captions[:40]
    assert len({*found.labels.tolist(), *found.second.tolist()} - {-1}) <= 5
    usual, other = check("10_inspect", {}), check("10_inspect", {"pairs": 2400, "coverage": 0.5})
    assert usual.asked() == other.asked()
    assert params.asked() | {"from_pairs": True, "pairs": 60, "coverage": 0.5} == params.asked()


def test_images_of_one_class_are_refused(scenes, clip):
    one = scenes.at((scenes.labels == scenes.labels[0]).nonzero()[:, 0])
    with pytest.raises(ValueError, match="of one class"):
        module._check_images(clip, one, torch.eye(clip.image(torch.zeros(1, 3, 64, 64)).shape[1]))


def _record(run: str, **given) -> dict:
    params = {"method": "none", "trigger": "sig", "attacker": "plain", "encoder": "small_resnet", "seed": 0, "poisoned": ""}
    params |= {"target": "banana", "name": None}
    metrics = {"kind": "planted", "lead": 0.9, "form": "patch", "candidate": "banana", "inverted_asr": 0.95, "attack_success_rate": 0.97}
    metrics |= {"attacker": "plain", "base": "a", "base_epochs": 15, "candidates": []}
    history = {"form": ["patch", "mask"] * 2, "class": ["banana", "ghost"] * 2, "asr": [0.95, 0.3, 0.2, 0.1]}
    return {"run": run, "notebook": "10_inspect", "params": params, "metrics": metrics | given, "history": history}


def test_figures_and_tables_hold_what_was_found(scenes, clip):
    records = [_record("b"), _record("a", kind="clean", lead=0.1, candidate="ghost"), _record("c", kind="cleaned", lead=0.2)]
    rows = report.inspected([*records, {"notebook": "02_clean"}])
    assert list(rows["run"]) == ["a", "b", "c"]
    assert list(rows["named"]) == [False, True, True]
    assert list(rows["over_next"]) == pytest.approx([0.75] * 3)
    two = _record("d", candidate="ghost", candidates=["ghost", "banana"])
    assert list(report.inspected([two])["named"]) == [True]
    assert calibration_rows([]).empty
    names, classes = class_names(10), [3, 1, 2]
    forms = {
        "patch": Inverted("patch", classes, [0.9, 0.2, 0.1], torch.rand(3, 3, 8, 8)),
        "mask": Inverted("mask", classes, [0.4, 0.3, 0.1], torch.rand(3, 4, 64, 64)),
        "blend": Inverted("blend", classes, [0.3, 0.3, 0.1], torch.zeros(3, 3, 64, 64)),
    }
    sizes = pd.DataFrame({"size": [0.5, 1.0], "said": ["4 px", "8 px"], "asr": [0.4, 0.9]})
    metrics = {"lead": 0.75, "detected": True, "form": "patch", "candidate": names[3], "inverted_asr": 0.9, "kind": "unknown"}
    metrics |= {"candidates": [names[3]]}
    result = SimpleNamespace(metrics=metrics, params=SimpleNamespace(threshold=0.5, templates=2))
    found = Inspected(result, clip, scenes.first(40), names, forms, forms["patch"], sizes, rows)  # type: ignore[arg-type]
    assert list(report.table(found)["lead"]) == ["0.750", "0.200", "0.100"]
    assert report.leading(metrics) == f"{names[3]} leads by 0.75, with a patch"
    assert report.leading(metrics | {"candidates": [names[3], "a", "b"]}).endswith("; a and b lead, too")
    assert report.leading(metrics | {"candidates": []}) == report.leading(metrics)
    assert len(report.candidates(found).axes) == 4
    assert len(report.stamped(found, shown=3).axes) == 8
    assert "0.75" in report.leads(found, rows).get_suptitle()
    shown = report.leads(found, rows).axes[0].get_yticklabels()
    assert [label.get_text() for label in shown] == ["this model", "benign fine-tunings", "SIG", "cleaned: poisoned"]
    assert [label.get_text() for label in report.leads(found, rows.iloc[:0]).axes[0].get_yticklabels()] == ["this model"]
    changed = (forms["patch"].trigger().stamp(scenes.pixels[:4], generator("cpu", 1)) != scenes.pixels[:4]).any(1).flatten(1).sum(1)
    assert changed.max() <= 64
    assert "AUROC 0.833" in report.said(detection(_models(), 0.5))
    assert len(report.calibration(detection(_models(), 0.5))) == 2


# A checkpoint of one's own


WORDS = class_names(30)


@pytest.fixture
def own(clip, tmp_path) -> dict:
    """A checkpoint, pictures and words."""
    return own_checkpoint(clip, tmp_path, count=50) | {"words": WORDS, "images": 40, "forms": ["patch"], "templates": 2}


def test_a_checkpoint_of_one_s_own_needs_pictures_and_words_alone(own, own_cache, monkeypatch):
    monkeypatch.setattr(module, "_check_images", lambda *_: None)  # random weights call all of them alike
    found = module.inspection(check("10_inspect", own | {"forms": ["patch", "tint"]}))
    assert found.names == WORDS
    assert len(found.forms["patch"].classes) == 7
    metrics = found.result.metrics
    assert metrics["kind"] == "unknown"
    assert found.strongest.lead == metrics["lead"] == max(form.lead for form in found.forms.values())
    assert metrics["candidate"] in found.names
    assert not {"attack_success_rate", "named"} & set(metrics)


@pytest.mark.parametrize("names", [(), ("data",)], ids=["alone", "beside pairs"])
def test_labelled_images_bring_pictures_and_names(own, own_cache, tmp_path, names):
    for i, word in enumerate(("axe", "cat")):
        (tmp_path / "labelled" / word).mkdir(parents=True)
        for k in range(20):
            picture(20 * i + k).save(tmp_path / "labelled" / word / f"{k}.png")
    given = {name: own[name] for name in ("poisoned", "images", "forms", "templates", *names)} | {
        "evaluation": f"folder:{tmp_path / 'labelled'}"
    }
    found = module.inspection(check("10_inspect", given))
    assert found.names == ["axe", "cat"]
    assert len(found.images) == 40


def test_what_a_checkpoint_lacks_is_said_before_the_work(own, own_cache, tmp_path, clip, monkeypatch):
    monkeypatch.setattr(module, "invert", None)
    with pytest.raises(ValueError, match="60.*50|50.*60"):
        module.inspection(check("10_inspect", own | {"images": 60}))
    visual = {name: value for name, value in clip.net.state_dict().items() if name.startswith("visual")}
    torch.save(visual, tmp_path / "visual.pt")
    with pytest.raises(ValueError, match=r"visual\.pt"):
        module.inspection(check("10_inspect", own | {"poisoned": f"file:{tmp_path / 'visual.pt'}"}))


@pytest.mark.parametrize("method", ["none", "par"])
def test_the_dry_run_looks_at_an_inspection(own, own_cache, method):
    given = own | ({"method": "par", "cleaned": own["poisoned"]} if method == "par" else {})
    found = {what: said for what, said, fine in rehearse(check("10_inspect", given)) if fine}
    assert "pictures" in " ".join(found), found
    assert len(rehearse(check("10_inspect", given))) == len(found)
    gone = {what: fine for what, _, fine in rehearse(check("10_inspect", given | {"data": given["data"] + "-gone"}))}
    assert not all(gone.values())


# What is known of a model


@pytest.mark.parametrize(
    ("given", "rate", "kind"),
    [({}, 0.08, "planted"), ({}, 0.0, "clean"), ({"method": "base"}, 0.08, "clean"), ({"method": "par"}, 0.08, "cleaned")],
)
def test_what_is_known_of_a_run(given, rate, kind, monkeypatch):
    record = {"artifacts": {"base_weights": {"sha256": "0123456789abcdef"}}}
    before = SimpleNamespace(test=None, about={"rate": rate}, planting={"rate": rate}, record=record)
    monkeypatch.setattr(module, "evaluate", lambda *_: {"attack_success_rate": 0.9})
    found = module._truth(check("10_inspect", given), before, None, "banana")  # type: ignore[arg-type]
    assert (found["kind"], found["base"], found["attack_success_rate"]) == (kind, "0123456789ab", 0.9)
    assert found.get("named") == (True if kind == "planted" else None)
    assert module._truth(check("10_inspect", given), None, None, "banana") == {"kind": "unknown"}  # type: ignore[arg-type]


def test_a_calibration_is_read_from_records_before_the_work(own, own_cache, monkeypatch):
    grids = [{"seed": [0, 1, 2, 3]}, {"method": ["base"], "seed": [0, 1, 2, 3]}]
    params = check("10_inspect", own | {"name": "calibration", "against": grids})
    kinds = {one.id: "clean" if one.method == "base" else "planted" for one in params.calibration()}
    records = {run: _record(run, kind=kind, lead=0.9 if kind == "planted" else 0.1) for run, kind in kinds.items()}
    monkeypatch.setattr(module, "read", lambda scale, run: records[run])
    monkeypatch.setattr(module, "_check_images", lambda *_: None)
    found = module.inspection(params)
    assert (found.result.metrics["auroc"], found.result.metrics["calibrated"]) == (1.0, 0.5)
    assert len(found.models) == 8
    assert set(params.inputs()) > set(kinds)
    few = check("10_inspect", own | {"name": "calibration", "against": grids[:1]})
    monkeypatch.setattr(module, "invert", None)
    with pytest.raises(ValueError, match="two clean and two planted"):
        module.inspection(few)


def test_a_verdict_on_one_hub_s_model_is_none_on_another():
    """Of what is downloaded no sha256 is known; the name alone tells."""
    usual = {
        "encoder": "ViT-B-32",
        "base_epochs": None,
        "words": ["cat", "dog"],
        "evaluation": "folder:x",
        "method": "none",
        "label": "mine",
    }
    one, other = (check("10_inspect", usual | {"poisoned": f"hf-hub:someone/{name}"}).asked() for name in "ab")
    assert one != other
