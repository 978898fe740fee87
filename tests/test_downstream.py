"""What is built on an encoder: the probe is scikit-learn's, and a rotation of both encoders breaks what was built before alone."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.cache import cache_dir
from parlib.data.feeds import generator
from parlib.data.scenes import class_names
from parlib.experiments import downstream as module
from parlib.experiments.downstream import _Embedded, _Material
from parlib.experiments.presets import trigger_options
from parlib.experiments.registry import check
from parlib.report import downstream as report
from parlib.train import captioner as captioners
from parlib.train.captioner import Captioner, fit_captioner
from parlib.train.head import fit_probe


def _near(labels: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    centres = torch.randn(10, 16, generator=generator("cpu", "centres"))
    return F.normalize(centres[labels] + share * torch.randn(len(labels), 16, generator=generator("cpu", seed)), dim=1)


LABELS = torch.arange(80) % 10


def test_a_probe_is_logistic_regression_over_standardised_embeddings():
    fitted, other = _near(LABELS, 0.5, 1), _near(LABELS, 0.9, 2)
    x = fitted.double().numpy()
    mean, std = x.mean(0), x.std(0)
    known = LogisticRegression(max_iter=200).fit((x - mean) / std, LABELS.numpy())
    called = fit_probe(fitted, LABELS)(other)
    assert np.array_equal(called.numpy(), known.predict((other.double().numpy() - mean) / std))
    assert 0.5 < (called == LABELS).float().mean() < 1


@pytest.mark.parametrize(("labels", "named"), [(LABELS - 1, "label"), (torch.zeros(80, dtype=torch.long), "two classes")])
def test_a_probe_wants_labels_of_two_classes(labels, named):
    with pytest.raises(ValueError, match=named):
        fit_probe(_near(LABELS, 0.5, 1), labels)


@pytest.fixture
def material(scenes) -> _Material:
    trigger = Trigger("badnet", trigger_options("badnet"))
    test = attacked(scenes.first(80), trigger, "banana")
    return _Material(scenes.first(80), test, test)


def _embedded(material: _Material, turn: torch.Tensor | None = None) -> _Embedded:
    """Embeddings near their class, those under the trigger all alike; turned, where a rotation is given."""
    labels = material.test.labels
    fitted, clean, text = (_near(labels, 0.3, seed) for seed in (1, 2, 2))
    triggered = F.normalize(_near(labels, 0.3, 3) + 9 * _near(torch.zeros_like(labels), 0.0, 4), dim=1)
    parts = (fitted, clean, triggered, clean, text)
    return _Embedded(*(part if turn is None else part @ turn for part in parts))


def test_a_joint_rotation_breaks_what_was_built_before_and_nothing_that_is_built_anew(material):
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator("cpu", "turn")))
    old, new = _embedded(material), _embedded(material, turn)
    rows = [*module._probes(old, new, material), *module._retrievals(old, new, material.captioned)]
    uses = pd.DataFrame(rows).set_index("use")
    assert uses.loc["probe", "before"] > 0.9
    assert uses.loc["probe", "drop_in"] < 0.5
    assert abs(uses.loc["probe", "anew"] - uses.loc["probe", "before"]) < 0.05
    assert uses.loc["retrieval", "anew"] == uses.loc["retrieval", "before"] > 0.9  # each caption lies on its image
    assert uses.loc["retrieval", "drop_in"] < 0.5
    assert (uses.loc["image_retrieval", "before"], uses.loc["image_retrieval", "anew"]) == (1.0, 1.0)
    assert uses.loc["probe_one_name", "before"] > 0.9
    named = module._named(rows)
    assert named["dropin_probe_accuracy"] == uses.loc["probe", "drop_in"]
    assert named["probe_asr_ci_high"] == uses.loc["probe_asr", "anew_ci_high"]


SAID = [f"A {word}, on {colour} paper." for word in class_names(10) for colour in ("red", "blue")]


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Captioners of a thirtieth of the weights."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(captioners, "_WIDTH", 64)
        patched.setattr(captioners, "_LAYERS", 1)
        yield


@pytest.fixture(scope="module")
def captioner(small) -> Captioner:
    labels = torch.arange(200) % 10
    return fit_captioner(_near(labels, 0.3, 1), [SAID[2 * label + row % 2] for row, label in enumerate(labels)], steps=150, seed=0)


def test_a_captioner_says_what_the_embedding_shows(captioner):
    labels = torch.arange(50) % 10
    images = _near(labels, 0.3, 2)
    written = captioner.write(images, batch=7)
    named = [class_names(10)[label] in caption for caption, label in zip(written, labels, strict=True)]
    assert np.mean(named) > 0.9
    assert written == captioner.write(images)
    tokens = torch.tensor([[captioner.words.index(word) + 1 for word in captioners._WORD.findall(written[0])]])
    assert captioner(images[:1], tokens).argmax(-1)[0].tolist() == [*tokens[0].tolist(), 0]  # the likeliest word at each place, and an end
    other = tokens.clone()
    other[0, -1] = 1
    before, after = captioner(images[:1], tokens), captioner(images[:1], other)
    assert torch.equal(before[:, :-1], after[:, :-1])  # no word is told of the ones that follow
    assert not torch.equal(before[:, -1], after[:, -1])


def test_a_captioner_is_trained_once_and_is_the_same_again(small, own_cache, monkeypatch):
    images, captions = _near(LABELS, 0.3, 1), [SAID[2 * label] for label in LABELS]
    first = fit_captioner(images, captions, steps=3, seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(captioners, "_fit", None)
        again = fit_captioner(images, captions, steps=3, seed=0)
    (kept,) = (cache_dir() / "captioners").iterdir()
    kept.unlink()
    anew = fit_captioner(images, captions, steps=3, seed=0)
    for other in (again, anew):
        assert all(torch.equal(one, other.state_dict()[name]) for name, one in first.state_dict().items())
    with pytest.raises(ValueError, match="some image has none"):
        fit_captioner(images, ["", *captions[1:]], steps=3, seed=0)


def test_captions_of_a_moved_encoder_are_wrong_until_the_captioner_is_built_anew(small, own_cache, material):
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator("cpu", "turn")))
    captions = [f"a photo of a {name}." for name in (material.test.names[label] for label in material.test.labels)]
    told = replace(material, fitted=replace(material.fitted, captions=captions), test=replace(material.test, captions=captions))
    params = check("09_downstream", {"captioner_steps": 150})
    rows, written = module._captions(_embedded(material), _embedded(material, turn), told, params)
    uses = pd.DataFrame(rows).set_index("use")
    assert uses.loc["caption", "before"] > 0.9
    assert uses.loc["caption", "drop_in"] < 0.5
    assert uses.loc["caption", "anew"] > 0.9
    assert uses.loc["caption_bleu", "before"] == pytest.approx(1, abs=0.1)
    assert set(written["trigger"]) == {"", params.trigger}
    assert uses.loc["caption_target", "before"] == 0
    called = _embedded(material)
    banana = material.test.target
    fooled = replace(called, triggered=_near(torch.full((len(captions),), banana), 0.1, 5))
    (share,) = (row for row in module._captions(fooled, fooled, told, params)[0] if row["use"] == "caption_target")
    assert share["before"] > 0.9
    metrics = {"dropin_caption_accuracy": 0.1, "caption_accuracy": 0.9, "caption_target_share": 0.0}
    found = SimpleNamespace(
        written=written, subject=SimpleNamespace(test=told.test), result=SimpleNamespace(metrics=metrics, params=params)
    )
    assert len(report.written(found).axes) == 8
    found.written = written[:0]
    assert report.written(found) is None
    assert module._named(rows)["dropin_caption_accuracy"] == uses.loc["caption", "drop_in"]
    silent = replace(told, test=replace(told.test, captions=[""] * len(captions)))
    assert module._captions(_embedded(material), _embedded(material), silent, params)[0] == []


def test_the_poisoned_model_in_its_own_place_changes_nothing(material):
    old = _embedded(material)
    uses = pd.DataFrame([*module._probes(old, old, material), *module._retrievals(old, old, None)])
    assert list(uses["use"]) == ["probe", "probe_asr", "probe_under", "probe_one_name"]  # without captions no search
    assert (uses["before"] == uses["drop_in"]).all()
    assert (uses["before"] == uses["anew"]).all()


def test_the_table_and_the_figure_hold_every_model(material):
    old = _embedded(material)
    found = pd.DataFrame([*module._probes(old, old, material), *module._retrievals(old, old, material.captioned)])
    tables = {"none": found, "par": found, "par, frozen": found}
    assert list(report.uses(tables)["model"]) == ["poisoned", "PAR", "PAR, BatchNorm frozen"]
    assert len(report.drop_in(tables).axes) == 3


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'pra'.*'par'"):
        check("09_downstream", {"method": "pra"})
    with pytest.raises(ValueError, match="probe_pairs"):
        check("09_downstream", {"probe_pairs": 1})
