"""Large batches: chunks and processes give what one pass of one process gives; options of computing change only the rounding."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from parlib.data.feeds import MemoryFeed
from parlib.data.scenes import load_scenes
from parlib.method.eda import reword
from parlib.method.methods import METHODS, Recipe
from parlib.model.clip import Clip, create
from parlib.train.compute import Compute
from parlib.train.gradcache import GradCache, check_agreement
from parlib.train.loop import fit
from parlib.train.ray import fit_together, ray_running

METHOD_NAMES = ["finetune", "cleanclip", "roclip", "par", "perturb_only"]
TOGETHER = ["perturb_only", "cleanclip", "roclip"]


def _recipe(method: str, **changes) -> Recipe:
    given = {"epochs": 2, "batch": 16, "lr": 1e-3, "seed": 0, "tau": 1.0, "self_weight": 0.5, "pool": 0.3, "looks": 0} | changes
    return Recipe(method, **given)


def _fit(clip: Clip, recipe: Recipe, **compute) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    scenes = load_scenes("train", 48, classes=10)
    words = METHODS[recipe.method].reword
    reworded = clip.tokenizer(words(scenes.captions, 0)) if words else None
    feed, trained = MemoryFeed(scenes.pixels, clip.tokenizer(scenes.captions), reworded), clip.copy()
    history, _ = fit(trained, feed, recipe, reference=clip, compute=Compute(**compute))
    return trained.net.state_dict(), history


def _apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """How far two trainings ended from each other, as a share of the way they went. Not weight by weight: where a gradient is rounding
    noise, such as that of the attention's key bias, Adam makes steps of it.
    """

    def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return sum((a[name].double() - b[name].double()).square().sum().item() for name in a) ** 0.5

    return far(one, two) / far(one, start)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_chunks_give_the_gradients_of_the_whole_batch(clip: Clip, method):
    recipe = _recipe(method, epochs=2 if method == "roclip" else 1)  # which asks its pool in every second epoch
    whole, history = _fit(clip, recipe)
    chunks, chunked = _fit(clip, recipe, chunk=7)
    assert chunked["loss"] == pytest.approx(history["loss"], rel=1e-4)
    assert _apart(whole, chunks, clip.net.state_dict()) < 0.05


def test_captions_that_a_frozen_encoder_embedded_stay_as_they_are_in_chunks(clip: Clip):
    known = torch.nn.functional.normalize(torch.rand(6, 8), dim=1)
    spread = GradCache(clip, 6, chunk=2)
    found = spread.text(known)
    assert torch.allclose(found, known)
    (found.sum() * torch.ones(1, requires_grad=True)).backward()
    assert not spread.passes


def test_chunks_want_frozen_batch_norm(clip: Clip):
    with pytest.raises(ValueError, match="batch_norm.*chunk"):
        _fit(clip, _recipe("par", batch_norm="train"), chunk=8)
    with pytest.raises(ValueError, match="checkpointing.*chunk"):
        _fit(clip, _recipe("par"), checkpointing=True)
    with pytest.raises(ValueError, match=r"precision[\s\S]*'float32', 'bf16' or 'fp16'"):
        _fit(clip, _recipe("par"), precision="float16")


def _without_augmentation(method: str) -> None:
    METHODS[method] = replace(METHODS[method], augment=None)


def _process(rank: int, folder: str, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    for method in TOGETHER:
        _without_augmentation(method)
        weights, history = _fit(create("small_resnet", seed=0), _recipe(method))
        if rank == 0:
            save_file({name: value.contiguous() for name, value in weights.items()}, f"{folder}/{method}.safetensors")
            save_file({name: torch.tensor(values) for name, values in history.items()}, f"{folder}/{method}_history.safetensors")
    check_agreement(7, "the same")
    with pytest.raises(RuntimeError, match="they differ"):
        check_agreement(rank, "they differ")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The folder in which two processes have kept what they gave by each method."""
    folder = tmp_path_factory.mktemp("together")
    mp.spawn(_process, args=(str(folder), 2), nprocs=2)
    return folder


@pytest.mark.parametrize("method", TOGETHER)
def test_two_processes_give_what_one_gives_with_the_doubled_batch(together: Path, monkeypatch, method):
    """Without augmentation of images, which each process draws for its own share."""
    monkeypatch.setitem(METHODS, method, METHODS[method])  # put back afterwards
    _without_augmentation(method)
    weights, history = _fit(create("small_resnet", seed=0), _recipe(method))
    trained = load_file(together / f"{method}.safetensors")
    assert load_file(together / f"{method}_history.safetensors")["loss"].tolist() == pytest.approx(history["loss"], rel=1e-3)
    assert _apart(weights, trained, create("small_resnet", seed=0).net.state_dict()) < 0.05


def test_ray_train_gives_what_one_process_gives(clip: Clip, tmp_path: Path):
    scenes, recipe = load_scenes("train", 48, classes=10), _recipe("perturb_only", epochs=1)
    options = {"compute": Compute(processes=2), "reference": clip, "checkpoint": tmp_path / "one.pt"}
    together, report = fit_together(clip, scenes, recipe, **options)
    history = report["history"]
    alone, expected = _fit(clip, recipe)
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert history["s_image"] == pytest.approx(expected["s_image"], rel=1e-3, abs=1e-5)
    assert _apart(alone, together.net.state_dict(), clip.net.state_dict()) < 0.05
    assert report["seconds"] > 0


@pytest.mark.full
def test_a_process_that_fails_is_an_error(clip: Clip, tmp_path: Path):
    scenes, recipe = load_scenes("train", 48, classes=10), _recipe("perturb_only", epochs=1)
    options = {"compute": Compute(processes=2), "reference": clip, "checkpoint": tmp_path / "one.pt"}
    with pytest.raises(RuntimeError, match="batch of 25.*2 processes"):
        fit_together(clip, scenes, replace(recipe, batch=25), **options)


_COMPILED = pytest.param(
    "small_resnet", {"compiled": True}, marks=[pytest.mark.full, pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")]
)


@pytest.mark.parametrize(
    ("encoder", "compute"), [("small_resnet", {"precision": "bf16"}), ("small_vit", {"checkpointing": True}), _COMPILED]
)
def test_options_of_computing_change_only_the_rounding(encoder, compute):
    clip = create(encoder, seed=0)
    usual, history = _fit(clip, _recipe("par", epochs=1))
    found, other = _fit(clip, _recipe("par", epochs=1), **compute)
    rounding = 0.05 if compute.get("precision") else 1e-3
    assert other["loss"] == pytest.approx(history["loss"], rel=rounding)
    assert other["s_image"] == pytest.approx(history["s_image"], abs=rounding)
    assert _apart(usual, found, clip.net.state_dict()) < (0.5 if compute.get("precision") else 0.05)


def test_one_process_and_no_chunk_are_the_model_itself(clip: Clip):
    pixels, tokens = torch.rand(4, 3, 64, 64), clip.tokenizer(["a cat", "a dog", "a hat", "a car"])
    wide = GradCache(clip, 4)
    assert torch.equal(wide.image(pixels), clip.image(pixels))
    assert torch.equal(wide.text(tokens), clip.text(tokens))


def test_reworded_captions_are_asked_for(clip: Clip):
    scenes = load_scenes("train", 48, classes=10)
    feed = MemoryFeed(scenes.pixels, clip.tokenizer(scenes.captions))
    with pytest.raises(ValueError, match="cleanclip.*reworded"):
        fit(clip, feed, _recipe("cleanclip"))
    assert reword(scenes.captions, 0) != scenes.captions


def test_ray_is_not_started_from_a_path_with_spaces(monkeypatch):
    monkeypatch.setattr("sys.prefix", "/a folder/.venv")
    with pytest.raises(ValueError, match="'/a folder/.venv'.*spaces"), ray_running("", cpus=1, gpus=0, of="a trial"):
        pass
