"""What every upsampler must do, as a check that anybody calls from tests of their own.

from featsharp_adapter.upsamplers.conformance import check_upsampler

def test_mine():
    check_upsampler("class:my_lab.upsampling.Mine", options={"width": 16})
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.simple import resize_features
from featsharp_adapter.upsamplers.table import build_upsampler

#: Largest difference, in shares of the largest value, that counts as equal in float32.
TOLERANCE = 1e-4


def check_upsampler(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    dim: int = 8,
    grid: tuple[int, int] = (5, 4),
    factors: Sequence[int] = (2, 3),
) -> None:
    """AssertionError that says what is wrong; UserError for a name or class that is no upsampler.

    name: as in a recipe (a name of the table, of an installed package, or class:PACKAGE.MODULE.NAME). Tried for every
    factor with features `dim` wide, on `grid`, on another grid, and with an image whose size has nothing to do with it:
    shape and finite values, an image's result that does not depend on its batch, gradients that reach the features and
    every parameter, and, where the class claims it (`starts_as_bilinear`), a start as bilinear interpolation.
    """
    for factor in factors:
        torch.manual_seed(0)
        made = build_upsampler(name, dim=dim, factor=factor, grid=grid, **(options or {}))
        if made.starts_as_bilinear:
            _check_start(name, made, grid)
        _shake(made)
        for size in (grid, (grid[0] + 2, grid[1] + 1)):
            _check_shape_and_batch(name, made, size)
        _check_gradients(name, made, grid)


def random_inputs(made: Upsampler, grid: tuple[int, int], batch: int) -> tuple[Tensor, dict[int, Tensor], Tensor]:
    """Low-resolution features, the tile maps it asks for, and an image."""
    low = torch.randn(batch, made.dim, *grid)
    tiles = {n: torch.randn(batch, made.dim, n * grid[0], n * grid[1]) for n in made.tile_grids}
    return low, tiles, torch.rand(batch, 3, 93, 71)


def _check_start(name: str, made: Upsampler, grid: tuple[int, int]) -> None:
    low, tiles, image = random_inputs(made, grid, 2)
    assert _near(made(low, tiles, image), resize_features(low, made.factor)), (
        f"{name} says it starts as bilinear interpolation (starts_as_bilinear) and does not"
    )


def _check_shape_and_batch(name: str, made: Upsampler, grid: tuple[int, int]) -> None:
    low, tiles, image = random_inputs(made, grid, 2)
    out = made(low, tiles, image)
    expected = (2, made.dim, made.factor * grid[0], made.factor * grid[1])
    assert tuple(out.shape) == expected, f"{name}, factor {made.factor}: gives {tuple(out.shape)}, expected {expected}"
    assert bool(torch.isfinite(out).all()), f"{name}, factor {made.factor}: gives values that are not finite"
    alone = made(low[:1], {n: tile[:1] for n, tile in tiles.items()}, image[:1])
    assert _near(out[:1], alone), f"{name}: an image's result depends on the other images of its batch"


def _check_gradients(name: str, made: Upsampler, grid: tuple[int, int]) -> None:
    low, tiles, image = random_inputs(made, grid, 2)
    features = [tensor.requires_grad_() for tensor in (low, *tiles.values())]
    out = made(low, tiles, image)
    assert out.requires_grad, f"{name}: no gradient reaches the features"
    out.square().sum().backward()
    assert any(_reached(tensor) for tensor in features), f"{name}: no gradient reaches the features"
    for label, parameter in made.named_parameters():
        assert not parameter.requires_grad or _reached(parameter), f"{name}: no gradient reaches {label}"


def _reached(tensor: Tensor) -> bool:
    return tensor.grad is not None and bool(tensor.grad.abs().max() > 0)


@torch.no_grad()
def _shake(made: Upsampler) -> None:
    """Random weights everywhere, so that nothing hides behind an initial zero."""
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))


def _near(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1)
    )
