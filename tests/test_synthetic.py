"""Synthetic pairs: the same bytes from the same seed, no scene among them, and distances of sets that are known by hand."""

import pytest
import torch

from parlib.data.feeds import generator
from parlib.data.painter import paint, painter
from parlib.data.scenes import class_names, load_scenes
from parlib.data.synthetic import DRAWN, SYNTHETIC, flat, load_synthetic, outline, relit
from parlib.experiments.clean_params import Clean
from parlib.experiments.lineage import load_pairs
from parlib.experiments.synthetic import distances
from parlib.experiments.trials import Material
from parlib.measure.distance import frechet, vendi


def _rows(pixels: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in pixels}


@pytest.mark.parametrize("name", DRAWN)
def test_generators_keep_their_seed(name, monkeypatch, tmp_path):
    one = load_synthetic(name, 60, 10, seed=1)
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))
    two, other = load_synthetic(name, 60, 10, seed=1), load_synthetic(name, 60, 10, seed=2)
    assert torch.equal(one.pixels, two.pixels)
    assert one.captions == two.captions
    assert not torch.equal(one.pixels, other.pixels)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_sets_are_whole_and_hold_no_scene(name):
    made, scenes = load_synthetic(name, 200, 10), load_scenes("clean", 200, 10)  # as many as smoke's notebook 04 takes: made once
    assert made.pixels.shape == (200, 3, 64, 64)
    assert made.pixels.dtype == torch.uint8
    away = torch.cdist(made.pixels.flatten(1).float(), scenes.pixels.flatten(1).float(), p=1) / scenes.pixels[0].numel()
    assert away.min() > 10  # no picture is within 10 of 255 levels, on average over its pixels, of a scene
    assert len(_rows(made.pixels)) == 200
    assert made.labels.bincount().tolist() == [20] * 10
    assert all(made.names[label] in caption.lower() for label, caption in zip(made.labels.tolist(), made.captions, strict=True))


def test_another_grammar_shares_no_caption():
    sentences, templates = load_synthetic("sentences", 200, 10), load_synthetic("flat", 200, 10)
    assert not set(sentences.captions) & set(templates.captions)


def _square() -> torch.Tensor:
    """A glyph: an opaque square of a light red from row and column 16 to 47."""
    glyph = torch.zeros(1, 4, 64, 64)
    glyph[0, :, 16:48, 16:48] = torch.tensor([0.9, 0.6, 0.6, 1.0])[:, None, None]
    return glyph


def test_styles_of_a_square():
    lit, edge, plain = (style(_square(), generator("cpu", 0)) for style in (relit, outline, flat))
    assert torch.equal(lit[0, 3], _square()[0, 3])
    assert (lit[0, :3] <= lit[0, 3]).all()
    assert not torch.equal(lit[0, :3], _square()[0, :3])
    assert edge[0, :3, 16, 30].max() <= 0.45
    assert edge[0, 3, 30, 30] == 0  # nothing inside
    assert edge[0, 3, 16, 30] > 0
    assert edge[0, 3, :14].max() == 0
    assert torch.equal(plain[0, :, 30, 30], torch.tensor([1.0, 0.5, 0.5, 1.0]))


def test_unknown_data_names_the_known():
    with pytest.raises(ValueError, match="'flatt'.*composed, flat, sentences, outline"):
        load_synthetic("flatt", 10, 10)


def test_painter_keeps_its_seed_and_listens_to_the_class():
    pairs = load_scenes("train", 120, 10)
    one, two, other = (paint(painter(pairs, epochs=2), torch.full((20,), label), generator("cpu", 0)) for label in (0, 0, 1))
    assert torch.equal(one, two)
    assert one.shape == (20, 3, 64, 64)
    assert not torch.equal(one, other)  # the same noise, another class


def test_frechet_of_known_sets():
    random = torch.Generator().manual_seed(0)
    points = torch.randn(500, 4, generator=random, dtype=torch.double)
    assert frechet(points, points) == pytest.approx(0, abs=1e-9)
    shift = torch.tensor([3.0, 0.0, 4.0, 0.0], dtype=torch.double)
    assert frechet(points, points + shift) == pytest.approx(25)
    # of N(0, A^2) and N(0, (cA)^2): the trace of A^2 times (1 - c)^2, about the mean
    centred = points - points.mean(0)
    assert frechet(centred, 3 * centred) == pytest.approx(4 * centred.T.cov().trace().item())


def test_vendi_counts_what_differs():
    assert vendi(torch.eye(8)) == pytest.approx(8, rel=1e-6)
    assert vendi(torch.eye(8)[:1].repeat(5, 1)) == pytest.approx(1, rel=1e-6)
    assert vendi(torch.eye(8)[:4].repeat(3, 1)) == pytest.approx(4, rel=1e-6)


def test_pairs_are_named_scenes_or_by_their_generator():
    params = Clean.check({"classes": 10})
    assert torch.equal(load_pairs("scenes", 20, params).pixels, load_scenes("clean", 20, 10).pixels)
    assert class_names(10) == load_pairs("flat", 20, params).names


def test_the_scenes_themselves_lie_nearest_to_the_scenes(clip):
    params = Clean.check({"classes": 10})
    pairs = {(name, 200): load_pairs(name, 200, params) for name in ("scenes", "composed", "outline")}
    found = distances(clip, Material({}, pairs), 10).set_index("data")
    assert found["gap"].idxmin() == "scenes"
    assert found["gap"].idxmax() == "outline"
    assert (found["diversity"] > 1).all()
    assert found["pairs"].tolist() == [200] * 3
