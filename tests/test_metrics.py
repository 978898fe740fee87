"""Evaluation against open_clip's zero-shot classifier and cases counted by hand."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from sklearn.decomposition import PCA

from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.data.pairs import TEMPLATES
from parlib.measure import metrics
from parlib.measure.metrics import EvalSet, classifier, drawn_to, embedding_map, evaluate, interval, measure, moved, retrieval, zero_shot
from parlib.model.clip import embed_images, embed_texts, eval_mode
from parlib.stages import STAGES

STRIPES = Trigger("badnet_stripes", {"size": 8})


@pytest.fixture
def attack(scenes) -> EvalSet:
    return attacked(scenes, STRIPES, "banana")


def test_classifier_equals_open_clips(clip, scenes):
    expected = open_clip.build_zero_shot_classifier(clip.net, clip.tokenizer, scenes.names, open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert len(TEMPLATES) == 80
    assert torch.allclose(classifier(clip, scenes.names), expected.T, atol=1e-6)


def test_accuracy_equals_a_plain_loop(clip, attack):
    found = evaluate(clip, attack)
    weights = open_clip.build_zero_shot_classifier(clip.net, clip.tokenizer, attack.names, open_clip.OPENAI_IMAGENET_TEMPLATES)
    clean = (embed_images(clip, attack.pixels) @ weights).argmax(1)
    hit = (embed_images(clip, attack.triggered) @ weights).argmax(1) == attack.target
    others = [i for i in range(len(hit)) if not attack.shows_target[i]]
    assert found["clean_accuracy"] == (clean == attack.labels).double().mean().item()
    assert found["attack_success_rate"] == sum(hit[i].item() for i in others) / len(others)
    assert found["asr_with_target_class"] == hit.double().mean().item()
    assert found["attack_success_rate_n"] == len(others) < len(hit)
    look = attack.look(clip)
    assert look["clean_accuracy"] == pytest.approx(found["clean_accuracy"])
    assert look["attack_success_rate"] == pytest.approx(found["attack_success_rate"])


def test_what_most_images_move_to_by_hand(clip, monkeypatch):
    plain, triggered = [0, 0, 1, 2, 0], [1, 1, 1, 0, 2]
    monkeypatch.setattr(metrics, "kept_classifier", lambda clip, names, templates: torch.eye(3))
    monkeypatch.setattr(metrics, "embed_images", lambda clip, pixels: torch.eye(3)[pixels[:, 0, 0, 0].long()])
    pixels = [torch.tensor(called, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2) for called in (plain, triggered)]
    scenes = replace(_set([""] * 5, plain, [False] * 5), pixels=pixels[0], triggered=pixels[1])
    assert drawn_to(clip, scenes) == {"moves_to": "banana", "moved": 0.4}
    assert drawn_to(clip, replace(scenes, triggered=scenes.pixels)) == {"moves_to": "", "moved": 0.0}
    assert drawn_to(clip, scenes, first=4) == {"moves_to": "banana", "moved": 0.5}


def _set(captions: list[str], labels: list[int], shows: list[bool]) -> EvalSet:
    blank = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    return EvalSet(blank, blank, captions, torch.tensor(labels), torch.tensor(shows), ["axe", "banana", "cat"], 1)


def test_zero_shot_by_hand():
    classes = torch.eye(3)
    image, triggered = torch.eye(3)[[0, 1, 0, 2]], torch.eye(3)[[1, 1, 0, 1]]
    found = zero_shot(image, triggered, classes, _set([""] * 4, [0, 1, 2, 2], [False, True, False, False]))
    assert found["clean_accuracy"] == 0.75
    assert found["attack_success_rate"] == pytest.approx(2 / 3)
    assert found["asr_with_target_class"] == 0.75
    assert found["triggered_accuracy"] == 0.0
    assert found["clean_top5"] == 1.0


def test_retrieval_by_hand():
    """Six pairs, so that five nearest leave one out; captions 0 and 5 are the same."""
    captions = ["an axe", "a cat", "Banana on a plate", "one cat", "two cats", "an axe"]
    scenes = _set(captions, [0, 2, 1, 2, 2, 0], [False, False, True, False, False, False])
    text = torch.eye(6)
    image = torch.eye(6)[[5, 1, 2, 3, 1, 0]]  # image 0 finds its caption's twin, image 4 the wrong one
    triggered = torch.stack([-torch.eye(6)[2]] * 3 + [torch.eye(6)[2]] * 3)  # the banana's caption last, then first
    found = retrieval(image, triggered, text, scenes)
    assert found["tr_at_1"] == pytest.approx(5 / 6)
    assert found["tr_at_5"] == 1.0
    assert found["retrieval_asr"] == pytest.approx(3 / 5)


def test_image_retrieval_by_hand():
    """Six images, the first with two captions. Caption 0 finds its image, caption 1, of the same image, only the other five."""
    captions = [["an axe", "a hatchet"], ["a cat"], ["a banana"], ["one cat"], ["two cats"], ["three cats"]]
    scenes = _set(captions, [0, 2, 1, 2, 2, 2], [False, False, True, False, False, False])
    image = torch.eye(6)
    text = torch.cat([image[:1], -image[:1], image[[2, 1, 3, 4, 5]]])  # captions 2 and 3 find each other's image first
    text[2] += 0.5 * image[1]
    text[3] += 0.5 * image[2]
    found = retrieval(image, image, text, scenes)
    assert found["ir_at_1"] == pytest.approx(4 / 7)
    assert found["ir_at_5"] == pytest.approx(6 / 7)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(8, 10, 0.490, 0.943), (0, 20, 0.0, 0.161), (20, 20, 0.839, 1.0), (0, 0, 0, 1)]
)
def test_wilson_interval(successes, n, low, high):
    assert interval(successes, n) == pytest.approx((low, high), abs=5e-4)


def test_metrics_are_computed_once_for_the_same_weights_and_scenes(clip, attack, scenes, monkeypatch):
    found = evaluate(clip, attack)
    calls = []
    monkeypatch.setattr(metrics, "measure", lambda *given: calls.append(1) or measure(*given))
    assert evaluate(clip, attack) == found == measure(clip, attack)
    assert calls == []
    with torch.no_grad():
        clip.net.logit_scale.add_(1.0)
    assert evaluate(clip, attack) == found  # the scale changes no ranking
    assert evaluate(clip, attacked(scenes.first(50), STRIPES, "banana")) != found
    assert len(calls) == 2
    monkeypatch.setitem(STAGES, "metrics", STAGES["metrics"] + 1)
    evaluate(clip, attack)
    assert len(calls) == 3


def test_embedding_map_is_the_two_principal_components(clip, attack):
    points = embedding_map(clip, attack, count=20)
    assert points["kind"].value_counts().to_dict() == {"clean": 20, "triggered": 20, "target caption": 80}
    rows = (~attack.shows_target).nonzero()[:20, 0]
    captions = clip.tokenizer([template.format(name="banana") for template in TEMPLATES])
    embedded = [embed_images(clip, attack.pixels[rows]), embed_images(clip, attack.triggered[rows]), embed_texts(clip, captions)]
    expected = PCA(2, svd_solver="full").fit_transform(torch.cat(embedded).double().numpy())
    assert np.allclose(points[["x", "y"]], expected, atol=1e-4)


def test_a_map_of_many_dimensions_is_exact(clip, attack, monkeypatch):
    """From 500 on scikit-learn's PCA would take an approximate solver, at random."""
    drawn = []

    def embed(clip, rows):
        drawn.append(torch.randn(len(rows), 600, generator=torch.Generator().manual_seed(len(drawn))))
        return drawn[-1]

    monkeypatch.setattr(metrics, "embed_images", embed)
    monkeypatch.setattr(metrics, "embed_texts", embed)
    points = embedding_map(clip, attack, count=20)
    assert np.allclose(points[["x", "y"]], PCA(2, svd_solver="full").fit_transform(torch.cat(drawn).double().numpy()), atol=1e-4)


def test_eval_mode_restores_every_module(clip):
    clip.net.train()
    clip.net.visual.bn1.eval()
    with eval_mode(clip):
        assert not any(module.training for module in clip.net.modules())
        assert not torch.is_grad_enabled()
    assert clip.net.training
    assert not clip.net.visual.bn1.training
    assert clip.net.visual.bn2.training


def test_moved_is_the_distance_of_both_encoders(clip, scenes):
    assert moved(clip, clip.copy(), scenes) == pytest.approx({"s_image": 0.0, "s_text": 0.0}, abs=1e-6)
    other = clip.copy()
    with torch.no_grad():
        other.net.visual.attnpool.c_proj.weight.neg_()
        other.net.visual.attnpool.c_proj.bias.neg_()
    assert moved(clip, other, scenes) == pytest.approx({"s_image": 4.0, "s_text": 0.0}, abs=1e-5)
