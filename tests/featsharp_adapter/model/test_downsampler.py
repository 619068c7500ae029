"""Downsamplers: where they start, what they keep, and that evaluation has no randomness."""

import pytest
import torch

from common.errors import UserError
from featsharp_adapter.model.downsampler import AttentionDownsampler, AverageDownsampler, build_downsampler


def test_average_is_the_mean_of_each_cell() -> None:
    features = torch.randn(2, 3, 6, 9)
    expected = features.unflatten(2, (2, 3)).unflatten(4, (3, 3)).mean(dim=(3, 5))
    assert torch.allclose(AverageDownsampler(3)(features), expected, atol=1e-6)


@pytest.mark.parametrize(("factor", "kernel"), [(2, 5), (2, 7), (3, 7), (3, 3), (4, 9)])
def test_attention_starts_near_the_average_and_keeps_constants(factor: int, kernel: int) -> None:
    downsampler = AttentionDownsampler(8, factor, kernel=kernel).eval()
    features = torch.randn(2, 8, 5 * factor, 4 * factor)
    out, average = downsampler(features), AverageDownsampler(factor)(features)
    assert out.shape == (2, 8, 5, 4)
    assert (out - average).square().mean() < 0.3 * average.square().mean()
    for parameter in downsampler.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.allclose(downsampler(torch.full_like(features, 2.5)), torch.tensor(2.5), atol=1e-5)


def test_attention_is_the_weighted_sum_of_its_window() -> None:
    downsampler = AttentionDownsampler(4, 3, kernel=5).eval()
    torch.nn.init.zeros_(downsampler.logits.weight)
    prior = torch.randn(25)
    with torch.no_grad():
        downsampler.prior.copy_(prior.view(-1, 1, 1))
    features = torch.randn(1, 4, 9, 9)
    window = features[0, :, 2:7, 2:7]  # the 5 x 5 around the middle cell
    expected = (window.flatten(1) * prior.softmax(dim=0)).sum(dim=1)
    assert torch.allclose(downsampler(features)[0, :, 1, 1], expected, atol=1e-6)


def test_logits_are_dropped_in_training_only() -> None:
    downsampler = AttentionDownsampler(4, 2, kernel=5)
    torch.nn.init.normal_(downsampler.logits.weight)
    features = torch.randn(1, 4, 8, 8)
    assert not torch.equal(downsampler(features), downsampler(features))
    downsampler.eval()
    assert torch.equal(downsampler(features), downsampler(features))


def test_choices_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="does not cover"):
        build_downsampler("attention", dim=4, factor=4, kernel=3)
    with pytest.raises(UserError, match='did you mean "average"'):
        build_downsampler("averge", dim=4, factor=2, kernel=3)
