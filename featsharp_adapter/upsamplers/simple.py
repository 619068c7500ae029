"""Upsamplers without weights: the baselines. All are affine in the features, so PHI-S around them changes nothing."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.upsamplers.base import Upsampler


def resize_features(low: Tensor, factor: int) -> Tensor:
    """[B, C, g, g'] -> [B, C, factor*g, factor*g'], bilinear; tokens are areas, hence align_corners=False."""
    size = (low.shape[-2] * factor, low.shape[-1] * factor)
    return F.interpolate(low, size=size, mode="bilinear", align_corners=False)


class NoUpsampler(Upsampler):
    """The teacher's own map."""

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int]) -> None:
        if factor != 1:
            raise UserError(f'upsampler "none" leaves the grid as it is: its factor is 1, not {factor}')
        super().__init__(dim=dim, factor=factor, grid=grid)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        return low


class BilinearUpsampler(Upsampler):
    """Smooth, and no new detail."""

    starts_as_bilinear = True

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int]) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        return resize_features(low, self.factor)


class TileUpsampler(Upsampler):
    """The stitched tiles: all the detail, none of the context, and seams."""

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int]) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid, tile_grids=(factor,))

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        return tiles[self.factor]


class S2Upsampler(Upsampler):
    """Blend of the bilinear map and the tiles, after S2 (arXiv 2403.13043), which concatenates them.

    FeatSharp (arXiv 2502.16025) compares with the blend because it keeps the teacher's width.
    """

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int], tile_share: float = 0.5) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid, tile_grids=(factor,))
        self.tile_share = tile_share

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        return resize_features(low, self.factor).lerp(tiles[self.factor], self.tile_share)
