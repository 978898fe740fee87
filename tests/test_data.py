"""The embedded scenes: deterministic, disjoint, captioned within the tokeniser's length."""

import pytest
import torch

from parlib.cache import atomic_file, digest
from parlib.data import scenes as drawn
from parlib.data.pairs import TEMPLATES, Pairs, class_index, names_class
from parlib.data.scenes import class_names, draw_scenes, load_scenes, write_captions


def test_same_seed_draws_the_same_scenes():
    one, two = (draw_scenes(20, class_names(10), seed=3) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = draw_scenes(20, class_names(10), seed=4)
    assert not torch.equal(one["pixels"], other["pixels"])


def test_cached_scenes_are_those_drawn(scenes):
    again = load_scenes("train", 120, classes=10)
    anew = draw_scenes(120, class_names(10), seed=0)
    assert torch.equal(scenes.pixels, again.pixels)
    assert torch.equal(scenes.pixels, anew["pixels"])
    assert scenes.captions == again.captions


def test_no_scene_is_in_two_splits():
    seen = [digest(pixels) for split in drawn.SPLITS for pixels in load_scenes(split, 60, classes=10).pixels]
    assert len(seen) == len(set(seen)) == 240


def test_two_hundred_classes_with_banana():
    names = class_names()
    assert len(names) == len(set(names)) == 200
    assert "banana" in names
    assert "banana" in class_names(10)
    assert sum("banana" in name for name in names) == 1


def test_about_a_third_of_the_scenes_have_a_second_object_and_captions_say_so():
    pairs = load_scenes("validation", 2000)
    share = (pairs.second >= 0).float().mean().item()
    assert share >= 0.30
    named = [pairs.names[second] in caption for second, caption in zip(pairs.second, pairs.captions, strict=True) if second >= 0]
    assert 0.6 < sum(named) / len(named) < 0.95  # some captions leave it out
    assert all(pairs.names[label] in caption for label, caption in zip(pairs.labels, pairs.captions, strict=True))
    assert sum(any(f"{colour}" in caption for colour in drawn.COLOURS) for caption in pairs.captions) > 800


def test_no_caption_and_no_prompt_is_cut(clip):
    """Also the longest that the templates can make: a token row that ends in padding lost nothing."""
    pairs, names = load_scenes("train", 2000), class_names()
    longest = max(names, key=lambda name: len(clip.tokenizer([name])[0].nonzero()))
    words = {"name": longest, "second": longest, "colour": "orange", "texture": "cloudy"}
    worst = [(caption + second).format(**words) for caption in drawn.CAPTIONS + TEMPLATES for second in drawn.SECOND]
    prompts = [template.format(name=name) for name in names for template in TEMPLATES]
    for texts in (pairs.captions, worst, prompts):
        assert (clip.tokenizer(texts)[:, -1] == 0).all()


def test_articles():
    scenes = {"labels": [0, 1, 2], "second": [-1] * 3, "colour": [1, 0, 0], "texture": [0] * 3, "wording": [1] * 3, "suffix": [0] * 3}
    captions = write_captions({k: torch.tensor(v) for k, v in scenes.items()}, ["owl", "unicorn face", "european castle"])
    assert captions == ["an owl on an orange ground", "a unicorn face on a red ground", "a european castle on a red ground"]


def test_shows_counts_both_roles(scenes):
    target = scenes.names.index("banana")
    shown = scenes.shows(target)
    assert shown.sum() == sum(
        banana in (label, second)
        for banana in [target]
        for label, second in zip(scenes.labels.tolist(), scenes.second.tolist(), strict=True)
    )


def test_without_labels_a_class_is_shown_where_a_caption_names_it():
    captions, none = ["A Banana", ["a cat", "two bananas"], ["a cat"], "a cat"], torch.full((4,), -1)
    pairs = Pairs(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), captions, none, none, ["banana"])
    assert pairs.shows(0).tolist() == [True, True, False, False]
    assert names_class("One BANANA", "banana")
    assert not names_class("a cat", "banana")
    assert names_class(["a dog", "two foxes"], "fox")
    assert names_class("banana_01.jpg", "banana")
    assert not names_class("an elephant beside a croissant", "ant")


def test_more_pairs_than_there_are_are_an_error(scenes):
    assert scenes.first(3).captions == scenes.captions[:3]
    assert scenes.at(torch.tensor([5, 2])).captions == [scenes.captions[5], scenes.captions[2]]
    with pytest.raises(ValueError, match="121.*120"):
        scenes.first(121)


def test_bad_names_are_named():
    with pytest.raises(ValueError, match="'dev'.*train, clean"):
        load_scenes("dev", 10)
    with pytest.raises(ValueError, match="'kiwi'.*banana"):
        class_index("kiwi", class_names(10))


def test_interrupted_write_leaves_nothing(tmp_path):
    path = tmp_path / "scenes.safetensors"

    def write():
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []
