"""Attention inside windows, as in ViTDet (arXiv 2203.16527) and RADIO: most blocks look inside windows, some globally.

Summary tokens and registers go into every window as copies and are averaged when the windows are put together again.
A grid that the window does not divide is padded at the bottom and on the right; no token looks at the padding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


def global_blocks(depth: int, count: int) -> frozenset[int]:
    """Blocks that attend globally: every max(depth // count, 1)-th, and the last always."""
    period = max(depth // count, 1)
    return frozenset({*range(period - 1, depth, period), depth - 1})


@dataclass(frozen=True)
class Windows:
    """Windows of `size` x `size` tokens over a grid, `prefix` tokens before the patches."""

    grid: Grid
    size: int
    prefix: int

    @property
    def shape(self) -> Grid:
        """Rows and columns of a window; no more than the grid has."""
        return min(self.size, self.grid[0]), min(self.size, self.grid[1])

    @property
    def count(self) -> Grid:
        """Windows below and beside each other."""
        return -(-self.grid[0] // self.shape[0]), -(-self.grid[1] // self.shape[1])

    def cut(self, tokens: Tensor) -> Tensor:
        """[B, P + h*w, D] -> [B*n, P + s*s', D], the n windows of an image one after the other."""
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        inside = self._cut(patches.unflatten(1, self.grid))
        copies = prefix.repeat_interleave(self.count[0] * self.count[1], dim=0)
        return torch.cat([copies, inside], dim=1)

    def join(self, tokens: Tensor) -> Tensor:
        """[B*n, P + s*s', D] -> [B, P + h*w, D]; each prefix token is the mean of its copies."""
        (down, across), (rows, columns) = self.count, self.shape
        prefix = tokens[:, : self.prefix].unflatten(0, (-1, down * across)).mean(1)
        inside = tokens[:, self.prefix :].unflatten(1, (rows, columns)).unflatten(0, (-1, down, across))
        whole = inside.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
        patches = whole[:, : self.grid[0], : self.grid[1]].flatten(1, 2)
        return torch.cat([prefix, patches], dim=1)

    def mask(self, images: int, device: torch.device) -> Tensor | None:
        """[B*n, 1, 1, P + s*s'], True where there is something to look at; None when the windows fit exactly."""
        if all(count * side == whole for count, side, whole in zip(self.count, self.shape, self.grid, strict=True)):
            return None
        there = self._cut(torch.ones(1, *self.grid, 1, dtype=torch.bool, device=device))[..., 0]
        seen = F.pad(there, (self.prefix, 0), value=True)
        return seen.repeat(images, 1)[:, None, None]

    def _cut(self, whole: Tensor) -> Tensor:
        """[B, h, w, D] -> [B*n, s*s', D], padded with zeros."""
        (down, across), (rows, columns) = self.count, self.shape
        padding = (0, 0, 0, across * columns - self.grid[1], 0, down * rows - self.grid[0])
        cells = F.pad(whole, padding).unflatten(2, (across, columns)).unflatten(1, (down, rows))
        return cells.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(0, 2)
