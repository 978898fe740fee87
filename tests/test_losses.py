"""The losses against open_clip's, and against numbers worked out by hand."""

import math

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from parlib.method.losses import clip_loss, distance, nearest, par_loss, perturbation, self_loss


def _unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_clip_loss_equals_open_clips():
    image, text, scale = _unit(16, 8), _unit(16, 8, seed=1), torch.tensor(14.3, dtype=torch.float64)
    assert torch.allclose(clip_loss(image, text, scale), open_clip.ClipLoss()(image, text, scale))


def test_distance_is_two_minus_two_cosines():
    a, b = _unit(7, 5), _unit(7, 5, seed=1)
    assert torch.allclose(distance(a, b), 2 - 2 * (a * b).sum(1).mean())
    assert distance(a, a) == 0
    assert torch.allclose(distance(a, -a), torch.tensor(4.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("s_image", "s_text", "tau", "expected"),
    [(0.5, 0.3, 2.15, 0.4), (0.5, 0.3, 0.4, 0.15), (0.5, 0.3, 0.1, 0.0), (0.5, 0.5, 0.5, 0.5)],
)
def test_perturbation_by_hand(s_image, s_text, tau, expected):
    assert perturbation(torch.tensor(s_image), torch.tensor(s_text), tau).item() == pytest.approx(expected)


def test_no_gradient_above_tau_and_half_below():
    s_image, s_text = (torch.tensor(value, requires_grad=True) for value in (0.5, 0.3))
    perturbation(s_image, s_text, 0.4).backward()
    assert s_image.grad.item() == 0
    assert s_text.grad.item() == 0.5


def test_par_loss_is_clip_minus_perturbation():
    l_clip, s_image, s_text = torch.tensor(2.0), torch.tensor(0.6), torch.tensor(0.2)
    assert par_loss(l_clip, s_image, s_text, 2.15).item() == pytest.approx(2.0 - 0.4)
    assert par_loss(l_clip, s_image, s_text, 0.0).item() == 2.0


def test_clip_loss_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = math.log(1 + math.exp(-3.0))
    assert clip_loss(image, image, torch.tensor(3.0)).item() == pytest.approx(expected)


def test_self_loss_by_hand():
    """Three unit vectors along the axes, the views of the last two exchanged: their rows are sure and wrong."""
    plain = torch.eye(3)
    view = plain[[0, 2, 1]]
    right, wrong = math.log(1 + 2 * math.exp(-2.0)), math.log(2 + math.exp(2.0))
    by_hand = (right + 2 * wrong) / 3
    assert self_loss(plain, view, plain, plain, torch.tensor(2.0)).item() == pytest.approx((by_hand + right) / 2)


def test_self_loss_has_one_direction():
    one, two = _unit(6, 4), _unit(6, 4, seed=1)
    scale = torch.tensor(5.0, dtype=torch.float64)
    assert not torch.allclose(self_loss(one, two, one, two, scale), self_loss(two, one, two, one, scale))
    both = (self_loss(one, two, one, two, scale) + self_loss(two, one, two, one, scale)) / 2
    assert torch.allclose(both, open_clip.ClipLoss()(one, two, scale))


def test_nearest_is_the_most_similar_row_without_gradient():
    pool = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    images = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], requires_grad=True)
    found = nearest(images, pool)
    assert found.tolist() == [[0.0, 1.0], [-1.0, 0.0]]
    assert not found.requires_grad
