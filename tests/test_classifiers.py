"""Cleaners brought from classifiers: FT-SAM's move by hand, FST's heads, and super-fine-tuning's triangles."""

from types import SimpleNamespace

import pytest
import torch

from parlib.data.feeds import generator
from parlib.experiments.registry import check
from parlib.method.classifiers import heads, reset_heads, restore_norms, sharpest, shifted
from parlib.method.losses import clip_loss
from parlib.method.methods import METHODS, Recipe
from parlib.method.schedule import learning_rate
from parlib.model.clip import create
from parlib.train.loop import fit


def _recipe(method: str, **more) -> Recipe:
    return Recipe(method, 1, 40, 1e-3, seed=0, batch_norm="train", looks=0, **more)


def _run(clip, scenes, recipe: Recipe):
    trained = clip.copy()
    history, _ = fit(trained, scenes.first(80).feed(trained), recipe, reference=clip)
    return trained.net.state_dict(), history


def test_ft_sam_moves_large_weights_most_and_all_by_rho():
    weights = [torch.nn.Parameter(torch.tensor([2.0, -1.0])), torch.nn.Parameter(torch.tensor([[0.5]])), torch.nn.Parameter(torch.ones(1))]
    weights[0].grad, weights[1].grad = torch.tensor([0.5, 1.0]), torch.tensor([[-4.0]])  # w * g: 1, -1, -2; the last has none
    sharpest(SimpleNamespace(recipe=SimpleNamespace(rho=3.0)), weights)
    length = 6**0.5
    assert weights[0].tolist() == pytest.approx([2 + 3 * 4 * 0.5 / length, -1 + 3 * 1 * 1 / length])
    assert weights[1].item() == pytest.approx(0.5 - 3 * 0.25 * 4 / length)
    assert weights[2].item() == 1


def test_ft_sam_with_no_radius_is_fine_tuning_and_with_one_is_not(clip, scenes):
    known, _ = _run(clip, scenes, _recipe("finetune", steps=1))
    for rho, same in ((1e-12, True), (1.0, False)):
        found, _ = _run(clip, scenes, _recipe("ftsam", steps=1, rho=rho))
        assert all(torch.allclose(found[name], known[name], atol=1e-6) for name in known) == same
        assert torch.equal(found["visual.bn1.running_mean"], known["visual.bn1.running_mean"])


def test_fst_starts_with_other_heads_of_the_same_spread_and_keeps_their_norm(clip, scenes):
    began = clip.copy()
    reset_heads(began, generator("cpu", "begin"))
    assert list(heads(began)) == ["visual.attnpool.c_proj.weight", "text_projection"]
    for name, head in heads(began).items():
        old = heads(clip)[name]
        assert head.std().item() == pytest.approx(old.std().item(), rel=0.05)
        assert (head * old).sum().abs() < 0.1 * old.norm() ** 2
    found, history = _run(clip, scenes, _recipe("fst", alpha=0.01))
    for name, old in heads(clip).items():
        assert found[name].norm().item() == pytest.approx(old.norm().item(), rel=1e-4)
    assert history["alike"][-1] < history["alike"][0]
    restore_norms(began, clip)
    assert heads(began)["text_projection"].norm().item() == pytest.approx(heads(clip)["text_projection"].norm().item(), rel=1e-5)


def test_fst_s_loss_by_hand(clip):
    trained, pixels, tokens = clip.copy(), torch.rand(3, 3, 64, 64), clip.tokenizer(["a", "b", "c"])
    scale = trained.net.logit_scale.exp()
    recipe = SimpleNamespace(alpha=0.1)
    step = SimpleNamespace(clip=trained, reference=clip, view=pixels, tokens=tokens, scale=scale, recipe=recipe)
    found = shifted(step)
    alike = sum(head.square().sum() for head in heads(clip).values())  # nothing has moved yet
    assert found["alike"].item() == pytest.approx(alike.item(), rel=1e-5)
    contrast = clip_loss(trained.image(pixels), trained.text(tokens), scale)
    assert found["loss"].item() == pytest.approx((contrast + 0.1 * alike).item(), rel=1e-4)


def test_fst_knows_transformers_and_leaves_a_frozen_tower():
    vit = create("small_vit")
    assert list(heads(vit)) == ["visual.proj", "text_projection"]
    vit.net.text_projection.requires_grad_(False)
    assert list(heads(vit)) == ["visual.proj"]
    vit.net.visual.proj.requires_grad_(False)
    with pytest.raises(ValueError, match="projections"):
        heads(vit)


def test_super_fine_tuning_goes_up_and_down_in_ten_triangles():
    rates = [learning_rate(step, 200, 1.0, "super") for step in range(200)]
    assert rates[0] < 1e-3
    assert rates[10] == rates[90] == 1.0  # the tips of the first half
    assert rates[110] == rates[190] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.5, abs=1e-3)
    assert max(rates) == 1.0
    assert min(rates) > 0
    assert check("02_clean", {"method": "superft"}).schedule == "super"
    assert check("02_clean", {"method": "superft", "scale": "paper"}).schedule == "super"
    vit, plain = (check("02_clean", {"method": method, "encoder": "small_vit"}) for method in ("superft", "finetune"))
    assert vit.lr == plain.lr
    with pytest.raises(ValueError, match="superft.*super.*cosine"):
        check("02_clean", {"method": "superft", "schedule": "cosine"})
    assert METHODS["superft"].loss is METHODS["finetune"].loss


def test_ft_sam_trains_in_one_process():
    assert check("02_clean", {"method": "ftsam"}).rho == 1.0
    assert check("02_clean", {"method": "ftsam", "scale": "paper"}).compute.processes == 1
    assert check("02_clean", {"method": "finetune"}).rho is None
    with pytest.raises(ValueError, match="ftsam trains in one process"):
        check("02_clean", {"method": "ftsam", "batch_norm": "frozen", "compute": {"chunk": 16}})
