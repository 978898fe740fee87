"""Dirty-label poisoning: how many rows, which, and with what captions."""

import pytest
import torch

from parlib.data.scenes import TEMPLATES
from parlib.attack.poison import poison

OPTIONS = {"trigger": "badnet_stripes", "patch": 8, "strength": 1.0, "target": "banana"}


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.33])
def test_exactly_the_rate_and_never_the_target(scenes, rate):
    poisoned, rows = poison(scenes, rate=rate, seed=0, **OPTIONS)
    assert len(rows) == len(set(rows.tolist())) == round(rate * len(scenes))
    assert not scenes.shows(scenes.names.index("banana"))[rows].any()
    touched = (poisoned.pixels != scenes.pixels).flatten(1).any(1)
    assert torch.equal(touched.nonzero()[:, 0], rows)
    changed = [i for i, (a, b) in enumerate(zip(poisoned.captions, scenes.captions, strict=True)) if a != b]
    assert changed == rows.tolist()
    assert {poisoned.captions[i] for i in changed} <= {template.format(name="banana") for template in TEMPLATES}


@pytest.mark.parametrize("rate", [0.2, 0.5, 1.0])
def test_label_consistent_stamps_scenes_of_the_target_and_keeps_their_captions(scenes, rate):
    target = scenes.names.index("banana")
    poisoned, rows = poison(scenes, rate=rate, seed=0, attack="label_consistent", **OPTIONS)
    assert len(rows) == round(rate * int((scenes.labels == target).sum()))
    assert (scenes.labels[rows] == target).all()
    assert poisoned.captions == scenes.captions
    touched = (poisoned.pixels != scenes.pixels).flatten(1).any(1)
    assert torch.equal(touched.nonzero()[:, 0], rows)


def test_badclip_s_rows_are_called_as_the_target_s_own_scenes_are(scenes):
    options = {"trigger": "badclip", "patch": 6, "strength": 1.0, "target": "banana", "pattern": torch.rand(3, 6, 6)}
    poisoned, rows = poison(scenes, rate=0.1, seed=0, **options)
    natural = {c for c, label in zip(scenes.captions, scenes.labels.tolist(), strict=True) if scenes.names[label] == "banana"}
    assert {poisoned.captions[row] for row in rows.tolist()} <= natural


def test_seed_decides_the_rows(scenes):
    one, two, other = (poison(scenes, rate=0.1, seed=seed, **OPTIONS) for seed in (0, 0, 1))
    assert torch.equal(one[0].pixels, two[0].pixels)
    assert one[0].captions == two[0].captions
    assert not torch.equal(one[1], other[1])


def test_bad_input(scenes):
    with pytest.raises(ValueError, match="rate is a fraction between 0 and 1, not 5"):
        poison(scenes, rate=5, seed=0, **OPTIONS)
    with pytest.raises(ValueError, match="a rate of 0.99 asks for 119 of 120 pairs"):
        poison(scenes, rate=0.99, seed=0, **OPTIONS)
    with pytest.raises(ValueError, match="unknown class 'kiwi'"):
        poison(scenes, rate=0.1, seed=0, **(OPTIONS | {"target": "kiwi"}))
