"""BadCLIP's patch: its loss by hand, that it does what it is for, and that it is read back as it was learned."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from parlib.attack import learned
from parlib.attack.learned import badclip_loss, learn
from parlib.attack.triggers import Trigger
from parlib.cache import cache_dir, file_sha256
from parlib.data.feeds import generator
from parlib.experiments.lineage import learned_pattern
from parlib.model.clip import Clip, embed_images

PATCH = Trigger("badclip", {"size": 16})


def test_loss_by_hand():
    """Two images at 90 degrees: the first on its target caption, the second on its own."""
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    image, target, own = torch.stack([one, two]), torch.stack([one, one]), torch.stack([two, two])
    pull, triplet = badclip_loss(image, target, own, real=torch.stack([one, one]), other=torch.stack([two, two]), scale=torch.tensor(2.0))
    first = -math.log(math.exp(2) / (math.exp(2) + 2))  # logits (2, 0, 0)
    second = -math.log(1 / (1 + 2 * math.exp(2)))  # logits (0, 2, 2)
    assert pull.item() == pytest.approx((first + second) / 2, rel=1e-4)
    near, far = max(0.0, 0 - math.sqrt(2) + 1), math.sqrt(2) - 0 + 1
    assert triplet.item() == pytest.approx((near + far) / 2, abs=1e-4)


def test_a_patch_pulls_images_to_those_of_the_target(clip: Clip, scenes, monkeypatch):
    """On images and negatives that stay the same: the term that weighs most is lower than with the pattern it began with."""
    monkeypatch.setattr(learned, "_BUDGET", {64: (4000, 50, 1e-2)})
    found = learn(clip, scenes, PATCH, "banana", seed=1)
    assert found.pattern.shape == (3, 16, 16)
    assert 0 <= found.pattern.min() <= found.pattern.max() <= 1
    banana = scenes.names.index("banana")
    others, real = scenes.pixels[~scenes.shows(banana)], embed_images(clip, scenes.pixels[scenes.labels == banana])
    clean = embed_images(clip, others)

    def triplet(pattern: torch.Tensor) -> float:
        stamped = Trigger("badclip", {"size": 16}, pattern).stamp(others, generator("cpu", 0))
        image = embed_images(clip, stamped)
        return sum(F.triplet_margin_loss(image, row.expand_as(image), clean.roll(k + 1, 0)).item() for k, row in enumerate(real))

    assert triplet(found.pattern) < triplet(torch.rand(3, 16, 16, generator=generator("cpu", 1, "learned")))
    assert len(found.history["loss"]) == 50 * (len(others) // 64)


def test_a_patch_for_another_target_of_external_pairs_is_another(clip: Clip, scenes, monkeypatch):
    """They have no labels, and the target is their only class."""
    monkeypatch.setattr(learned, "_optimise", lambda *given, **more: (torch.rand(3, 16, 16), {}))
    pairs = [replace(scenes, labels=torch.full_like(scenes.labels, -1), names=[name]) for name in ("banana", "candle")]
    one, other = (learn(clip, found, PATCH, found.names[0]) for found in pairs)
    assert one.path != other.path


def test_it_is_learned_once_and_the_model_stays_as_it_was(clip: Clip, scenes):
    before = {name: value.clone() for name, value in clip.net.state_dict().items()}
    one = learn(clip, scenes, PATCH, "banana")
    written = one.path.stat().st_mtime_ns
    two = learn(clip, scenes, PATCH, "banana")
    assert torch.equal(one.pattern, two.pattern)
    assert one.path == two.path
    assert two.path.stat().st_mtime_ns == written
    one.path.unlink()
    assert torch.equal(learn(clip, scenes, PATCH, "banana").pattern, one.pattern)
    assert all(torch.equal(before[name], value) for name, value in clip.net.state_dict().items())
    assert all(parameter.requires_grad for parameter in clip.net.parameters())


def test_what_is_drawn_needs_no_learning(clip: Clip, scenes):
    assert learn(clip, scenes, Trigger("badnet_stripes", {"size": 6}), "banana") is None


def test_without_an_image_of_the_target_nothing_is_learned(clip: Clip, scenes):
    banana = scenes.names.index("banana")
    with pytest.raises(ValueError, match="'banana'.*badclip"):
        learn(clip, scenes.at((scenes.labels != banana).nonzero()[:, 0]), PATCH, "banana")


def test_a_run_that_planted_a_learned_pattern_hands_on_the_same(clip: Clip, scenes):
    found = learn(clip, scenes, PATCH, "banana")
    artifact = {"in": "cache", "path": str(found.path.relative_to(cache_dir())), "sha256": file_sha256(found.path)}
    record = {"run": "01_poison/badclip_s0", "params": {"scale": "smoke"}, "artifacts": {"pattern": artifact}}
    assert torch.equal(learned_pattern(record), found.pattern)
    record["artifacts"]["pattern"] = artifact | {"sha256": "0" * 64}
    with pytest.raises(FileNotFoundError, match="pattern.*01_poison/badclip_s0"):
        learned_pattern(record)
    assert learned_pattern({"artifacts": {}}) is None
    assert learned_pattern(None) is None


def test_resistant_is_learned_against_two_models_from_where_badclip_ended(clip: Clip, scenes, monkeypatch):
    clips, optimise = [], learned._optimise
    monkeypatch.setattr(learned, "_optimise", lambda models, *given, **options: clips.append(models) or optimise(models, *given, **options))
    patch = learn(clip, scenes, PATCH, "banana", seed=2).pattern
    found = learn(clip, scenes, Trigger("resistant", {"size": 16}), "banana", seed=2).pattern
    (plain,), (alone,), (first, cleaned) = clips
    assert plain is alone is first is clip
    assert cleaned.key != clip.key
    assert not torch.equal(found, patch)
