"""The losses against open_clip's, and against numbers worked out by hand."""

import math

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from parlib.losses import clip_loss, distance, par_loss, perturbation


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
