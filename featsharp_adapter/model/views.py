"""What a teacher sees of an image: the whole of it, small, and the same image large, in tiles of the native size.

Shapes: R x R' the teacher's native size in pixels, g x g' its token grid there, n a tile grid (n tiles a side).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from teachers.contracts import Backbone, Features, chunked, resize_images


class Views(NamedTuple):
    """A teacher's features of a batch, in its own units; no upsampler ever calls a teacher, it is given these.

    summary: [B, S] or None, of the low-resolution pass. low: [B, C, g, g'].
    tiles: per tile grid n the stitched map [B, C, n*g, n*g'].
    chosen: bool [B, n, n], the tiles there are where a budget left some out (`adapter/budget.py`); None: all.
    """

    summary: Tensor | None
    low: Tensor
    tiles: dict[int, Tensor]
    chosen: Tensor | None = None

    def to(self, device: torch.device | str) -> "Views":
        """The same on another device."""
        summary = None if self.summary is None else self.summary.to(device)
        chosen = None if self.chosen is None else self.chosen.to(device)
        return Views(summary, self.low.to(device), {n: tiles.to(device) for n, tiles in self.tiles.items()}, chosen)


def tile_images(images: Tensor, n: int) -> Tensor:
    """[B, c, n*R, n*R'] -> [B*n*n, c, R, R'], an image's tiles in reading order. ValueError if n does not divide it."""
    batch, channels, height, width = images.shape
    if height % n or width % n:
        raise ValueError(f"{height}x{width} cannot be cut into {n}x{n} tiles")
    tiles = images.reshape(batch, channels, n, height // n, n, width // n)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch * n * n, channels, height // n, width // n)


def stitch(tiles: Tensor, n: int) -> Tensor:
    """[B*n*n, C, g, g'] -> [B, C, n*g, n*g'], the inverse of `tile_images`."""
    count, channels, height, width = tiles.shape
    grid = tiles.reshape(count // (n * n), n, n, channels, height, width)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(count // (n * n), channels, n * height, n * width)


def teacher_views(
    backbone: Backbone, images: Tensor, grids: Iterable[int], *, chunk: int = 64, antialias: bool = True
) -> Views:
    """Low-resolution map and tile maps of [B, 3, H, W] in [0, 1], any H, W: the teacher encodes B (1 + sum n^2) images.

    Tiling multiplies the batch, so at most `chunk` images are in the teacher at a time. Gradients flow if the backbone
    lets them (a `FrozenBackbone` does not). antialias: of the resized images; published code has none.
    """
    height, width = backbone.spec.native_size
    grids = tuple(grids)
    scaled = {n: resize_images(images, (n * height, n * width), antialias=antialias) for n in grids}
    low = resize_images(images, (height, width), antialias=antialias)
    pieces = [low, *(tile_images(scaled[n], n) for n in grids)]
    features: Features = chunked(backbone, torch.cat(pieces), chunk)
    spatial = features.spatial.split([len(piece) for piece in pieces])
    summary = None if features.summary is None else features.summary[: len(low)]
    return Views(summary, spatial[0], {n: stitch(tiles, n) for n, tiles in zip(grids, spatial[1:], strict=True)})
