"""Multi-head attention of every token to the window around it, with ALiBi distances and no other position code.

Queries go in bands of rows; the keys of a band are the rows around it, a plain slice. Within a band the window is a
bias of the softmax (minus infinity outside), so that each band is one call of the library's fused attention, and memory
grows with the number of tokens, not with its square. Measured on CPU, gathering each token's own neighbours never pays.

Shapes: B batch, h x w tokens, D width, M heads, d = D / M.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.errors import UserError

#: Rows of queries in a band, and the number of tokens up to which the whole map is one band.
BAND_ROWS = 4
ONE_BAND_TOKENS = 256


class LocalAttention(nn.Module):
    """[B, h, w, D] -> [B, h, w, D]; the window is clipped at the border (FeatSharp, arXiv 2502.16025, section 3.3)."""

    def __init__(self, dim: int, *, heads: int = 16, window: int = 7) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"{heads} heads do not divide the fusion width {dim}; choose another number of heads")
        if window % 2 == 0 or window < 1:
            raise UserError(f"an attention window has an odd number of tokens, got {window}")
        self.heads, self.radius = heads, window // 2
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)
        return self.proj(windowed_attention(query, key, value, self.radius).flatten(-2))


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, radius: int) -> Tensor:
    """[B, M, h, w, d] three times -> [B, h, w, M, d], each token attending to (2 radius + 1)^2 around it."""
    heads, height, width = query.shape[1:4]
    rows = height if height * width <= ONE_BAND_TOKENS else BAND_ROWS
    bands = []
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        first, last = max(start - radius, 0), min(stop + radius, height)
        bias = band_bias(heads, width, stop - start, last - first, start - first, radius, query.device, query.dtype)
        out = F.scaled_dot_product_attention(
            query[:, :, start:stop].flatten(2, 3),
            key[:, :, first:last].flatten(2, 3),
            value[:, :, first:last].flatten(2, 3),
            attn_mask=bias,
        )
        bands.append(out.unflatten(2, (stop - start, width)))
    return torch.cat(bands, dim=2).permute(0, 2, 3, 1, 4)


def alibi_slopes(heads: int) -> Tensor:
    """[M]: 1/2, 1/2, 1/4, 1/4, ...; even heads use theirs on row distances, odd heads on column distances."""
    return 2.0 ** -((torch.arange(heads) + 2) // 2)


@lru_cache(maxsize=64)
def band_bias(
    heads: int, width: int, rows: int, key_rows: int, offset: int, radius: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """[M, rows*w, key_rows*w] for queries whose first row is row `offset` of the keys. Cached: bands share three."""
    down = (torch.arange(rows) + offset)[:, None] - torch.arange(key_rows)[None, :]
    across = torch.arange(width)[:, None] - torch.arange(width)[None, :]
    down, across = (
        down.abs()[:, None, :, None],
        across.abs()[None, :, None, :],
    )  # [rows, w, key_rows, w] by broadcasting
    outside = (down > radius) | (across > radius)
    even = (torch.arange(heads) % 2 == 0).view(-1, 1, 1, 1, 1)
    distance = torch.where(even, down[None], across[None])
    bias = (-alibi_slopes(heads).view(-1, 1, 1, 1, 1) * distance).masked_fill(outside, float("-inf"))
    return bias.reshape(heads, rows * width, key_rows * width).to(device, dtype)
