"""Cropped position embedding (CPE): training sees random crops of one large square of positions, for any size to come.

As in RADIO: an image's crop has fractions clamp(s a) of the width and clamp(s / a) of the height of the stored square,
s ~ U(sqrt(0.1), 1) and a ~ exp(U(log 3/4, log 4/3)), at a uniform place, sampled bilinearly at the image's tokens.
Afterwards there is no chance in it: the square is resized to the longer side, and the top left window taken.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.keyed_tensors import uniform

Grid = tuple[int, int]

SCALES = (math.sqrt(0.1), 1.0)
ASPECTS = (3 / 4, 4 / 3)


def crop_boxes(count: int, *key: int) -> Tensor:
    """`count` boxes [count, 4]: top, left, height, width as fractions of the stored square, decided by `key`."""
    scale, aspect, down, across = uniform((4, count), *key)
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * scale
    low, high = (math.log(bound) for bound in ASPECTS)
    aspect = torch.exp(low + (high - low) * aspect)
    width, height = (scale * aspect).clamp(0, 1), (scale / aspect).clamp(0, 1)
    return torch.stack([down * (1 - height), across * (1 - width), height, width], dim=1)


def crop(square: Tensor, boxes: Tensor, grid: Grid) -> Tensor:
    """Positions [1, D, G, G] in boxes [B, 4] -> [B, D, *grid] float32; the corners of a box are its corner tokens."""
    top, left, height, width = boxes.to(square.device)[:, :, None].unbind(1)
    rows, columns = (torch.linspace(0, 1, count, device=square.device) for count in grid)
    down, across = top + height * rows, left + width * columns
    points = torch.stack([across[:, None, :].expand(-1, grid[0], -1), down[:, :, None].expand(-1, -1, grid[1])], dim=-1)
    whole = square.float().expand(len(boxes), -1, -1, -1)
    return F.grid_sample(whole, 2 * points - 1, mode="bilinear", align_corners=True)


def window(square: Tensor, grid: Grid) -> Tensor:
    """Positions [1, D, G, G] -> [1, D, *grid] float32: resized to a square as long as the grid, its top left part."""
    side = max(grid)
    whole = F.interpolate(square.float(), size=(side, side), mode="bilinear", align_corners=False)
    return whole[:, :, : grid[0], : grid[1]]


def positions(square: Tensor, grid: Grid, count: int, key: int | None, dropout: float) -> Tensor:
    """Positions [1, D, G, G] of `count` images of a grid -> [count or 1, D, *grid] float32.

    key: of this training forward; None where nothing is drawn. dropout: chance that an image has no positions at all.
    """
    if grid == tuple(square.shape[-2:]):
        found = square.float()
    elif key is None:
        return window(square, grid)
    else:
        found = crop(square, crop_boxes(count, key, 0), grid)
    if key is None or not dropout:
        return found
    kept = uniform((count,), key, 1) >= dropout
    return found * kept.to(found).view(-1, 1, 1, 1)


def resize_stored(square: Tensor, side: int) -> Tensor:
    """Stored positions [1, g*g, D] -> [1, side*side, D]: bicubic, corner to corner, as RADIO loads another size."""
    old = math.isqrt(square.shape[1])
    whole = square.float().transpose(1, 2).unflatten(2, (old, old))
    resized = F.interpolate(whole, size=(side, side), mode="bicubic", align_corners=True)
    return resized.flatten(2).transpose(1, 2).to(square.dtype)
