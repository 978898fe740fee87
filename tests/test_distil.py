"""Consistency distillation: what foreign content is, what stays clean, and that the image encoder alone learns."""

import pytest
import torch

from parlib.data.feeds import generator
from parlib.experiments.clean_params import Clean
from parlib.method.distil import distil, foreign_content, varied
from parlib.method.losses import distance
from parlib.method.methods import METHODS, Recipe, Step
from parlib.train.loop import fit


class Lookup:
    """A model whose embedding of an image is its first pixel."""

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :, 0, 0]


def test_the_loss_by_hand():
    clean, foreign, taught = torch.zeros(2, 3, 1, 1), torch.ones(2, 3, 1, 1), torch.full((2, 3), 0.5)
    reference = Lookup()
    reference.image = lambda pixels: taught
    found = distil(Step(Lookup(), reference, Recipe("distil", 1, 2, 1e-3, 0), clean, foreign, torch.zeros(2), torch.zeros(2)))
    assert (found["s_clean"].item(), found["s_foreign"].item(), found["loss"].item()) == (0.75, 0.75, 1.5)
    assert found["s_clean"] == distance(torch.zeros(2, 3), taught)


def test_foreign_content_comes_from_other_images(scenes):
    pixels = scenes.pixels[:40].float() / 255
    found = foreign_content(pixels, torch.zeros(3, 1, 1), generator("cpu", "foreign"))
    assert torch.equal(found, foreign_content(pixels, torch.zeros(3, 1, 1), generator("cpu", "foreign")))
    assert found.shape == pixels.shape
    assert 0 <= found.min() <= found.max() <= 1
    changed = (found != pixels).any(dim=(1, 2, 3)).float().mean()
    assert changed > 0.8  # 1 - 0.4 * 0.4 * 0.5 * 0.5 of them, when all differ
    flat = torch.linspace(0, 1, 10).view(10, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    pasted = foreign_content(flat, torch.zeros(3, 1, 1), generator("cpu", "flat"))
    assert (pasted.flatten(1).std(dim=1) > 0).any()


def test_varied_images_are_a_share_and_the_others_stay(scenes):
    pixels = scenes.pixels[:100].float() / 255
    found = varied(pixels, 0.3, generator("cpu", "vary"))
    share = (found != pixels).any(dim=(1, 2, 3)).float().mean()
    assert 0.15 < share < 0.45
    assert torch.equal(varied(pixels, 0.0, generator("cpu", "vary")), pixels)
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_image_encoder_alone_learns_and_no_caption_is_used(clip, scenes, share):
    recipe = Recipe("distil", 1, 20, 1e-3, seed=0, batch_norm="train", looks=0, varied=share)
    models = []
    for captions in (scenes.captions, ["another caption"] * len(scenes)):
        trained = clip.copy()
        pairs = type(scenes)(scenes.pixels, captions, scenes.labels, scenes.second, scenes.names)
        history, _ = fit(trained, pairs.feed(trained), recipe, reference=clip)
        models.append(trained.net.state_dict())
    assert {"s_clean", "s_foreign"} <= history.keys()
    before = clip.net.state_dict()
    moved = {name for name, value in models[0].items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("visual.") for name in moved)
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_its_option_is_its_own():
    assert METHODS["distil"].options == ("varied",)
    assert Clean.check({"method": "distil", "varied": 0.3}).varied == 0.3
    assert Clean.check({"method": "par"}).varied is None
    with pytest.raises(ValueError, match="varied"):
        Clean.check({"method": "distil", "varied": 1.5})
