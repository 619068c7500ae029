"""A map made a few rows at a time, where making it all at once takes more memory than there is."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def in_strips(rows: Callable[[int, int], Tensor], low: Tensor, factor: int, strip_rows: int) -> Tensor:
    """[B, C, factor*h, factor*w] from rows(start, stop) -> [B, C, stop-start, factor*w]; low [B, C, h, w]."""
    batch, channels, height, width = low.shape
    out = low.new_empty(batch, channels, factor * height, factor * width)
    for start in range(0, factor * height, strip_rows):
        stop = min(start + strip_rows, factor * height)
        out[:, :, start:stop] = rows(start, stop)
    return out


def resized_rows(low: Tensor, factor: int, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the bilinear upsampling of [B, C, h, w] by `factor` (align_corners=False)."""
    first = max(start // factor - 1, 0)
    last = min(-(-stop // factor) + 1, low.shape[-2])
    part = low[:, :, first:last]
    size = ((last - first) * factor, low.shape[-1] * factor)
    out = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
    return out[:, :, start - first * factor : stop - first * factor]
