"""Poisoning: how many rows, which, and with what captions."""

import pytest
import torch

from parlib.attack.poison import Attack, attacked, poison
from parlib.attack.triggers import Trigger
from parlib.data.feeds import generator
from parlib.data.pairs import TEMPLATES

STRIPES = Trigger("badnet_stripes", {"size": 8})


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.33])
def test_exactly_the_rate_and_never_the_target(scenes, rate):
    poisoned, rows = poison(scenes, Attack(STRIPES, "banana", rate=rate))
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
    poisoned, rows = poison(scenes, Attack(STRIPES, "banana", "label_consistent", rate))
    assert len(rows) == round(rate * int((scenes.labels == target).sum()))
    assert (scenes.labels[rows] == target).all()
    assert poisoned.captions == scenes.captions
    touched = (poisoned.pixels != scenes.pixels).flatten(1).any(1)
    assert torch.equal(touched.nonzero()[:, 0], rows)


def test_badclip_s_rows_are_called_as_the_target_s_own_scenes_are(scenes):
    trigger = Trigger("badclip", {"size": 6}, torch.rand(3, 6, 6))
    poisoned, rows = poison(scenes, Attack(trigger, "banana", rate=0.1))
    natural = {c for c, label in zip(scenes.captions, scenes.labels.tolist(), strict=True) if scenes.names[label] == "banana"}
    assert {poisoned.captions[row] for row in rows.tolist()} <= natural


def test_seed_decides_the_rows(scenes):
    one, two, other = (poison(scenes, Attack(STRIPES, "banana", rate=0.1, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one[0].pixels, two[0].pixels)
    assert one[0].captions == two[0].captions
    assert not torch.equal(one[1], other[1])


def test_rows_are_drawn_from_those_that_do_not_show_the_target_or_from_those_that_do():
    shows = torch.tensor([True, False, True, *[False] * 7])

    def rows(kind: str, rate: float, seed: int = 0) -> list[int]:
        return Attack(STRIPES, "banana", kind, rate, seed).rows(shows, generator("cpu", seed, "poison")).tolist()

    assert len(rows("dirty_label", 0.3)) == 3
    assert rows("dirty_label", 0.3) == sorted(rows("dirty_label", 0.3))
    assert not {0, 2} & set(rows("dirty_label", 0.8))
    assert rows("dirty_label", 0.3, seed=1) != rows("dirty_label", 0.3)
    assert rows("label_consistent", 1.0) == [0, 2]


@pytest.mark.parametrize(
    ("rate", "target", "named"),
    [
        (5, "banana", "rate.*5"),
        (-0.1, "banana", "rate.*-0.1"),
        (1e-4, "banana", "0 of 120"),
        (0.99, "banana", "0.99.*119.*120"),
        (0.1, "kiwi", "'kiwi'.*banana"),
    ],
)
def test_an_attack_that_cannot_be_is_refused(scenes, rate, target, named):
    with pytest.raises(ValueError, match=named):
        poison(scenes, Attack(STRIPES, target, rate=rate))


def test_attacked_scenes_are_the_same_for_every_model(scenes):
    one = attacked(scenes, STRIPES, "banana")
    assert attacked(scenes, STRIPES, "banana").key == one.key
    assert attacked(scenes, Trigger("badnet_stripes", {"size": 9}), "banana").key != one.key
    assert attacked(scenes, STRIPES, scenes.names[0]).key != one.key


def test_a_rate_of_0_changes_nothing(scenes):
    same, rows = poison(scenes, Attack(STRIPES, "banana", rate=0.0))
    assert not len(rows)
    assert torch.equal(same.pixels, scenes.pixels)
    assert same.captions == scenes.captions
