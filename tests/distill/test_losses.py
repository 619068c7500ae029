"""Losses against plain loops."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from distill.losses import cosine, hybrid, mse


def angle(a: Tensor, b: Tensor) -> float:
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def test_cosine_is_one_minus_cos_per_image() -> None:
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    assert float(cosine(a, b)) == pytest.approx(sum(1 - angle(x, y) for x, y in zip(a, b, strict=True)) / 3, abs=1e-6)
    assert float(cosine(a, 7 * a)) == pytest.approx(0, abs=1e-6)


def test_mse_is_the_mean_over_everything() -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    total = sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    assert float(mse(a, b)) == pytest.approx(total / a.numel(), rel=1e-5)


def test_hybrid_is_per_position_cosine_and_smooth_l1() -> None:
    a, b = torch.randn(2, 3, 2, 2), 3 * torch.randn(2, 3, 2, 2)
    vectors = [(a[n, :, y, x], b[n, :, y, x]) for n in range(2) for y in range(2) for x in range(2)]
    cosines = sum(1 - angle(x, y) for x, y in vectors) / len(vectors)
    gaps = (a - b).abs().flatten().tolist()
    smooth = sum(0.5 * d * d if d < 1 else d - 0.5 for d in gaps) / len(gaps)
    assert float(hybrid(a, b)) == pytest.approx(0.9 * cosines + 0.1 * smooth, rel=1e-5)


@pytest.mark.parametrize("loss", [mse, hybrid])
def test_two_halves_average_to_the_whole(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """What makes 2 processes x b equal 1 process x 2b."""
    a, b = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    halves = (loss(a[:2], b[:2]) + loss(a[2:], b[2:])) / 2
    assert torch.allclose(halves, loss(a, b), rtol=1e-6)
