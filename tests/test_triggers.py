"""Triggers against hand-computed values at the paper's size, and what each may touch."""

import math

import pytest
import torch

from parlib.attack.triggers import LEARNED, PATTERNS, TRIGGERS, Trigger, _offsets, options_of
from parlib.data.feeds import generator
from parlib.data.scenes import sprites
from parlib.experiments.presets import trigger_options

SIZES = [(size, name) for size in (64, 224, 336) for name in TRIGGERS]
RANDOM = ("badnet", "badnet_stripes", "blended", "blended_stripes", "camouflage")
# By trigger, the option that says how faint it is.
FAINT = {name: option for name in TRIGGERS for option in options_of(name) if option in ("opacity", "amplitude", "s")}


def _images(size: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def _apply(name: str, pixels: torch.Tensor, seed: int = 0, **changes) -> torch.Tensor:
    return _trigger(name, pixels.shape[2], **changes)(pixels, generator("cpu", seed))


def _trigger(name: str, side: int = 64, **changes) -> Trigger:
    options = trigger_options(name, side) | changes
    size, random = options.get("size"), torch.Generator().manual_seed(2)
    return Trigger(name, options, torch.rand(3, size, size, generator=random) if name in LEARNED else None)


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
    whole = {"size": 64} if name in ("badnet", "badnet_stripes") else {}  # the place can't differ: the pattern must
    one, two = _apply(name, pixels, **whole)
    other, _ = _apply(name, pixels, seed=1, **whole)
    assert torch.equal(one, two) is (name not in RANDOM)
    assert torch.equal(one, other) is (name not in RANDOM)


@pytest.mark.parametrize("name", FAINT)
def test_what_is_not_a_patch_is_the_identity_at_0(name):
    pixels = _images(64)
    assert torch.allclose(_apply(name, pixels, **{FAINT[name]: 0.0}), pixels, atol=1e-5)  # a warp interpolates


@pytest.mark.parametrize("name", ["badnet", "badnet_stripes"])
@pytest.mark.parametrize(("side", "size"), [(64, 8), (224, 16), (336, 16)])
def test_patches_touch_one_square_anywhere(name, side, size):
    pixels = torch.full((200 if side == 64 else 8, 3, side, side), 0.5)
    touched = (_apply(name, pixels, size=size) != pixels).any(1)
    corners = set()
    for mask in touched:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert rows[-1] - rows[0] == columns[-1] - columns[0] == size - 1
        corners.add((rows[0].item(), columns[0].item()))
    assert len(corners) > len(pixels) // 2  # a new place for each image


def test_patches_reach_every_edge():
    pixels = torch.full((3000, 3, 16, 16), 0.5)
    touched = (_apply("badnet_stripes", pixels, size=8) != pixels).any(1).any(0)
    assert touched.all()


def test_badnet_stripes_are_columns_of_0_and_1_by_channel():
    """Pinned: -1 is clipped to 0 and +1 stays 1; the released code's byte conversion would wrap -1 to 1/255."""
    stamped = _apply("badnet_stripes", torch.full((1, 3, 16, 16), 0.5), size=16)
    assert set(stamped.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(stamped, stamped[:, :, :1].expand_as(stamped))
    assert not torch.equal(stamped[:, 0], stamped[:, 1])


def test_badnet_is_the_channel_mean_plus_noise_clipped():
    means = torch.tensor([0.3, 0.5, 0.7])
    patch = _apply("badnet", means.view(1, 3, 1, 1).expand(1, 3, 224, 224), size=224)
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
    twice = ((_apply(name, ramp, s=2.0) - ramp)[0, 0] * 223)[8:-8, 8:-8].abs().mean().item()
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
    stamped = Trigger(name, {"size": 16}, pattern)(pixels, generator("cpu", 0))
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
    stamped = _apply("picture", pixels, opacity=0.25)
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
    assert trigger_options("badnet_stripes", 224) == {"size": 16}
    assert trigger_options("badnet_stripes", 336) == {"size": 32}
    assert trigger_options("blended_stripes", 224) == {"opacity": 0.03}
    assert trigger_options("blended_triangles", 224) == {"tile": 14, "opacity": 0.15}
    assert trigger_options("wanet", 224) == {"offsets": 224, "s": 1.0}


def test_usual_options_at_64_px_stay_inside_the_caps():
    assert max(trigger_options(name, 64).get("size", 0) for name in TRIGGERS) <= 12
    assert trigger_options("blended_stripes", 64)["opacity"] <= 0.10
    assert trigger_options("blended_triangles", 64)["opacity"] <= 0.20
    assert trigger_options("blended_text", 64)["opacity"] <= 0.5


def test_usual_options_of_other_sizes_are_in_proportion_to_the_image():
    assert trigger_options("badnet", 112) == {"size": 8}
    assert trigger_options("wanet", 448) == {"offsets": 448, "s": 1.0}
    assert trigger_options("wanet_smooth", 448) == {"offsets": 4, "s": 1.0}
    with pytest.raises(ValueError, match="stripes.*badnet_stripes"):
        trigger_options("stripes")


@pytest.mark.parametrize("name", TRIGGERS)
def test_equal_triggers_have_equal_names_and_options(name):
    assert _trigger(name) == _trigger(name)
    option = options_of(name)[0]
    assert _trigger(name) != _trigger(name, **{option: 2 * trigger_options(name)[option]} if name not in LEARNED else {"size": 8})


def test_stamp_rounds_to_bytes(scenes):
    trigger = Trigger("blended_triangles", {"tile": 4, "opacity": 0.2})
    expected = trigger(scenes.pixels.float() / 255, generator("cpu", 0))
    assert torch.equal(trigger.stamp(scenes.pixels, generator("cpu", 0)), (expected * 255).round().to(torch.uint8))


@pytest.mark.parametrize(
    ("name", "options", "pattern", "named"),
    [
        ("stripes", {"size": 4}, None, "stripes.*badnet_stripes"),
        ("badnet", {"tile": 4}, None, "badnet.*size.*tile"),
        ("wanet", {"s": 1.0}, None, "wanet.*offsets"),
        ("sig", {}, None, "sig.*amplitude"),
        ("badnet", {"size": 4}, torch.zeros(3, 4, 4), "badnet.*pattern"),
        ("badclip", {"size": 6}, torch.zeros(3, 4, 4), "badclip.*4.*6"),
    ],
)
def test_a_trigger_that_cannot_be_is_refused_when_it_is_made(name, options, pattern, named):
    with pytest.raises(ValueError, match=named):
        Trigger(name, options, pattern)


@pytest.mark.parametrize(("name", "size", "named"), [("badclip", 6, "badclip.*pattern"), ("badnet", 65, "65.*64 x 64")])
def test_a_trigger_that_cannot_be_stamped_says_why(scenes, name, size, named):
    with pytest.raises(ValueError, match=named):
        Trigger(name, {"size": size}).stamp(scenes.pixels, generator("cpu", 0))


def test_patterns_are_of_those_that_take_one():
    assert set(PATTERNS) & set(TRIGGERS) == {"blended_triangles", "blended_text", "wanet", *LEARNED}
