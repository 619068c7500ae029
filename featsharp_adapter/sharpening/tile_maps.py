"""The tile map of one image: the teacher's view of each tile, denoised, laid out where it belongs, blended or not.

Shapes: R x R' a tile in pixels, g x g' its tokens, n tiles a side when they do not overlap.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def tile_starts(grid: int, n: int, overlap: float) -> list[int]:
    """First tokens of the tiles along a side of n*grid tokens, neighbours sharing at least `overlap` of a tile."""
    shared = min(round(overlap * grid), grid - 1)
    steps = -(-(n * grid - grid) // (grid - shared))
    return [round(step * (n - 1) * grid / max(steps, 1)) for step in range(steps + 1)]


def tile_map(
    encode: Callable[[Tensor], Tensor], large: Tensor, grid: tuple[int, int], n: int, *, overlap: float, chunk: int
) -> Tensor:
    """large [B, 3, n*R, n*R'] -> [B, C, n*g, n*g'].

    encode: pixels [N, 3, R, R'] -> features [N, C, g, g'], called for at most `chunk` tiles at a time. Where tiles
    overlap, each counts by how far inside it a place is, so that no seam is left.
    """
    rows, columns = (tile_starts(side, n, overlap) for side in grid)
    disjoint = len(rows) == len(columns) == n
    weight = None if disjoint else _ramp(grid[0], large)[:, None] * _ramp(grid[1], large)
    size = (large.shape[-2] // n, large.shape[-1] // n)
    out: Tensor | None = None
    total = torch.zeros(n * grid[0], n * grid[1], device=large.device)
    batch = len(large)
    places = [(row, column) for row in rows for column in columns]
    for group in _groups(places, max(1, chunk // batch)):
        pixels = torch.cat([_crop(large, place, grid, size) for place in group])
        encoded = [encode(part) for part in pixels.split(chunk)]
        found = encoded[0] if len(encoded) == 1 else torch.cat(encoded)
        del pixels, encoded
        for (row, column), tile in zip(group, found.split(batch), strict=True):
            if out is None:
                out = tile.new_zeros(batch, tile.shape[1], n * grid[0], n * grid[1])
            here = (slice(row, row + grid[0]), slice(column, column + grid[1]))
            out[:, :, *here] += tile if weight is None else tile * weight
            total[here] += 1.0 if weight is None else weight
    assert out is not None
    return out if disjoint else out.div_(total)


def _crop(large: Tensor, place: tuple[int, int], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The tile whose first token is at `place`; tokens need not be whole pixels (SigLIP's 384 px are 27 tokens)."""
    top, left = (round(start * pixels / tokens) for start, pixels, tokens in zip(place, size, grid, strict=True))
    return large[:, :, top : top + size[0], left : left + size[1]]


def _ramp(size: int, like: Tensor) -> Tensor:
    """[size]: highest in the middle, above zero at the ends."""
    places = torch.arange(size, device=like.device, dtype=torch.float32)
    return torch.minimum(places + 1, size - places)


def _groups(places: list[tuple[int, int]], length: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(places), length):
        yield places[start : start + length]
