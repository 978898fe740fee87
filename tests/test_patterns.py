"""Patterns that others published: read as they lie, stamped as their authors do, refused where they don't fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from parlib.attack.triggers import Trigger
from parlib.cache import file_sha256
from parlib.data.feeds import generator
from parlib.experiments.clean_params import Clean
from parlib.experiments.poison import Poison
from parlib.external.patterns import read_pattern

OUTSIDE = {"poisoned": "local-dir:x", "data": "csv:x", "evaluation": "imagenet:x"}  # for encoders of other sizes than the scenes'


def _word(side: int) -> torch.Tensor:
    """(side, side) coverage: a column, whole at its top, fainter below, and one hardly covered pixel. No transpose of itself."""
    word = torch.zeros(side, side)
    word[5:25, 40] = 1.0
    word[25:30, 40] = 0.25
    word[50, 3] = 0.004
    return word


def _red(side: int) -> torch.Tensor:
    """(side, side, 3): the same in pure red on black, as the authors keep theirs."""
    return torch.stack([_word(side), torch.zeros(side, side), torch.zeros(side, side)], dim=2)


def _triangles(side: int) -> torch.Tensor:
    """(3, side, side): 0.4 and 0.8, other in each channel, and none a transpose of itself."""
    axis = torch.arange(side) % 14
    tiles = torch.where(axis[:, None] >= axis[None, :], 0.4, 0.8)
    return torch.stack([tiles, tiles.roll(3, 0), tiles.roll(5, 0)])


def _grid(k: int, right: float, down: float) -> torch.Tensor:
    """(1, k, k, 2): the same offset everywhere, of mean size 1 where right + down is 2."""
    return torch.tensor([right, down]).expand(1, k, k, 2).clone()


def _saved(found: torch.Tensor, path: Path) -> Path:
    if path.suffix == ".npy":
        np.save(path, found.numpy())
    elif path.suffix == ".pt":
        torch.save(found, path)
    else:
        Image.fromarray((found * 255).round().to(torch.uint8).numpy()).save(path)
    return path


def _images(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def _stamped(name: str, pixels: torch.Tensor, pattern: torch.Tensor, **options: float) -> torch.Tensor:
    return Trigger(name, options, pattern)(pixels, generator("cpu", 0))


@pytest.mark.parametrize("side", [224, 336])
@pytest.mark.parametrize(
    ("name", "lies"),
    [
        ("word.pt", lambda red: red),
        ("first.pt", lambda red: red.permute(2, 0, 1)),
        ("one.pt", lambda red: red[None]),
        ("old.npy", lambda red: red),
        ("grey.pt", lambda red: red[:, :, 0]),
        ("wide.pt", lambda red: red.double()),
    ],
)
def test_a_word_in_red_is_read_as_its_coverage(tmp_path, side, name, lies):
    found = read_pattern(_saved(lies(_red(side)), tmp_path / name), "blended_text", side)
    assert found.dtype == torch.float32
    assert torch.equal(found, _word(side))


def test_a_word_may_be_an_image_or_a_mask(tmp_path):
    found = read_pattern(_saved(_red(64), tmp_path / "word.png"), "blended_text", 64)
    assert torch.allclose(found, _word(64), atol=0.5 / 255)
    assert torch.equal(read_pattern(_saved(_red(64) == 1, tmp_path / "mask.pt"), "blended_text", 64), (_word(64) == 1).float())


def test_a_word_s_edges_take_less_than_the_opacity(tmp_path):
    pattern, pixels = read_pattern(_saved(_red(224), tmp_path / "word.pt"), "blended_text", 224), _images(224)
    stamped = _stamped("blended_text", pixels, pattern, opacity=0.5)
    assert torch.equal(stamped[:, 1:], pixels[:, 1:])
    assert torch.allclose(stamped[:, 0, 5:25, 40], 0.5 + 0.5 * pixels[:, 0, 5:25, 40])
    assert torch.allclose(stamped[:, 0, 25:30, 40], 0.125 + 0.5 * pixels[:, 0, 25:30, 40])
    assert torch.allclose(stamped[:, 0, 50, 3], 0.002 + 0.5 * pixels[:, 0, 50, 3])
    assert (stamped != pixels).any(1)[0].nonzero().tolist() == [*([row, 40] for row in range(5, 30)), [50, 3]]


@pytest.mark.parametrize("side", [224, 336])
@pytest.mark.parametrize("lies", [lambda tiles: tiles, lambda tiles: tiles[None]], ids=["3hw", "13hw"])
def test_triangles_are_read_channel_by_channel(tmp_path, side, lies):
    found = read_pattern(_saved(lies(_triangles(side)), tmp_path / "triangles.pt"), "blended_triangles", side)
    assert torch.equal(found, _triangles(side))
    pixels = _images(side)
    expected = torch.tensor([0.15, 0.15, 0.15])[:, None, None] * _triangles(side) + 0.85 * pixels
    assert torch.allclose(_stamped("blended_triangles", pixels, found, tile=14, opacity=0.15), expected)


def test_triangles_may_be_grey_and_leave_out_what_is_0(tmp_path):
    tiles = _triangles(64)[1]
    tiles[10, 20] = 0
    pattern, pixels = read_pattern(_saved(tiles, tmp_path / "grey.pt"), "blended_triangles", 64), _images(64)
    stamped = _stamped("blended_triangles", pixels, pattern, tile=4, opacity=0.15)
    assert torch.equal(stamped[:, :, 10, 20], pixels[:, :, 10, 20])
    assert torch.allclose(stamped[:, :, 20, 10], 0.15 * tiles[20, 10] + 0.85 * pixels[:, :, 20, 10])


def test_our_own_triangles_are_those_of_a_file(tmp_path):
    axis, pixels = torch.arange(224) % 14, _images(224)
    tiles = torch.where(axis[:, None] >= axis[None, :], 0.4, 0.8).expand(3, -1, -1).clone()
    pattern = read_pattern(_saved(tiles, tmp_path / "tiles.pt"), "blended_triangles", 224)
    options = {"tile": 14, "opacity": 0.15}
    drawn = Trigger("blended_triangles", options)(pixels, generator("cpu", 0))
    assert torch.equal(_stamped("blended_triangles", pixels, pattern, **options), drawn)


@pytest.mark.parametrize("k", [64, 32])  # as many offsets as pixels, and fewer, which are interpolated
@pytest.mark.parametrize("down", [0.0, 2.0])
def test_a_grid_moves_right_then_down(tmp_path, k, down):
    """A constant offset of 2, by s * 2 / side of half an image's 63 steps: with s = 64 / 63 just 1 px."""
    pixels = _images(64)
    pattern = read_pattern(_saved(_grid(k, 2 - down, down), tmp_path / "grid.pt"), "wanet", 64)
    assert pattern.shape == (k, k, 2)
    stamped = _stamped("wanet", pixels, pattern, offsets=k, s=64 / 63)
    expected = torch.cat([pixels[:, :, 1:], pixels[:, :, -1:]], dim=2) if down else torch.cat([pixels[..., 1:], pixels[..., -1:]], dim=3)
    assert torch.allclose(stamped, expected, atol=1e-4)


def test_a_grid_s_rows_are_the_image_s(tmp_path):
    """Only the upper rows' offsets are other than 0."""
    grid, pixels = _grid(64, 2.0, 0.0), _images(64)
    grid[:, 20:] = 0
    pattern = read_pattern(_saved(grid, tmp_path / "noise_grid.pt"), "wanet", 64)
    stamped = _stamped("wanet", pixels, pattern, offsets=64, s=64 / 63)
    assert torch.allclose(stamped[:, :, :20, :-1], pixels[:, :, :20, 1:], atol=1e-4)
    assert torch.allclose(stamped[:, :, 20:], pixels[:, :, 20:], atol=1e-4)


def test_a_random_grid_as_wanet_makes_it_is_read_whole(tmp_path):
    drawn = 2 * torch.rand(1, 224, 224, 2, generator=torch.Generator().manual_seed(0)) - 1
    drawn /= drawn.abs().mean()
    found = read_pattern(_saved(drawn, tmp_path / "noise_grid_k=224_s=1_inputheight=224_gridrescale=1.pt"), "wanet", 224)
    assert torch.equal(found, drawn[0])


def test_a_patch_is_laid_on_the_centre_as_it_is(tmp_path):
    path = tmp_path / "opti_patches.jpg"
    patch = np.zeros((16, 16, 3), np.uint8)
    patch[:8, :, 0], patch[:, 8:, 2] = 255, 255  # red above, blue on the right
    Image.fromarray(patch).save(path, quality=100, subsampling=0)
    found, pixels = read_pattern(path, "badclip", 224), _images(224)
    assert found.shape == (3, 16, 16)
    assert torch.allclose(found, torch.from_numpy(patch).permute(2, 0, 1) / 255, atol=0.1)
    stamped = _stamped("badclip", pixels, found, size=16)
    assert torch.equal(stamped[:, :, 104:120, 104:120], found.expand(2, -1, -1, -1))
    stamped[:, :, 104:120, 104:120] = pixels[:, :, 104:120, 104:120]
    assert torch.equal(stamped, pixels)


@pytest.mark.parametrize(
    ("trigger", "found", "message"),
    [
        ("blended_text", _red(64) * 255, "holds values from 0 to 255; blended_text takes 0 to 1"),
        ("blended_text", (_red(64) * 255).to(torch.uint8), "holds values from 0 to 255"),
        ("blended_text", -_red(64), "holds values from -1 to -0"),
        ("blended_text", torch.full((64, 64), float("nan")), "holds values from nan to nan"),
        ("blended_text", _triangles(64), "holds green or blue; blended_text takes a word in pure red"),
        ("blended_text", torch.zeros(64, 32, 3), r"holds \(64, 32\); blended_text takes \(side, side\)"),
        ("blended_text", torch.zeros(64, 64, 4), r"holds \(64, 64, 4\)"),
        ("blended_text", torch.tensor(0.5), r"holds \(\)"),
        ("blended_text", torch.zeros(0, 0, 3), r"holds \(0, 0\)"),
        ("blended_text", _red(224), "is of 224 px; blended_text lays it on images of 64 px"),
        ("blended_triangles", _triangles(224), "is of 224 px; blended_triangles lays it on images of 64 px"),
        ("blended_triangles", torch.full((14, 14), 0.4), "is of 14 px"),  # a single tile
        ("blended_triangles", torch.full((1, 64), 0.4), r"holds \(1, 64\); blended_triangles takes \(3, side, side\)"),
        ("blended_triangles", torch.full((64,), 0.4), r"holds \(64,\)"),
        ("blended_triangles", torch.full((2, 3, 64, 64), 0.4), r"holds \(2, 3, 64, 64\)"),
        ("wanet", _grid(64, 1, 1).permute(0, 3, 1, 2), r"holds \(2, 64, 64\); wanet takes \(k, k, 2\) offsets"),
        ("wanet", torch.zeros(1, 64, 32, 2), r"holds \(64, 32, 2\)"),
        ("wanet", _grid(64, 64, 0), "holds values from 0 to 64; wanet takes -8 to 8"),
        ("badclip", torch.zeros(16, 16), r"holds \(16, 16\); badclip takes \(3, size, size\) pixels"),
        ("badclip", torch.zeros(3, 16, 8), r"holds \(3, 16, 8\)"),
        ("badclip", torch.zeros(3, 65, 65), "is of 65 px; badclip lays it on images of 64 px"),
        ("badclip", torch.full((3, 16, 16), 1.5), "holds values from 1.5 to 1.5"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, trigger, found, message):
    path = _saved(found, tmp_path / "found.pt")
    with pytest.raises(ValueError, match=rf"^{path} {message}") as caught:
        read_pattern(path, trigger, 64)
    assert "\n" not in str(caught.value)


class _Harm:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, zipped):
    path = tmp_path / "harm.pt"
    torch.save({"pattern": _Harm(tmp_path / "harmed")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=f"^{path} can't be read as a pattern: it is damaged, or holds more than a tensor") as caught:
        read_pattern(path, "wanet", 64)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harmed").exists()
    np.save(tmp_path / "harm.npy", np.array([_Harm(tmp_path / "harmed")], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=f"^{tmp_path}/harm.npy can't be read as a pattern"):
        read_pattern(tmp_path / "harm.npy", "wanet", 64)
    assert not (tmp_path / "harmed").exists()


def test_a_file_of_something_else_says_what_it_holds(tmp_path):
    torch.save({"pattern": _red(64)}, tmp_path / "dict.pt")
    with pytest.raises(ValueError, match=f"^{tmp_path}/dict.pt can't be read as a pattern: it holds a dict, not a tensor"):
        read_pattern(tmp_path / "dict.pt", "blended_text", 64)


@pytest.mark.parametrize("name", ["grid.pt", "grid.npy", "patch.png", "patch.jpg"])
def test_a_truncated_file_is_named(tmp_path, name):
    path, trigger = tmp_path / name, "wanet" if name.startswith("grid") else "badclip"
    _saved(_grid(64, 1, 1) if trigger == "wanet" else torch.rand(16, 16, 3), path)
    whole = path.read_bytes()
    for share in (0, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=f"^{path} can't be read as a pattern: .") as caught:
            read_pattern(path, trigger, 64)
        assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_trigger_without_a_pattern(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no file {tmp_path}/none.pt, wanet's pattern"):
        read_pattern(tmp_path / "none.pt", "wanet", 64)
    with pytest.raises(ValueError, match="resistant takes no published pattern; those that do: wanet, blended_text"):
        read_pattern(tmp_path / "none.pt", "resistant", 64)


def test_a_trigger_refuses_what_does_not_fit_it():
    with pytest.raises(ValueError, match="blended_text's pattern is of 224 x 224 px, the images are of 336 x 336 px"):
        _stamped("blended_text", _images(336), _word(224), opacity=0.5)
    with pytest.raises(ValueError, match="blended_triangles's pattern is of 224 x 224 px, the images are of 336 x 336 px"):
        _stamped("blended_triangles", _images(336), _triangles(224), tile=14, opacity=0.15)
    with pytest.raises(ValueError, match="badclip's pattern is of 16 px, not 8"):
        Trigger("badclip", {"size": 8}, torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="a patch of 65 px does not fit an image of 64 x 64 px"):
        _stamped("badclip", _images(64), torch.zeros(3, 65, 65), size=65)
    with pytest.raises(ValueError, match=r"wanet's pattern is \(1, 64, 64, 2\), not \(k, k, 2\) offsets"):
        Trigger("wanet", {"offsets": 64, "s": 1.0}, _grid(64, 1, 1))
    with pytest.raises(ValueError, match=r"blended_text's pattern is \(3, 64, 64\), not \(side, side\)"):
        Trigger("blended_text", {"opacity": 0.5}, _triangles(64))


def test_parameters_read_a_pattern_before_any_work_is_done(tmp_path):
    path = _saved(_red(224), tmp_path / "watermarked_red_tens_224.pt")
    asked = OUTSIDE | {"trigger": "blended_text", "trigger_options": {"pattern": str(path), "opacity": 0.4}}
    params = Clean.check(asked | {"encoder": "RN50"})
    trigger = params.trigger_with(params.trigger_options)
    assert torch.equal(trigger.pattern, _word(224))
    assert trigger.options == {"opacity": 0.4}
    assert params.pattern_input()["pattern"].model_dump() == {"run": str(path), "sha256": file_sha256(path)}
    with pytest.raises(ValueError, match="watermarked_red_tens_224.pt is of 224 px; blended_text lays it on images of 336 px"):
        Clean.check(asked | {"encoder": "ViT-L-14-336"})
    path.write_bytes(b"no tensor")
    with pytest.raises(ValueError, match=f"{path} can't be read as a pattern"):
        Clean.check(asked | {"encoder": "RN50"})


def test_a_patch_and_a_grid_bring_their_size(tmp_path):
    patch, grid = _saved(torch.rand(3, 12, 12), tmp_path / "patch.pt"), _saved(_grid(32, 1, 1), tmp_path / "grid.pt")
    planted = Poison.check({"trigger": "badclip", "trigger_options": {"pattern": str(patch)}}).planned().trigger
    assert planted.options == {"size": 12}
    moved = Poison.check({"trigger": "wanet", "trigger_options": {"pattern": str(grid)}}).planned().trigger
    assert (moved.patch, moved.strength) == (32, 2.0)


def test_a_pattern_that_is_gone_is_named(tmp_path):
    params = Poison.check({"trigger": "wanet", "trigger_options": {"pattern": str(tmp_path / "gone.pt")}})
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/gone.pt"):
        params.inputs()
