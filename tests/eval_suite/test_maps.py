"""The fast paths of maps.py against the library's own functions, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eval_suite.maps import best_class, channel_moments, length, resize_map, unit


def interpolated(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def gradients(function, values: Tensor) -> tuple[Tensor, Tensor]:
    leaf = values.clone().requires_grad_()
    out = function(leaf)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    (out * weights).sum().backward()
    return out.detach(), leaf.grad


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("size", [(56, 56), (14, 9), (5, 31), (1, 1), (13, 40), (7, 7)])
def test_resizing_is_interpolate(size, dtype, tolerance):
    values = torch.randn(2, 3, 13, 9, generator=torch.Generator().manual_seed(0), dtype=dtype)
    ours, twin = (gradients(lambda leaf, f=f: f(leaf, size), values) for f in (resize_map, interpolated))
    for one, other in zip(ours, twin, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * max(1.0, float(other.abs().max()))


def test_resizing_of_other_types_and_views():
    values = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_map(values.bfloat16(), (9, 9)), interpolated(values.bfloat16(), (9, 9)))
    turned = values.transpose(2, 3)
    torch.testing.assert_close(resize_map(turned, (4, 11)), interpolated(turned, (4, 11)), atol=2e-6, rtol=0)
    with torch.inference_mode():  # what is remembered of a size must serve for training afterwards
        resize_map(values, (17, 19))
    leaf = values.clone().requires_grad_()
    resize_map(leaf, (17, 19)).sum().backward()
    assert leaf.grad is not None


def test_unit_is_normalize_at_zero_and_far_from_one_too():
    vectors = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors[0, :, 0] = 0.0
    vectors[1, :, 1] *= 1e-6
    vectors[1, :, 2] *= 1e6
    ours, twin = (gradients(f, vectors) for f in (unit, lambda leaf: F.normalize(leaf, dim=1)))
    torch.testing.assert_close(ours[0], twin[0], atol=1e-15, rtol=1e-12)
    torch.testing.assert_close(ours[1], twin[1], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(length(vectors), vectors.norm(dim=1), atol=0, rtol=1e-14)


def test_the_best_class_is_argmax_the_first_of_equals():
    scores = torch.randint(0, 4, (3, 7, 11, 13), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(best_class(scores), scores.argmax(1))
    first = (scores == scores.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(best_class(scores), first)


def test_moments_of_channels():
    maps = torch.randn(130, 5, 3, 4, generator=torch.Generator().manual_seed(0)) * 3 + 100
    mean, deviation = channel_moments(maps)
    torch.testing.assert_close(mean, maps.mean((0, 2, 3), keepdim=True), atol=0, rtol=1e-5)
    torch.testing.assert_close(deviation, maps.std((0, 2, 3), keepdim=True), atol=0, rtol=1e-5)
    assert torch.equal(channel_moments(torch.full((2, 1, 2, 2), 7.0))[1], torch.zeros(1, 1, 1, 1))
