"""Fewer tokens for the language model: averaging, folding neighbours into channels, merging the most alike (ToMe)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def reduced_channels(channels: int, grid: tuple[int, int], reduce: str, side: int | None) -> int:
    """Channels of a token after `reduce`."""
    return channels * fold_of(grid, side) ** 2 if reduce == "unshuffle" and side is not None else channels


def fold_of(grid: tuple[int, int], side: int) -> int:
    """Neighbours per side that are folded into one token, so that at most `side` are left."""
    return math.ceil(max(grid) / side)


def reduce_grid(cells: Tensor, reduce: str, side: int | None) -> Tensor:
    """Map [V, C, h, w] -> map with at most side x side cells; as it is where it has no more.

    `pool` averages areas; `unshuffle` folds k x k neighbours into channels, zeros past the edge (VILA's downsampling).
    """
    if side is None or reduce == "none":
        return cells
    grid = (cells.shape[-2], cells.shape[-1])
    if reduce == "pool":
        return F.adaptive_avg_pool2d(cells, (min(side, grid[0]), min(side, grid[1])))
    fold = fold_of(grid, side)
    return F.pixel_unshuffle(F.pad(cells, (0, -grid[1] % fold, 0, -grid[0] % fold)), fold)


def merge_tokens(tokens: Tensor, keep: int) -> Tensor:
    """[V, T, C] -> [V, keep, C]: the most alike tokens are averaged, in rounds of bipartite matching.

    Token Merging (arXiv 2210.09461): every other token looks for the most similar of the rest, the best matches merge,
    weighted by how many tokens each one stands for. Raster order is kept. One round at most halves the tokens.
    """
    sizes = tokens.new_ones(tokens.shape[0], tokens.shape[1], 1)
    places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
    while tokens.shape[1] > keep:
        tokens, sizes, places = _merge_round(tokens, sizes, places, min(tokens.shape[1] - keep, tokens.shape[1] // 2))
    return tokens


def _merge_round(tokens: Tensor, sizes: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge `count` of the odd tokens into even ones."""
    unit = F.normalize(tokens, dim=-1)
    alike, partner = (unit[:, 1::2] @ unit[:, ::2].transpose(1, 2)).max(-1)  # [V, T // 2]
    order = alike.argsort(dim=1, descending=True, stable=True)
    gone, stay = order[:, :count], order[:, count:]
    target = partner.gather(1, gone)[..., None]
    weighted, width = tokens * sizes, tokens.shape[-1]
    total = weighted[:, ::2].scatter_add(1, target.expand(-1, -1, width), _rows(weighted[:, 1::2], gone))
    weight = sizes[:, ::2].scatter_add(1, target, _rows(sizes[:, 1::2], gone))
    merged = torch.cat([total / weight, _rows(tokens[:, 1::2], stay)], 1)
    weights = torch.cat([weight, _rows(sizes[:, 1::2], stay)], 1)
    place = torch.cat([places[:, ::2], places[:, 1::2].gather(1, stay)], 1)
    raster = place.argsort(dim=1)
    return _rows(merged, raster), _rows(weights, raster), place.gather(1, raster)


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))
