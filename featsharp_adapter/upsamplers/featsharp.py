"""FeatSharp (arXiv 2502.16025): a guided upsampling of the whole image, corrected by what the teacher sees in tiles.

The upsampled low-resolution map knows the scene and is blurred; the tiles have the detail and have lost the scene. A
fusion block reads both at every place and corrects the first.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor, nn

from featsharp_adapter.fusion import FusionBlock
from featsharp_adapter.jbu import JBUStack, prime_factors
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.simple import resize_features
from teachers.errors import UserError, unknown

INPUTS = ("jbu", "bilinear", "tiles")


class TilePosition(nn.Module):
    """Adds one learned vector to all tokens of a tile: [B, C, n*g, n*g'] -> same. Starts at zero."""

    def __init__(self, dim: int, n: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(1, dim, n, n))

    def forward(self, tiles: Tensor) -> Tensor:
        rows, columns = (side // n for side, n in zip(tiles.shape[-2:], self.embedding.shape[-2:], strict=True))
        return tiles + self.embedding.repeat_interleave(rows, dim=2).repeat_interleave(columns, dim=3)


class FusionLevel(nn.Module):
    """low [B, C, h, w], tiles [B, C, f*h, f*w], guidance [B, 3, H, W] -> [B, C, f*h, f*w]."""

    def __init__(self, dim: int, factor: int, n: int, inputs: Sequence[str], sigma: float, block: FusionBlock) -> None:
        """n: tiles a side of the map it is given; the first of `inputs` is the one that is corrected."""
        super().__init__()
        self.factor, self.inputs, self.block = factor, tuple(inputs), block
        self.jbu = JBUStack(factor, sigma=sigma) if "jbu" in inputs else None
        self.position = TilePosition(dim, n) if "tiles" in inputs else None

    def forward(self, low: Tensor, tiles: Tensor | None, guidance: Tensor) -> Tensor:
        return self.block(torch.cat([self._input(name, low, tiles, guidance) for name in self.inputs], dim=1))

    def _input(self, name: str, low: Tensor, tiles: Tensor | None, guidance: Tensor) -> Tensor:
        if name == "jbu" and self.jbu is not None:
            return self.jbu(low, guidance)
        if name == "tiles" and self.position is not None and tiles is not None:
            return self.position(tiles)
        return resize_features(low, self.factor)


class FeatSharpUpsampler(Upsampler):
    """One fusion level for the whole factor, or (`progressive`) one per prime factor, each fed by its own tile grid.

    inputs: what the block reads; the first is corrected and is exactly what comes out before training.
    heads, window: of the local attention. hidden: width of the SwiGLU; None gives 16C/3, as published code has it.
    layer_scale: how far the block may move at first; 1e-6 as published suits thousands of steps, 0.1 hundreds.
    """

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        inputs: Sequence[str] = ("jbu", "tiles"),
        progressive: bool = False,
        heads: int = 16,
        window: int = 7,
        hidden: int | None = None,
        layer_scale: float = 0.1,
        sigma: float = 0.35,
    ) -> None:
        check_inputs(inputs)
        steps = prime_factors(factor) if progressive else [factor]
        grids = list(accumulate(steps, mul))
        super().__init__(dim=dim, factor=factor, grid=grid, tile_grids=tuple(grids) if "tiles" in inputs else ())
        hidden = 8 * ((16 * dim // 3 + 7) // 8) if hidden is None else hidden
        levels = []
        for step, n in zip(steps, grids, strict=True):
            block = FusionBlock(
                len(inputs) * dim, dim, heads=heads, window=window, hidden=hidden, layer_scale=layer_scale
            )
            levels.append(FusionLevel(dim, step, n, inputs, sigma, block))
        self.grids, self.levels = grids, nn.ModuleList(levels)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        for n, level in zip(self.grids, self.levels, strict=True):
            low = level(low, tiles.get(n), guidance)
        return low

    def guide_parameters(self) -> list[nn.Parameter]:
        return [p for level in self.levels if level.jbu is not None for p in level.jbu.parameters()]


def check_inputs(inputs: Sequence[str]) -> None:
    """UserError unless `inputs` is a non-empty list of different known inputs."""
    for name in inputs:
        if name not in INPUTS:
            raise unknown("fusion input", name, INPUTS)
    if not inputs or len(set(inputs)) < len(inputs):
        raise UserError(f"fusion inputs are different names out of {', '.join(INPUTS)}, got {list(inputs)}")
