"""A budget of teacher passes: the tiles worth one are predicted from the low-resolution pass, before any is encoded.

Shapes: B images, n tiles a side, R x R' pixels and g x g' tokens of a pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.model.views import Views, stitch, tile_images
from featsharp_adapter.upsamplers.base import Upsampler


def check_passes(upsampler: Upsampler, passes: float) -> float:
    """Passes an image, on average, from 1 (no tiles) to all. Below 1: that share of all. UserError where impossible."""
    if not upsampler.budgeted:
        raise UserError(
            "passes: this upsampler needs all of its tiles; ridge and ridge_block with tiles can do with less"
        )
    return budget_of(passes, 1 + upsampler.tile_grids[0] ** 2)


def budget_of(passes: float, whole: int) -> float:
    """As a number of passes an image, of `whole`; UserError for less than the low-resolution pass, or more than all."""
    wanted = passes * whole if passes < 1 else passes
    if not 1 <= wanted <= whole:
        raise UserError(f"passes: from 1 (or a share of at least {1 / whole:.2g}) to {whole} an image, got {passes:g}")
    return wanted


def choose_tiles(upsampler: Upsampler, low: Tensor, guidance: Tensor, passes: float) -> Tensor | None:
    """bool [B, n, n]: the tiles of the batch with the largest predicted gain, as many as the budget allows.

    low: denoised and normalised. The budget counts over the batch. None: all of them.
    """
    n = upsampler.tile_grids[0]
    count = int((check_passes(upsampler, passes) - 1) * len(low) + 1e-6)
    if count >= len(low) * n * n:
        return None
    gains = upsampler.gains(low, guidance).flatten()
    chosen = torch.zeros_like(gains, dtype=torch.bool)
    chosen[gains.argsort(descending=True, stable=True)[:count]] = True
    return chosen.unflatten(0, (len(low), n, n))


def encode_tiles(encode: Callable[[Tensor], Tensor], large: Tensor, chosen: Tensor, like: Tensor) -> Tensor:
    """large [B, 3, n*R, n*R'] -> [B, C, n*g, n*g'], zero where a tile was not chosen.

    encode: pixels [N, 3, R, R'] -> features [N, C, g, g'], called for the chosen tiles. like: [B, C, g, g'].
    """
    n = chosen.shape[-1]
    tiles = like.new_zeros(len(large) * n * n, *like.shape[1:])
    index = chosen.flatten().nonzero()[:, 0]
    if len(index):
        tiles[index] = encode(tile_images(large, n)[index]).to(tiles.dtype)
    return stitch(tiles, n)


def with_tiles(low: Views, tiles: Tensor, chosen: Tensor) -> Views:
    """The views of a low-resolution pass, with the tiles there are."""
    return Views(low.summary, low.low, {chosen.shape[-1]: tiles}, chosen)
