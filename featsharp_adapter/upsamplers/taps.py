"""Filters that differ at every pixel, tap by tap: no unfolded copy of the source is ever made.

The straightforward form copies K^2 shifted sources. Here each tap is a view, multiplied and added in place, so that the
memory is that of the result, forward and backward.

Shapes: B batch, C width, h x w the grid of the source, K taps a side, S results per source cell (s*s when a cell is
upsampled s-fold, in the order of `pixel_shuffle`; 1 when source and result share a grid).
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def weigh_taps(source: Tensor, weights: Tensor, *, dilation: int = 1) -> Tensor:
    """source [B, C, h, w], weights [B, K*K, S, h, w] -> [B, C, S, h, w]: weighted sums of the K x K cells around each.

    Beyond the border the source continues with its last cell.
    """
    height, width = source.shape[-2:]
    out = source.new_zeros(*source.shape[:2], weights.shape[2], height, width)
    padded = _pad(source, weights.shape[1], dilation)
    for tap, (rows, columns) in enumerate(_windows(weights.shape[1], height, width, dilation)):
        out.addcmul_(padded[:, :, None, rows, columns], weights[:, None, tap])
    return out


def compare_taps(query: Tensor, keys: Tensor, kernel: int) -> Tensor:
    """query [B, D, S, h, w], keys [B, D, h, w] -> [B, K*K, S, h, w]: inner products with the K x K keys around."""
    height, width = keys.shape[-2:]
    padded = _pad(keys, kernel**2, 1)
    windows = _windows(kernel**2, height, width, 1)
    return torch.stack([(query * padded[:, :, None, rows, columns]).sum(dim=1) for rows, columns in windows], dim=1)


def to_cells(maps: Tensor, factor: int) -> Tensor:
    """[B, C, f*h, f*w] -> [B, C, f*f, h, w]; the inverse of `to_map`."""
    return F.pixel_unshuffle(maps, factor).unflatten(1, (maps.shape[1], factor**2))


def to_map(cells: Tensor, factor: int) -> Tensor:
    """[B, C, f*f, h, w] -> [B, C, f*h, f*w]."""
    return F.pixel_shuffle(cells.flatten(1, 2), factor)


def _pad(maps: Tensor, taps: int, dilation: int) -> Tensor:
    return F.pad(maps, (math.isqrt(taps) // 2 * dilation,) * 4, mode="replicate")


def _windows(taps: int, height: int, width: int, dilation: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the padded map that each tap sees, row by row."""
    side = math.isqrt(taps)
    for top in range(0, side * dilation, dilation):
        for left in range(0, side * dilation, dilation):
            yield slice(top, top + height), slice(left, left + width)
