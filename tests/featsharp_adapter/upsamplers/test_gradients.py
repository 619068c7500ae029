"""Every variant's forward and backward on odd, non-square maps: gradients are those of finite differences.

In float64, all inputs and parameters are moved together along a random direction: the difference of two forwards must
be what their gradients say, so that a wrong, missing or doubled gradient fails whatever the formulation.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from zoo_cases import CASES, ELSEWHERE

from featsharp_adapter.model.bias import BiasBuffer
from featsharp_adapter.model.conditional_bias import ConditionalBias
from featsharp_adapter.model.downsampler import DOWNSAMPLERS, build_downsampler
from featsharp_adapter.model.fusion import BlockKind
from featsharp_adapter.model.local_attention import POSITIONS
from featsharp_adapter.model.normalisers import NORMALISERS, fit_normaliser
from featsharp_adapter.model.phi_s import CovarianceStatistics
from featsharp_adapter.upsamplers.table import UPSAMPLERS, build_upsampler

DIM, GRID = 8, (5, 3)
BLOCKS: tuple[BlockKind, ...] = ("full", "no_attention", "no_ffn", "linear")
ORDERS = (
    ["jbu", "tiles"],
    ["tiles", "jbu"],
    ["bilinear", "tiles"],
    ["jbu", "bilinear", "tiles"],
    ["tiles", "rgb", "bilinear"],
    ["jbu"],
    ["tiles"],
    ["bilinear", "rgb"],
)
FUSION: list[dict[str, Any]] = [
    *({"block": block, "position": position, "window": 3} for block in BLOCKS for position in POSITIONS),
    *({"window": window, "norm": norm} for window in (1, 5, 7) for norm in (True, False)),
    *({"inputs": inputs, "heads": 1} for inputs in ORDERS),
    {"head_dim": 16},
    {"published_guidance": True},
    {"inputs": ["jafar", "tiles"], "heads": 1},
]


def settle(module: nn.Module) -> nn.Module:
    """float64, in eval mode, no parameter at a special value."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.double().eval()


def backward_is_right(module: nn.Module, call: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """call(run, *inputs), where run is the module with the parameters under test."""
    names = [name for name, _ in module.named_parameters()]
    values = [tensor.detach().double() for tensor in (*inputs, *module.parameters())]
    directions = [torch.randn_like(value) for value in values]
    step = 3e-8  # LoftUp has waves of e^10 a side

    def moved(by: float) -> list[Tensor]:
        return [value + by * direction for value, direction in zip(values, directions, strict=True)]

    def function(given: list[Tensor]) -> Tensor:
        weights = dict(zip(names, given[len(inputs) :], strict=True))
        return call(lambda *arguments: functional_call(module, weights, arguments), *given[: len(inputs)])

    leaves = [value.requires_grad_() for value in moved(0.0)]
    out = function(leaves)
    probe = torch.randn_like(out)
    gradients = torch.autograd.grad((out * probe).sum(), leaves, allow_unused=True, materialize_grads=True)
    said = sum(float((gradient * d).sum()) for gradient, d in zip(gradients, directions, strict=True))
    with torch.no_grad():
        seen = float(((function(moved(step)) - function(moved(-step))) * probe).sum()) / (2 * step)
    scale = sum(float((gradient * d).square().sum()) for gradient, d in zip(gradients, directions, strict=True)) ** 0.5
    assert said == pytest.approx(seen, abs=1e-5 * scale)


def upsampler_is_right(name: str, factor: int, options: dict[str, Any]) -> None:
    upsampler = settle(build_upsampler(name, dim=DIM, factor=factor, grid=GRID, **options))
    tiles = [torch.randn(2, DIM, n * GRID[0], n * GRID[1]) for n in upsampler.tile_grids]

    def call(run: Callable[..., Tensor], low: Tensor, guidance: Tensor, *maps: Tensor) -> Tensor:
        out = run(low, dict(zip(upsampler.tile_grids, maps, strict=True)), guidance)
        assert out.shape == (2, DIM, factor * GRID[0], factor * GRID[1]) and torch.isfinite(out).all()
        return out

    backward_is_right(upsampler, call, [torch.randn(2, DIM, *GRID), torch.rand(2, 3, 37, 23), *tiles])


@pytest.mark.parametrize("options", FUSION, ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()))
def test_fusion(options: dict[str, Any]) -> None:
    upsampler_is_right("featsharp", 2, {"heads": 2, "hidden": 16, **options})


@pytest.mark.parametrize(("factor", "progressive"), [(3, False), (4, True), (6, True)])
def test_fusion_of_other_factors(factor: int, progressive: bool) -> None:
    upsampler_is_right("featsharp", factor, {"heads": 2, "hidden": 16, "window": 3, "progressive": progressive})


SIMPLE: list[tuple[str, dict[str, Any]]] = [
    (name, {}) for name in ("bilinear", "tile", "s2", "featup", "featup_published")
]


@pytest.mark.parametrize(("name", "options"), [*SIMPLE, *CASES])
def test_the_others(name: str, options: dict[str, Any]) -> None:
    upsampler_is_right(name, 2, options)
    if name != "featup_published":  # which doubles
        upsampler_is_right(name, 3, options)


def test_none_is_left_out() -> None:
    """Of the table: the identity has nothing to check; the others have tests of their own (zoo_cases.py says which)."""
    tried = {"featsharp", *(name for name, _ in (*SIMPLE, *CASES))}
    assert set(UPSAMPLERS) - tried == {"none"} | ELSEWHERE


@pytest.mark.parametrize("name", DOWNSAMPLERS)
@pytest.mark.parametrize(("factor", "kernel"), [(2, 5), (3, 4), (4, 7)])
def test_downsamplers(name: str, factor: int, kernel: int) -> None:
    downsampler = settle(build_downsampler(name, dim=DIM, factor=factor, kernel=kernel))
    features = torch.randn(2, DIM, factor * GRID[0], factor * GRID[1])
    assert downsampler(features.double()).shape == (2, DIM, *GRID)
    backward_is_right(downsampler, lambda run, maps: run(maps), [features])
    out = downsampler.train()(features.double().requires_grad_())  # dropped logits: other numbers, all of them finite
    out.square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in downsampler.parameters())


@pytest.mark.parametrize("name", NORMALISERS)
def test_normalisers(name: str) -> None:
    statistics = CovarianceStatistics(DIM)
    statistics.update(3 + torch.randn(200, DIM) * torch.arange(1, DIM + 1))
    normaliser = fit_normaliser(name, statistics).double()
    features = torch.randn(2, DIM, *GRID, dtype=torch.float64)
    for way in (normaliser.normalise, normaliser.denormalise):
        assert way(features).shape == features.shape
        backward_is_right(nn.Module(), lambda _, maps, way=way: way(maps), [features])
    if name != "layer_norm":
        assert torch.allclose(normaliser.denormalise(normaliser.normalise(features)), features, atol=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_biases(n: int) -> None:
    """The fixed one, also on another grid than its own, and the conditional one."""
    features = torch.randn(2, DIM, n * GRID[0], n * GRID[1])
    for bias in (BiasBuffer(DIM, GRID), BiasBuffer(DIM, (4, 4)), ConditionalBias(DIM, 2)):
        backward_is_right(settle(bias), lambda run, maps: run(maps, n), [features])
