"""The fast joint bilateral upsampling against the straightforward one: unfold everything, multiply, sum."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from featsharp_adapter.model.adaptive_upsample import BLOCK, WHOLE_SIDE, adaptive_upsample, side_plan
from featsharp_adapter.model.jbu import JBULevel, JBUStack, prime_factors


def slow_level(level: JBULevel, source: Tensor, guidance: Tensor) -> Tensor:
    """JBU by its definition: softmax of key similarity, times a Gaussian, normalised, over 7 x 7 unfolded features."""
    batch, channels, height, width = source.shape
    size = (height * level.factor, width * level.factor)
    keys = level.key(F.adaptive_avg_pool2d(guidance, size))
    near = F.unfold(F.pad(keys, (3,) * 4, mode="reflect"), 7).view(batch, keys.shape[1], 49, -1)
    logits = (near * keys.flatten(2)[:, :, None]).sum(dim=1) * level.log_temperature.exp()
    line = torch.linspace(-1, 1, 7, dtype=source.dtype)
    squared = (line[:, None] ** 2 + line[None, :] ** 2).flatten()
    kernel = logits.softmax(dim=1) * torch.exp(-squared / (2 * level.log_sigma.exp() ** 2))[None, :, None]
    kernel = kernel / kernel.sum(dim=1, keepdim=True).clamp(min=1e-7)
    upsampled = F.interpolate(source, size=size, mode="bilinear", align_corners=False)
    patches = F.unfold(F.pad(upsampled, (3,) * 4, mode="reflect"), 7).view(batch, channels, 49, -1)
    return (patches * kernel[:, None]).sum(dim=2).view(batch, channels, *size)


def trained(factor: int) -> JBULevel:
    """A level away from its initial values, where everything matters."""
    level = JBULevel(factor)
    with torch.no_grad():
        level.log_temperature.fill_(1.3)
        level.log_sigma.fill_(math.log(0.6))
    return level


# One block a side, several blocks, blocks that do not divide the side, both kinds, other factors, the smallest grids.
CASES = [(7, 7, 2), (16, 5, 2), (17, 23, 2), (30, 4, 2), (5, 20, 3), (2, 3, 7), (4, 4, 5), (2, 2, 2)]


@pytest.mark.parametrize(("height", "width", "factor"), CASES)
def test_equals_the_slow_twin_in_values_and_gradients(height: int, width: int, factor: int) -> None:
    level = trained(factor).double()
    source = torch.randn(2, 5, height, width, dtype=torch.float64, requires_grad=True)
    guidance = torch.rand(2, 3, height * factor * 2 + 1, width * factor * 3, dtype=torch.float64, requires_grad=True)
    wanted = [source, guidance, *level.parameters()]
    fast, slow = level(source, guidance), slow_level(level, source, guidance)
    assert fast.shape == (2, 5, height * factor, width * factor)
    assert torch.allclose(fast, slow, atol=1e-8)
    weights = torch.randn_like(fast)
    for mine, theirs in zip(
        torch.autograd.grad((fast * weights).sum(), wanted),
        torch.autograd.grad((slow * weights).sum(), wanted),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    single = level.float()(source.float(), guidance.float())
    assert torch.allclose(single.double(), slow, atol=1e-5)


def test_any_kernel_size() -> None:
    source, kernel = torch.randn(1, 3, 9, 40), torch.rand(1, 18, 80, 3, 3)
    upsampled = F.pad(F.interpolate(source, scale_factor=2, mode="bilinear"), (1,) * 4, mode="reflect")
    patches = F.unfold(upsampled, 3).view(1, 3, 9, 18, 80)
    expected = torch.einsum("bcnyx,byxn->bcyx", patches, kernel.flatten(3))
    assert torch.allclose(adaptive_upsample(source, kernel, 2), expected, atol=1e-5)


def test_large_grids_are_cut_into_blocks_that_read_few_tokens() -> None:
    plan = side_plan(64, 2, 7, torch.device("cpu"), torch.float32)
    assert plan.blocks > 1 and plan.pixels <= BLOCK
    assert plan.tokens.shape[1] <= BLOCK // 2 + 4
    assert side_plan(WHOLE_SIDE, 2, 7, torch.device("cpu"), torch.float32).blocks == 1


def test_kernels_sum_to_one_so_that_constants_stay() -> None:
    level = trained(2)
    assert torch.allclose(level.kernel(torch.rand(2, 3, 8, 10)).sum(dim=(-1, -2)), torch.ones(2, 8, 10))
    assert torch.allclose(level(torch.full((1, 2, 5, 4), 3.0), torch.rand(1, 3, 40, 32)), torch.tensor(3.0), atol=1e-5)


def test_edges_of_the_image_are_kept() -> None:
    """Pixels of another colour do not mix: across an edge in the image the map stays sharper than bilinear."""
    level = JBULevel(2, sigma=1.0)
    level.key = torch.nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        level.key.weight.fill_(-2 / 3)  # black has key 1, white has key -1
        level.key.bias.fill_(1.0)
        level.log_temperature.fill_(2.0)
    guidance = torch.zeros(1, 3, 16, 16)
    guidance[..., 8:] = 1.0
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1.0
    sharp, smooth = level(step, guidance), F.interpolate(step, scale_factor=2, mode="bilinear")
    assert sharp[..., 8].mean() - sharp[..., 7].mean() > 1.2 * (smooth[..., 8].mean() - smooth[..., 7].mean())


@pytest.mark.parametrize(
    ("number", "primes"), [(1, []), (2, [2]), (6, [2, 3]), (7, [7]), (8, [2, 2, 2]), (14, [2, 7]), (12, [2, 2, 3])]
)
def test_one_level_per_prime_factor(number: int, primes: list[int]) -> None:
    assert prime_factors(number) == primes
    stack = JBUStack(number)
    assert [level.factor for level in stack.levels] == primes
    assert stack(torch.rand(1, 2, 4, 5), torch.rand(1, 3, 60, 60)).shape == (1, 2, 4 * number, 5 * number)
