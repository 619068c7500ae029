"""From a picture of any size to the square views a backbone sees: one padded view, or LLaVA-1.6's tiles (anyres)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """One picture as the backbone sees it: `images` uint8 [V, 3, s, s].

    Single: V = 1. Anyres: the whole picture squeezed into a view, then the tiles of `grid` (columns, rows) row by row;
    `shape` (height, width) is the picture's own, so that what padding added can be cut off again.
    """

    images: Tensor
    grid: tuple[int, int] | None
    shape: tuple[int, int]


def single_view(pixels: Tensor, size: int, fill: Sequence[float]) -> Views:
    """uint8 [3, H, W], padded to a square with the colour `fill` (in [0, 1]) and resized (LLaVA-1.5's `pad`)."""
    height, width = pixels.shape[-2:]
    side = max(height, width)
    square = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in fill))
    square.paste(_picture(pixels), ((side - width) // 2, (side - height) // 2))
    return Views(_tensor(_resize(square, size, size))[None], None, (height, width))


def anyres_views(pixels: Tensor, size: int, grids: Sequence[tuple[int, int]]) -> Views:
    """uint8 [3, H, W] -> the squeezed picture and its tiles; padding is black (LLaVA-1.6's `anyres`)."""
    height, width = pixels.shape[-2:]
    picture = _picture(pixels)
    columns, rows = best_grid((height, width), size, grids)
    inner = inner_shape((height, width), (rows * size, columns * size))
    whole = Image.new("RGB", (columns * size, rows * size))
    whole.paste(_resize(picture, *inner), ((columns * size - inner[1]) // 2, (rows * size - inner[0]) // 2))
    tiles = _tensor(whole).unflatten(2, (columns, size)).unflatten(1, (rows, size))  # [3, rows, s, columns, s]
    tiles = tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)
    base = _tensor(_resize(picture, size, size))[None]
    return Views(torch.cat([base, tiles]), (columns, rows), (height, width))


def best_grid(shape: tuple[int, int], size: int, grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The grid (columns, rows) on which most of the picture's pixels survive; of equals the one with least padding."""

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        height, width = grid[1] * size, grid[0] * size
        scale = min(width / shape[1], height / shape[0])
        kept = min(int(shape[1] * scale) * int(shape[0] * scale), shape[0] * shape[1])
        return kept, kept - width * height

    return max(grids, key=worth)


def inner_shape(shape: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture that is fitted into a frame, aspect kept."""
    down, across = frame[0] / shape[0], frame[1] / shape[1]
    if across < down:
        return min(math.ceil(shape[0] * across), frame[0]), frame[1]
    return frame[0], min(math.ceil(shape[1] * down), frame[1])


def unpad(cells: Tensor, shape: tuple[int, int]) -> Tensor:
    """Stitched token grid [C, h, w] -> without the rows or columns that only padding filled (LLaVA-1.6's `unpad`)."""
    height, width = cells.shape[-2:]
    if shape[1] / shape[0] > width / height:
        margin = (height - max(1, int(shape[0] * width / shape[1]))) // 2
        return cells[:, margin : height - margin]
    margin = (width - max(1, int(shape[1] * height / shape[0]))) // 2
    return cells[:, :, margin : width - margin]


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())


def _resize(picture: Image.Image, height: int, width: int) -> Image.Image:
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0)
