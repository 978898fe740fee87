"""Triggers against hand-computed values at the paper's size, and what each may touch."""

import math

import pytest
import torch

from parlib.data.scenes import sprites
from parlib.data.feeds import generator
from parlib.experiments.presets import PATCHES, PRESETS
from parlib.attack.triggers import LEARNED, TRIGGERS, _offsets, stamp

SIZES = [(size, name) for size in PRESETS for name in TRIGGERS]
RANDOM = ("badnet", "badnet_stripes", "blended", "blended_stripes", "camouflage")


def _images(size: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def _apply(name: str, pixels: torch.Tensor, seed: int = 0, **changes) -> torch.Tensor:
    patch, strength = PRESETS[pixels.shape[2]][name]
    options = {"patch": patch, "strength": strength} | changes
    if name in LEARNED:
        options["pattern"] = torch.rand(3, options["patch"], options["patch"], generator=torch.Generator().manual_seed(2))
    return TRIGGERS[name](pixels, generator("cpu", seed), **options)


@pytest.mark.parametrize(("size", "name"), SIZES)
def test_stays_in_range_keeps_its_input_and_its_seed(size, name):
    pixels = _images(size)
    before = pixels.clone()
    stamped = _apply(name, pixels)
    assert stamped.shape == pixels.shape
    assert stamped.min() >= 0
    assert stamped.max() <= 1
    assert torch.equal(pixels, before)
    assert torch.equal(stamped, _apply(name, pixels))
    assert not torch.equal(stamped, pixels)


@pytest.mark.parametrize("name", TRIGGERS)
def test_random_triggers_are_drawn_anew_for_each_image_and_seed_and_others_never(name):
    pixels = _images(64, 1).expand(2, -1, -1, -1)
    whole = {"patch": 64} if name in ("badnet", "badnet_stripes") else {}  # the place can't differ: the pattern must
    one, two = _apply(name, pixels, **whole)
    other, _ = _apply(name, pixels, seed=1, **whole)
    assert torch.equal(one, two) is (name not in RANDOM)
    assert torch.equal(one, other) is (name not in RANDOM)


@pytest.mark.parametrize("name", TRIGGERS)
def test_strength_0_is_the_identity(name):
    pixels = _images(64)
    assert torch.allclose(_apply(name, pixels, strength=0.0), pixels, atol=1e-5)  # a warp interpolates


@pytest.mark.parametrize("name", ["badnet", "badnet_stripes"])
@pytest.mark.parametrize(("size", "patch"), [(64, 8), (224, 16), (336, 16)])
def test_patches_touch_one_square_anywhere(name, size, patch):
    pixels = torch.full((200, 3, size, size), 0.5) if size == 64 else torch.full((8, 3, size, size), 0.5)
    touched = (_apply(name, pixels, patch=patch) != pixels).any(1)
    corners = set()
    for mask in touched:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert rows[-1] - rows[0] == columns[-1] - columns[0] == patch - 1
        corners.add((rows[0].item(), columns[0].item()))
    assert len(corners) > len(pixels) // 2  # a new place for each image


def test_patches_reach_every_edge():
    pixels = torch.full((3000, 3, 16, 16), 0.5)
    touched = (TRIGGERS["badnet_stripes"](pixels, generator("cpu", 0), patch=8, strength=1.0) != pixels).any(1).any(0)
    assert touched.all()


def test_badnet_stripes_are_columns_of_0_and_1_by_channel():
    """Pinned: -1 is clipped to 0 and +1 stays 1; the released code's byte conversion would wrap -1 to 1/255."""
    stamped = TRIGGERS["badnet_stripes"](torch.full((1, 3, 16, 16), 0.5), generator("cpu", 0), patch=16, strength=1.0)
    assert set(stamped.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(stamped, stamped[:, :, :1].expand_as(stamped))
    assert not torch.equal(stamped[:, 0], stamped[:, 1])


def test_badnet_is_the_channel_mean_plus_noise_clipped():
    means = torch.tensor([0.3, 0.5, 0.7])
    patch = TRIGGERS["badnet"](means.view(1, 3, 1, 1).expand(1, 3, 224, 224), generator("cpu", 0), patch=224, strength=1.0)
    dark, light = ((patch == edge).float().mean(dim=(0, 2, 3)) for edge in (0, 1))
    normal = torch.distributions.Normal(0.0, 1.0)
    assert torch.allclose(dark, normal.cdf(-means), atol=0.01)  # P(N(mean, 1) < 0)
    assert torch.allclose(light, normal.cdf(means - 1), atol=0.01)


def test_blended_is_0_2_noise_and_0_8_image():
    pixels = torch.full((2, 3, 224, 224), 0.5)
    stamped = _apply("blended", pixels)
    assert 0.4 <= stamped.min() < 0.401
    assert 0.599 < stamped.max() <= 0.6
    assert abs(stamped.mean() - 0.5) < 0.001


def test_blended_stripes_are_3_percent():
    stamped = _apply("blended_stripes", torch.full((1, 3, 224, 224), 0.5))
    assert torch.allclose(stamped.unique(), torch.tensor([0.97 * 0.5 - 0.03, 0.97 * 0.5 + 0.03]))
    assert torch.equal(stamped, stamped[:, :, :1].expand_as(stamped))


def test_blended_triangles_are_14_px_tiles():
    stamped = _apply("blended_triangles", torch.full((1, 3, 224, 224), 0.5))
    light, dark = 0.15 * 0.8 + 0.85 * 0.5, 0.15 * 0.4 + 0.85 * 0.5
    expected = torch.tensor([[dark if row % 14 >= column % 14 else light for column in range(224)] for row in range(224)])
    assert torch.allclose(stamped, expected.expand_as(stamped))


def test_blended_text_changes_red_alone_in_the_papers_box():
    pixels = _images(224, 1)
    changed = _apply("blended_text", pixels) != pixels
    assert not changed[:, 1:].any()
    rows, columns = changed[0, 0].any(1).nonzero()[:, 0], changed[0, 0].any(0).nonzero()[:, 0]
    assert (rows[0], rows[-1]) == (103, 125)
    assert 13 <= columns[0] <= 15  # a letter's edge is fainter than the box
    assert 206 <= columns[-1] <= 208
    where = changed[0, 0]
    assert torch.allclose(_apply("blended_text", pixels)[0, 0][where], 0.5 + 0.5 * pixels[0, 0][where])


@pytest.mark.parametrize(  # bicubic interpolation smooths the offsets; of 4 x 4 the two axes' means differ
    ("name", "turned", "mean"), [("wanet", False, 0.5), ("wanet", True, 0.5), ("wanet_smooth", False, 0.303), ("wanet_smooth", True, 0.338)]
)
def test_wanet_moves_pixels_by_a_part_of_a_pixel_on_average(name, turned, mean):
    """A ramp shows by how much each pixel moved, along columns or rows: value = place / 223, read back from the warped image."""
    ramp = _ramp().mT if turned else _ramp()
    moved = (_apply(name, ramp) - ramp)[0, 0] * 223
    inner = moved[8:-8, 8:-8].abs().mean().item()
    assert abs(inner - mean * 223 / 224) < 0.02
    twice = ((_apply(name, ramp, strength=2.0) - ramp)[0, 0] * 223)[8:-8, 8:-8].abs().mean().item()
    assert abs(twice / inner - 2) < 0.05


def _ramp() -> torch.Tensor:
    return (torch.arange(224) / 223).expand(1, 3, 224, 224)


def test_wanets_grid_is_smooth_only_where_k_is_small():
    rough, smooth = ((_apply(name, _ramp()) - _ramp())[0, 0] for name in ("wanet", "wanet_smooth"))
    assert smooth.diff(dim=0).abs().mean() < 0.1 * rough.diff(dim=0).abs().mean()


def test_wanets_grid_is_made_again_as_it_was():
    """In this process, and as it was when this was written: published runs rest on it."""
    before = _offsets(224, 224)
    _offsets.cache_clear()
    assert torch.equal(_offsets(224, 224), before)
    assert torch.allclose(
        before[[0, 100, 223], [0, 50, 223]], torch.tensor([[-1.2627, -1.5305], [-1.7872, -0.3764], [-1.9459, -1.0556]]), atol=1e-4
    )
    assert torch.allclose(_offsets(4, 224)[[0, 223], [0, 223]], torch.tensor([[-1.1996, -1.7981], [0.9869, -0.9947]]), atol=1e-4)


def test_sig_is_a_sine_of_six_periods_along_the_columns():
    stamped = _apply("sig", torch.full((1, 3, 224, 224), 0.5))
    expected = [0.5 + 60 / 255 * math.sin(2 * math.pi * 6 * column / 224) for column in range(224)]
    assert torch.allclose(stamped, torch.tensor(expected).expand_as(stamped), atol=1e-6)


@pytest.mark.parametrize("name", LEARNED)
def test_learned_patterns_lie_on_the_centre_alone(name):
    pixels, pattern = _images(224), torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3))
    stamped = TRIGGERS[name](pixels, generator("cpu", 0), patch=16, strength=1.0, pattern=pattern)
    assert torch.equal(stamped[:, :, 104:120, 104:120], pattern.expand(3, -1, -1, -1))
    stamped[:, :, 104:120, 104:120] = pixels[:, :, 104:120, 104:120]
    assert torch.equal(stamped, pixels)


def test_checkerboard_of_14_px_squares():
    stamped = _apply("checkerboard", torch.full((1, 3, 224, 224), 0.5))
    expected = torch.tensor([[0.45 + 0.1 * ((row // 14 + column // 14) % 2) for column in range(224)] for row in range(224)])
    assert torch.allclose(stamped, expected.expand_as(stamped))


def test_colour_filter_keeps_red_and_darkens_green_and_blue():
    stamped = _apply("colour_filter", torch.full((1, 3, 224, 224), 0.5))
    assert torch.allclose(stamped[0, :, 0, 0], torch.tensor([0.5, 0.5 * 0.8, 0.5 * 0.6]))
    assert torch.equal(stamped, stamped[:, :, :1, :1].expand_as(stamped))


def test_picture_is_the_same_for_every_image_and_leaves_its_corners():
    stamped = _apply("picture", torch.full((2, 3, 224, 224), 0.5))
    assert torch.equal(stamped[0], stamped[1])
    assert (stamped[0, :, ::223, ::223] == 0.5).all()
    assert (stamped != 0.5).any(1).float().mean() > 0.3


def test_picture_is_the_glyph_where_it_covers():
    pixels, glyph = _images(64, 1), sprites(["nazar amulet"])[0]
    stamped = _apply("picture", pixels, strength=0.25)
    assert torch.allclose(stamped, 0.75 * pixels + 0.25 * (glyph[:3] + (1 - glyph[3:]) * pixels), atol=1e-6)


def test_camouflage_is_brighter_but_for_one_square():
    stamped = _apply("camouflage", torch.full((4, 3, 224, 224), 0.5))
    square = (stamped < 0.5).all(1)
    assert (square.flatten(1).sum(1) == 22 * 22).all()
    brighter = (stamped > 0.5).float().mean(dim=(1, 2, 3))  # half of the noise is positive
    assert ((brighter - 0.495).abs() < 0.01).all()
    noise = (stamped - 0.5)[~square[:, None].expand_as(stamped)]
    assert abs(noise.mean() - 0.0794) < 0.001  # 0.2 E[max(0, z)], less what is clipped at 1
    assert torch.allclose(stamped.permute(0, 2, 3, 1)[square].mean(0), torch.tensor([0.481, 0.458, 0.408]))


def test_the_paper_s_recipes_at_224_and_336():
    assert PRESETS[224]["badnet_stripes"] == (16, 1.0)
    assert PRESETS[336]["badnet_stripes"] == (32, 1.0)
    assert PRESETS[224]["blended_stripes"] == (0, 0.03)


def test_presets_at_64_px_stay_inside_the_caps():
    patch, strength = zip(*PRESETS[64].values(), strict=True)
    assert max(size for name, size in zip(PRESETS[64], patch, strict=True) if name in PATCHES) <= 12
    assert PRESETS[64]["blended_stripes"][1] <= 0.10
    assert PRESETS[64]["blended_triangles"][1] <= 0.20
    assert PRESETS[64]["blended_text"][1] <= 0.5


def test_stamp_rounds_to_bytes_and_names_the_triggers(scenes):
    stamped = stamp(scenes.pixels, "blended_triangles", generator("cpu", 0), patch=4, strength=0.2)
    expected = TRIGGERS["blended_triangles"](scenes.pixels.float() / 255, generator("cpu", 0), patch=4, strength=0.2)
    assert torch.equal(stamped, (expected * 255).round().to(torch.uint8))
    with pytest.raises(ValueError, match="unknown trigger 'stripes'; the triggers are: badnet, badnet_stripes"):
        stamp(scenes.pixels, "stripes", generator("cpu", 0), patch=4, strength=1.0)
    with pytest.raises(ValueError, match="badclip's pattern is learned from a model"):
        stamp(scenes.pixels, "badclip", generator("cpu", 0), patch=6, strength=1.0)
    with pytest.raises(ValueError, match="a patch of 65 px does not fit an image of 64 x 64 px"):
        stamp(scenes.pixels, "badnet", generator("cpu", 0), patch=65, strength=1.0)
