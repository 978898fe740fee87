"""The one loop: schedules, augmentation, and the same weights bit for bit, also after an interruption."""

import math
from dataclasses import replace

import open_clip
import pytest
import torch
from torchvision.transforms import v2

from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.cache import cache_dir
from parlib.data.feeds import MemoryFeed, generator
from parlib.method.augment import BatchedAutoAugment, _crop_and_jitter, auto_augment, crop_and_jitter, noise_and_cutout
from parlib.method.eda import reword
from parlib.method.losses import clip_loss, perturbation
from parlib.method.methods import METHODS, Method, Recipe, Step, cleanclip, contrast, par, roclip
from parlib.method.schedule import learning_rate
from parlib.model.clip import embed_texts
from parlib.train import loop
from parlib.train.cached import Reporting, train, training_identity
from parlib.train.compute import Compute
from parlib.train.loop import fit

PAR = Recipe("par", epochs=2, batch=40, lr=1e-3, seed=3, tau=2.15, looks=2)


def _weights(clip) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in clip.net.state_dict().items()}


def _same(one: dict, two: dict) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def _run(clip, scenes, recipe, **options):
    tokens, reworded = clip.tokenizer(scenes.captions), None
    if recipe.method in METHODS and METHODS[recipe.method].reword:
        reworded = clip.tokenizer(reword(scenes.captions, recipe.seed))
    history, _ = fit(clip, MemoryFeed(scenes.pixels, tokens, reworded), recipe, **options)
    return _weights(clip), history


def test_paper_schedule_at_its_corners():
    assert learning_rate(0, 100, 3e-5, "paper") == 3e-5
    assert learning_rate(25, 100, 3e-5, "paper") == pytest.approx((3e-5 + 3e-6) / 2)
    assert learning_rate(50, 100, 3e-5, "paper") == pytest.approx(3e-6)
    assert learning_rate(75, 100, 3e-5, "paper") == pytest.approx((3e-6 + 1e-9) / 2)
    assert learning_rate(10**9, 10**9, 3e-5, "paper") == pytest.approx(1e-9)


def test_cosine_and_warm_up():
    assert learning_rate(0, 100, 1.0, "cosine") == 1.0
    assert learning_rate(50, 100, 1.0, "cosine") == pytest.approx(0.5, abs=1e-4)
    rates = [learning_rate(step, 100, 1.0, "warmup_cosine") for step in range(100)]
    assert rates[:5] == sorted(rates[:5])
    assert max(rates) <= 1.0
    assert rates[5] == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_noise_is_positive_and_cutout_is_half_to_one_percent():
    pixels, fill = torch.full((400, 3, 64, 64), 0.5), torch.full((3, 1, 1), 0.25)
    augmented = noise_and_cutout(pixels, fill, generator("cpu", 0))
    cut = (augmented == 0.25).all(1)
    areas = cut.flatten(1).sum(1)
    assert set(areas[areas > 0].sqrt().tolist()) <= {5.0, 6.0}  # 0.5..1 % of 64 x 64
    assert 0.4 < (areas > 0).float().mean() < 0.6
    rest = torch.where(cut[:, None], 0.5, augmented)
    assert rest.min() == 0.5  # noise never darkens
    assert 0.4 < (rest > 0.5).flatten(1).any(1).float().mean() < 0.6
    assert rest.max() <= 1
    noisy = (rest - 0.5)[(rest > 0.5).flatten(1).any(1)]
    assert abs(noisy.mean() - 0.0794) < 0.002  # 0.2 E[max(0, z)], less what is clipped at 1 or cut


def test_cutout_of_16_to_22_px_at_224():
    fill = torch.zeros(3, 1, 1)
    augmented = noise_and_cutout(torch.full((60, 3, 224, 224), 0.5), fill, generator("cpu", 1))
    areas = (augmented == 0).all(1).flatten(1).sum(1)
    sides = areas[areas > 0].sqrt()
    assert sides.min() >= 16
    assert sides.max() <= 22


def test_contrast_is_open_clips_loss(clip, scenes):
    tokens = clip.tokenizer(scenes.captions[:8])
    pixels = scenes.pixels[:8].float() / 255
    step = Step(clip, None, PAR, pixels, pixels, tokens, tokens)
    image = clip.net.encode_image(open_clip_normalised(scenes.pixels[:8]), normalize=True)
    expected = open_clip.ClipLoss()(image, clip.net.encode_text(tokens, normalize=True), clip.net.logit_scale.exp())
    assert torch.allclose(contrast(step)["loss"], expected, atol=1e-6)


class Given:
    """Embeddings given by hand in the place of a model: images and texts are looked up by their first value."""

    def __init__(self, image: torch.Tensor, text: torch.Tensor, scale: float):
        self.images, self.texts, self.net = image, text, torch.nn.Module()
        self.net.logit_scale = torch.tensor(math.log(scale))

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.images[pixels.flatten(1)[:, 0].long()]

    def text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.texts[tokens[:, 0]]


def _given(images: list[int], texts: list[int], *, views: list[int], reworded: list[int], recipe: Recipe, clip: Given, **options) -> Step:
    pixels, view = (torch.tensor(rows).float().view(-1, 1, 1, 1) for rows in (images, views))
    return Step(clip, None, recipe, pixels, view, torch.tensor(texts)[:, None], torch.tensor(reworded)[:, None], **options)


def test_cleanclip_by_hand():
    """3 x 3: images and captions are unit vectors that match. The views of the images are 1, 1, 2, the reworded captions 0, 0, 0;
    row i of a contrast with itself has the logits 2 where the view is i, else 0. One direction only: the other would differ.
    """
    clip, recipe = Given(torch.eye(3), torch.eye(3), 2.0), Recipe("cleanclip", 1, 3, 1e-3, 0, self_weight=0.5)
    found = cleanclip(_given([0, 1, 2], [0, 1, 2], views=[1, 1, 2], reworded=[0, 0, 0], recipe=recipe, clip=clip))
    right, even = math.log(1 + 2 * math.exp(-2.0)), math.log(3.0)
    image = (even + math.log(2 + math.exp(-2.0)) + right) / 3  # rows (0, 0, 0), (2, 2, 0), (0, 0, 2)
    text = even  # rows (2, 2, 2), (0, 0, 0), (0, 0, 0)
    assert found["l_clip"].item() == pytest.approx(right)
    assert found["l_self"].item() == pytest.approx((image + text) / 2)
    assert found["loss"].item() == pytest.approx(right + 0.5 * (image + text) / 2)


def test_roclips_pool_is_first_in_first_out_and_asked_before_it_is_updated():
    clip = Given(torch.eye(4), torch.eye(4), 2.0)
    recipe, memory = Recipe("roclip", 2, 2, 1e-3, 0, pool=0.3), {}
    step = lambda rows, epoch: roclip(  # noqa: E731
        _given(rows, rows, views=rows, reworded=rows, recipe=recipe, clip=clip, epoch=epoch, pairs=10, memory=memory)
    )
    own = math.log(1 + math.exp(-2.0))
    assert step([0, 1], 0)["loss"].item() == pytest.approx(own)
    assert memory["pool"].argmax(1).tolist() == [0, 1]
    assert step([2, 3], 0)["loss"].item() == pytest.approx(own)
    assert memory["pool"].argmax(1).tolist() == [1, 2, 3]  # 0.3 of 10 pairs: the first has left
    # In the second epoch 1 meets itself, and 0, whose caption isn't there any more, the pool's first: the same caption twice.
    assert step([0, 1], 1)["loss"].item() == pytest.approx((clip_loss(torch.eye(4)[:2], torch.eye(4)[[1, 1]], torch.tensor(2.0))).item())
    assert memory["pool"].argmax(1).tolist() == [3, 0, 1]


def test_roclip_augments_as_released_at_224_px_and_less_at_64():
    crop, jitter, blur = (_crop_and_jitter(224, 224).transforms[i] for i in (1, 2, 4))
    assert crop.scale == pytest.approx((0.08, 1.0))
    assert crop.ratio == pytest.approx((3 / 4, 4 / 3))
    assert jitter.transforms[0].brightness == pytest.approx((0.5, 1.5))
    assert (list(blur.kernel_size), list(blur.sigma)) == ([21, 21], [0.1, 2.0])
    small = _crop_and_jitter(64, 64).transforms
    assert 0.9 < small[1].scale[0] < 1
    assert small[4].sigma[1] == pytest.approx(2 * (64 / 224) ** 2)


@pytest.mark.parametrize("augment", [auto_augment, crop_and_jitter])
def test_augmentations_of_the_baselines(scenes, augment):
    pixels, fill = scenes.pixels[:30].float() / 255, torch.zeros(3, 1, 1)
    state = torch.random.get_rng_state()
    one, two = (augment(pixels, fill, generator("cpu", 5)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.shape == pixels.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert not torch.equal(one, augment(pixels, fill, generator("cpu", 6)))
    twice = augment(pixels[:1].repeat(8, 1, 1, 1), fill, generator("cpu", 7))
    assert len({image.numpy().tobytes() for image in twice}) > 1  # each image has a draw of its own


def test_auto_augment_of_a_batch_is_torchvisions_of_each_image(scenes):
    """Bit for bit: so the distribution is the same, and no image's draw depends on another's."""
    images = scenes.pixels[:96]
    torch.manual_seed(3)
    batched = BatchedAutoAugment(v2.AutoAugmentPolicy.IMAGENET)(images)
    torch.manual_seed(3)
    single = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)
    assert torch.equal(batched, torch.stack([single(image) for image in images]))
    assert (batched != images).flatten(1).any(dim=1).float().mean() > 0.5


def test_finetune_augmented_is_par_without_its_perturbation(clip, scenes):
    reference = _different(clip)
    tokens, pixels = clip.tokenizer(scenes.captions[:8]), scenes.pixels[:8].float() / 255
    recipe = Recipe("par", 1, 8, 1e-3, 0, tau=2.15)
    step = Step(clip, reference, recipe, pixels, pixels, tokens, tokens, embed_texts(reference, tokens))
    whole, rest = METHODS["par"].loss(step), METHODS["finetune_augmented"].loss(step)
    push = perturbation(whole["s_image"], whole["s_text"], 2.15)
    assert push > 0.01
    assert torch.allclose(whole["loss"] + push, rest["loss"], atol=1e-6)
    assert METHODS["finetune_augmented"].augment is METHODS["par"].augment


def test_perturb_only_is_par_without_its_augmentation(clip, scenes, monkeypatch):
    recipe = Recipe("perturb_only", 1, 40, 1e-3, seed=3, tau=2.15)
    alone = _run(clip.copy(), scenes, recipe, reference=clip.copy())
    monkeypatch.setitem(METHODS, "par", Method(par, lambda pixels, fill, random: pixels, needs_reference=True))
    plain = _run(clip.copy(), scenes, Recipe("par", 1, 40, 1e-3, seed=3, tau=2.15), reference=clip.copy())
    assert _same(alone[0], plain[0])
    assert alone[1] == plain[1]


def _different(clip):
    other = clip.copy()
    with torch.no_grad():
        for weight in other.net.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator("cpu", "different")))
    return other


@pytest.mark.parametrize("method", ["cleanclip", "roclip"])
def test_a_resumed_baseline_ends_with_the_same_weights(clip, scenes, tmp_path, monkeypatch, method):
    recipe = Recipe(method, 2, 40, 1e-3, seed=3, self_weight=1.0, pool=0.1)
    whole = _run(clip.copy(), scenes, recipe)
    monkeypatch.setattr(loop, "_KEEP_EVERY", -1.0)
    calls, loss = [], METHODS[method].loss

    def interrupted(step):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(step)

    monkeypatch.setitem(METHODS, method, replace(METHODS[method], loss=interrupted))
    with pytest.raises(KeyboardInterrupt):
        _run(clip.copy(), scenes, recipe, checkpoint=tmp_path / "unfinished.pt")
    resumed = _run(clip.copy(), scenes, recipe, checkpoint=tmp_path / "unfinished.pt")
    assert _same(whole[0], resumed[0])
    assert whole[1] == resumed[1]


def open_clip_normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    return (pixels.float() / 255 - mean) / std


def test_same_seed_same_weights_and_history(clip, scenes):
    reference = clip.copy()
    one, two = (_run(reference.copy(), scenes, PAR, reference=reference) for _ in range(2))
    assert _same(one[0], two[0])
    assert one[1] == two[1]
    other = _run(reference.copy(), scenes, Recipe("par", 2, 40, 1e-3, seed=4, tau=2.15), reference=reference)
    assert not _same(one[0], other[0])


def test_resumed_run_ends_with_the_same_weights(clip, scenes, tmp_path, monkeypatch):
    reference, checkpoint = clip.copy(), tmp_path / "unfinished.pt"
    watch = attacked(scenes.first(40), Trigger("badnet_stripes", {"size": 8}), "banana")
    whole = _run(reference.copy(), scenes, PAR, reference=reference, watch=watch)
    monkeypatch.setattr(loop, "_KEEP_EVERY", -1.0)  # a checkpoint before each step
    calls = []

    def interrupted(step):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return par(step)

    def counted(step):
        calls.append(1)
        return par(step)

    monkeypatch.setitem(METHODS, "interrupted", Method(interrupted, noise_and_cutout, needs_reference=True))
    broken = Recipe("interrupted", 2, 40, 1e-3, seed=3, tau=2.15, looks=2)
    with pytest.raises(KeyboardInterrupt):
        _run(reference.copy(), scenes, broken, reference=reference, watch=watch, checkpoint=checkpoint)
    assert checkpoint.exists()
    monkeypatch.setitem(METHODS, "par", Method(counted, noise_and_cutout, needs_reference=True))
    resumed = _run(reference.copy(), scenes, PAR, reference=reference, watch=watch, checkpoint=checkpoint)
    assert _same(whole[0], resumed[0])
    assert whole[1] == resumed[1]
    assert len(resumed[1]["s_image"]) == 6
    assert len(calls) == 5 + 2  # four steps were kept, the fifth and the sixth are made again


def test_cached_training_is_read_back_and_leaves_its_start_alone(clip, scenes):
    before = _weights(clip)
    one = train(clip, scenes, PAR, reference=clip)
    two = train(clip, scenes, PAR, reference=clip)
    assert _same(before, _weights(clip))
    assert one.sha256 == two.sha256
    assert one.seconds == two.seconds
    assert one.weights == two.weights


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"other"), lambda path: path.unlink()])
def test_a_damaged_model_is_trained_again(clip, scenes, damage):
    one = train(clip, scenes, PAR, reference=clip)
    damage(one.weights)
    assert train(clip, scenes, PAR, reference=clip).sha256 == one.sha256


def test_first_step_of_par_has_distance_0_as_both_models_see_the_same_augmented_image(clip, scenes):
    _, history = _run(clip, scenes, PAR, reference=clip.copy())
    assert history["s_image"][0] == pytest.approx(0, abs=1e-6)  # both towers start from the same weights, BatchNorm frozen
    assert history["s_text"][0] == pytest.approx(0, abs=1e-6)
    assert history["s_image"][-1] > 0.01


def test_tau_0_stops_the_push(clip, scenes):
    recipe = Recipe("par", 2, 40, 1e-3, seed=3, tau=0.0)
    _, history = _run(clip, scenes, recipe, reference=clip.copy())
    assert history["loss"][1:] == history["l_clip"][1:]


@pytest.mark.parametrize(("batch_norm", "kept"), [("frozen", True), ("train", False)])
def test_batch_norm_option(clip, scenes, batch_norm, kept):
    before = _weights(clip)
    after, _ = _run(clip, scenes, Recipe("finetune", 1, 40, 1e-3, seed=0, batch_norm=batch_norm))
    assert torch.equal(before["visual.bn1.running_mean"], after["visual.bn1.running_mean"]) is kept


def test_scale_is_learned_in_pretraining_alone(clip, scenes):
    before = clip.net.logit_scale.item()
    after, _ = _run(clip.copy(), scenes, Recipe("finetune", 1, 40, 1e-3, seed=0))
    assert after["logit_scale"].item() == before
    after, _ = _run(clip.copy(), scenes, Recipe("contrast", 1, 40, 1e-3, seed=0))
    assert after["logit_scale"].item() != before


def test_decay_on_matrices_alone(clip):
    decayed, plain = loop._optimizer(clip.net, PAR).param_groups
    assert all(weight.ndim >= 2 for weight in decayed["params"])
    assert all(weight.ndim < 2 for weight in plain["params"])
    assert plain["weight_decay"] == 0.0
    assert decayed["weight_decay"] == 1e-4
    assert decayed["eps"] == 1e-8
    assert len(decayed["params"]) + len(plain["params"]) == len(list(clip.net.parameters()))
    assert decayed["betas"] == (0.9, 0.98)


def test_reference_texts_are_embedded_once(clip, scenes, monkeypatch):
    calls = []
    monkeypatch.setattr(loop, "embed_texts", lambda *a: calls.append(1) or embed_texts(*a))
    _run(clip, scenes, PAR, reference=clip.copy())
    assert len(calls) == 1


def test_a_training_that_diverges_leaves_nothing_unfinished(clip, scenes, monkeypatch):
    monkeypatch.setattr(loop, "_KEEP_EVERY", 0.0)
    real = METHODS["finetune"].loss
    steps = iter(range(9))
    monkeypatch.setitem(
        METHODS,
        "finetune",
        replace(METHODS["finetune"], loss=lambda *given: real(*given) if next(steps) < 2 else {"loss": real(*given)["loss"] * math.nan}),
    )
    with pytest.raises(FloatingPointError):
        train(clip, scenes, Recipe("finetune", 2, 40, 1e-3, seed=77))
    assert not list((cache_dir() / "unfinished").glob("*.pt"))


def test_bad_recipes(clip, scenes):
    with pytest.raises(ValueError, match="'pare'.*contrast, finetune, cleanclip, roclip, par"):
        _run(clip, scenes, Recipe("pare", 1, 40, 1e-3, seed=0))
    with pytest.raises(ValueError, match="500.*120"):
        _run(clip, scenes, Recipe("finetune", 1, 500, 1e-3, seed=0))
    with pytest.raises(ValueError, match="par.*reference"):
        _run(clip, scenes, PAR)
    with pytest.raises(FloatingPointError, match="lr.*inf"):
        _run(clip, scenes, Recipe("finetune", 2, 40, math.inf, seed=0))
    with pytest.raises(ValueError, match="'linear'.*paper, cosine, warmup_cosine"):
        _run(clip, scenes, Recipe("finetune", 1, 40, 1e-3, seed=0, schedule="linear"))


def test_a_watch_is_told_what_earlier_sittings_saw(clip, scenes):
    watch, seen = attacked(scenes.first(40), Trigger("badnet_stripes", {"size": 8}), "banana"), []
    recipe = Recipe("finetune", 1, 40, 1e-3, seed=5, looks=2)
    one = train(clip, scenes, recipe, watch=Reporting(watch, seen.append))
    assert [look["clean_accuracy"] for look in seen] == one.history["look_clean_accuracy"]
    again = []
    assert train(clip, scenes, recipe, watch=Reporting(watch, again.append)).weights == one.weights
    assert again == seen
    assert train(clip, scenes, recipe, watch=watch).weights == one.weights  # who is told is no part of a training's identity


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": Recipe("par", 2, 40, 2e-3, seed=3, tau=2.15, looks=2)},
        {"watch": True},
        {"reference": True},
        {"compute": Compute(chunk=8)},
    ],
)
def test_a_training_s_identity_is_what_it_is_given(clip, scenes, changes):
    given = {"recipe": PAR, "reference": clip, "watch": None, "compute": Compute()}
    changed = given | changes
    changed["watch"] = changed["watch"] and attacked(scenes, Trigger("badnet_stripes", {"size": 8}), "banana")
    changed["reference"] = _different(clip) if changed["reference"] is True else clip
    feed = scenes.feed(clip)
    one, same, other = (training_identity(clip, feed, **options) for options in (given, given, changed))
    assert one == same != other
    assert training_identity(clip, scenes.first(80).feed(clip), **given) != one
    assert training_identity(_different(clip), feed, **given) != one


def test_where_a_training_is_computed_is_no_part_of_its_identity(clip, scenes):
    feed, options = scenes.feed(clip), {"reference": clip, "watch": None}
    one, other = (training_identity(clip, feed, PAR, compute=compute, **options) for compute in (Compute(), Compute(ray_address="auto")))
    assert one == other
    assert one["stages"] == {"loop": 1, "method/par": 1}
