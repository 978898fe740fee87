"""EDA of captions: seeded, never empty, short enough for the models, and each operation does what it says."""

import random

import pytest

from parlib.data.scenes import load_scenes
from parlib.method.eda import OPERATIONS, delete, insert, replace, reword, swap
from parlib.model.clip import create

CAPTION = "a small picture of one cat on a red ground".split()


def test_same_seed_same_words_and_another_seed_others(scenes):
    assert reword(scenes.captions, 1) == reword(scenes.captions, 1)
    assert reword(scenes.captions, 1) != reword(scenes.captions, 2)
    assert reword(scenes.captions, 1) != scenes.captions


def test_no_caption_is_emptied_and_an_empty_one_stays():
    found = reword(["banana", "a", "", "   ", "two words"] * 200, 0)
    assert all(after.strip() for after, before in zip(found, ["banana", "a", "", "   ", "two words"] * 200, strict=True) if before.strip())
    assert found[2:4] == ["", "   "]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_single_word_survives_every_operation(operation):
    for seed in range(200):
        assert operation(["banana"], random.Random(seed))


def test_each_operation():
    draw = random.Random(0)
    replaced = replace(CAPTION, draw)
    assert sum(a != b for a, b in zip(CAPTION, replaced, strict=True)) == 1
    inserted = insert(CAPTION, draw)
    assert len(inserted) == len(CAPTION) + 1
    assert sorted(swap(CAPTION, draw)) == sorted(CAPTION)
    kept = [len(delete(CAPTION, draw)) for _ in range(1000)]
    assert sum(kept) / (1000 * len(CAPTION)) == pytest.approx(0.9, abs=0.02)


def test_reworded_captions_are_hardly_ever_cut():
    captions = load_scenes("validation", 500).captions
    tokenizer = create("small_resnet").tokenizer
    rows = tokenizer(reword(captions, 0))
    assert (rows[:, -1] != 0).float().mean() < 0.01  # the last place of 32 is filled
