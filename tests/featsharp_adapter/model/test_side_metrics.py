"""TV, CRF and MMD against loops and known answers."""

import math

import pytest
import torch

from featsharp_adapter.model.side_metrics import (
    POINTS,
    conditional_random_field,
    maximum_mean_discrepancy,
    total_variation,
)


def test_total_variation_is_a_sum_over_neighbours() -> None:
    maps = torch.randn(2, 3, 4, 5)
    for image, found in zip(maps, total_variation(maps), strict=True):
        expected = 0.0
        for y in range(4):
            for x in range(5):
                for dy, dx in ((1, 0), (0, 1)):
                    if y + dy < 4 and x + dx < 5:
                        expected += float((image[:, y + dy, x + dx] - image[:, y, x]).square().sum())
        assert float(found) == pytest.approx(expected / 60, rel=1e-5)


def test_crf_is_a_sum_over_pairs_of_places() -> None:
    maps, guidance = torch.randn(1, 4, 3, 5), torch.rand(1, 3, 3, 5)
    expected = 0.0
    for first in range(15):
        for second in range(15):
            (y, x), (v, u) = divmod(first, 5), divmod(second, 5)
            place = ((y - v) / 3) ** 2 + ((x - u) / 5) ** 2
            colour = float((guidance[0, :, y, x] - guidance[0, :, v, u]).square().sum())
            features = float((maps[0, :, y, x] - maps[0, :, v, u]).square().mean())
            expected += 10 * math.exp(-place / 0.2 - colour / 0.3) * features
    assert float(conditional_random_field(maps, guidance)) == pytest.approx(expected / 225, rel=1e-4)


def test_crf_prefers_maps_that_follow_the_image() -> None:
    image = torch.zeros(1, 3, 40, 40)
    image[..., 20:] = 1.0
    along, across = image[:, :1].clone(), image[:, :1].transpose(2, 3).clone()
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    true, false = (conditional_random_field(m, image, g) for m, g in zip((along, across), generators, strict=True))
    assert POINTS < 40 * 40 and true < 0.2 * false


def test_mmd_is_the_unbiased_estimate() -> None:
    first, second = torch.randn(1, 3, 2, 4), torch.randn(1, 3, 3, 2) + 0.5
    x, y = first.flatten(2)[0].T, second.flatten(2)[0].T

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.exp(-0.7 * float((a - b).square().sum()))

    expected = sum(kernel(x[i], x[j]) for i in range(8) for j in range(8) if i != j) / 56
    expected += sum(kernel(y[i], y[j]) for i in range(6) for j in range(6) if i != j) / 30
    expected -= 2 * sum(kernel(a, b) for a in x for b in y) / 48
    assert float(maximum_mean_discrepancy(first, second, 0.7)) == pytest.approx(expected, abs=1e-5)


def test_mmd_is_about_zero_for_one_distribution_and_large_for_two() -> None:
    same = [float(maximum_mean_discrepancy(torch.randn(1, 4, 20, 20), torch.randn(1, 4, 20, 20))) for _ in range(5)]
    assert max(abs(value) for value in same) < 0.02
    assert float(maximum_mean_discrepancy(torch.randn(1, 4, 20, 20) + 2, torch.randn(1, 4, 20, 20))) > 0.3


def test_they_are_losses_too() -> None:
    maps = torch.randn(2, 4, 6, 6, requires_grad=True)
    total = total_variation(maps) + conditional_random_field(maps, torch.rand(2, 3, 24, 24))
    (total + maximum_mean_discrepancy(maps, torch.randn(2, 4, 3, 3))).sum().backward()
    assert torch.isfinite(maps.grad).all() and maps.grad.abs().max() > 0
