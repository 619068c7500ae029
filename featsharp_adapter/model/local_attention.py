"""Multi-head attention of every token to the window around it, with ALiBi distances, rotary positions or none.

Queries go in blocks; the keys of a block are the rows and columns around it, a plain slice. Within a block the window
is a bias of the softmax (minus infinity outside), so that each block is one call of the library's fused attention, and
time and memory grow with the number of tokens, not with its square. Measured on CPU, gathering each token's own
neighbours never pays.

Shapes: B batch, h x w tokens, D width, M heads, d the width of a head.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from featsharp_adapter.model.constants import remembered_constants
from featsharp_adapter.model.exactness import Trial, check_backend, random_numbers

#: Rows and columns of queries in a block, and the number of tokens up to which the whole map is one block.
BLOCK_ROWS = 4
BLOCK_COLUMNS = 32
ONE_BLOCK_TOKENS = 256
#: Of the rotary angles, as published (FeatSharp's code); it is far longer than any grid.
ROPE_BASE = 50_000.0

Position = Literal["alibi", "rope", "none"]
POSITIONS = ("alibi", "rope", "none")


class LocalAttention(nn.Module):
    """[B, h, w, D] -> [B, h, w, out]; the window is clipped at the border (FeatSharp, arXiv 2502.16025, section 3.3).

    position: "alibi" penalises distance, rows in even heads and columns in odd ones; "rope" rotates queries and keys,
        half of each head by rows and half by columns; "none" sees only what the window lets in.
    head_dim: of queries, keys and values, D / M unless published weights have wider ones (method: a power of two); the
        scale stays that of D / M, and what is more of a value is cut off.
    """

    def __init__(
        self,
        dim: int,
        *,
        out: int | None = None,
        heads: int = 16,
        window: int = 7,
        position: Position = "alibi",
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"{heads} heads do not divide the fusion width {dim}; choose another number of heads")
        if window % 2 == 0 or window < 1:
            raise UserError(f"an attention window has an odd number of tokens, got {window}")
        if position not in POSITIONS:
            raise UserError(f'attention positions are {", ".join(POSITIONS)}, got "{position}"')
        size = dim // heads
        head_dim = size if head_dim is None else head_dim
        if head_dim < size:
            raise UserError(f"heads of a fusion {dim} wide have {size} channels or more, got {head_dim}")
        if position == "rope" and head_dim % 4:
            raise UserError(f"rotary positions need heads of a multiple of 4 channels, got {head_dim}")
        self.heads, self.radius, self.position, self.size = heads, window // 2, position, size
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.proj = nn.Linear(dim, dim if out is None else out)

    def forward(self, tokens: Tensor) -> Tensor:
        check_backend(tokens, TRIAL)
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)
        if self.position == "rope":
            angles = rope_angles(tokens.shape[1], tokens.shape[2], query.shape[-1], query.device)
            query, key = rotate_pairs(query, angles), rotate_pairs(key, angles)
        heads = self.heads if self.position == "alibi" else 1
        found = windowed_attention(query, key, value, self.radius, alibi_heads=heads, scale=self.size**-0.5)
        return self.proj(found[..., : self.size].flatten(-2))


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, radius: int, *, alibi_heads: int, scale: float
) -> Tensor:
    """[B, M, h, w, d] three times -> [B, h, w, M, d], each token attending to (2 radius + 1)^2 around it.

    alibi_heads: M for ALiBi distances, 1 for none.
    """
    height, width = query.shape[2:4]
    whole = height * width <= ONE_BLOCK_TOKENS
    rows = cut(height, height if whole else BLOCK_ROWS, radius)
    columns = cut(width, width if whole else BLOCK_COLUMNS, radius)
    bands = []
    for down in rows:
        band = []
        for across in columns:
            bias = block_bias(alibi_heads, down.relative(), across.relative(), radius, query.device, query.dtype)
            found = F.scaled_dot_product_attention(
                query[:, :, down.start : down.stop, across.start : across.stop].flatten(2, 3),
                key[:, :, down.first : down.last, across.first : across.last].flatten(2, 3),
                value[:, :, down.first : down.last, across.first : across.last].flatten(2, 3),
                attn_mask=bias,
                scale=scale,
            )
            band.append(found.unflatten(2, (down.stop - down.start, -1)))
        bands.append(band[0] if len(band) == 1 else torch.cat(band, dim=3))
    return torch.cat(bands, dim=2).permute(0, 2, 3, 1, 4)


class Cut:
    """One piece of a side: queries from `start` to `stop`, keys from `first` to `last`."""

    def __init__(self, start: int, stop: int, size: int, radius: int) -> None:
        self.start, self.stop = start, stop
        self.first, self.last = max(start - radius, 0), min(stop + radius, size)

    def relative(self) -> tuple[int, int, int]:
        """Queries, keys, and where among the keys the first query is: all that a bias depends on."""
        return self.stop - self.start, self.last - self.first, self.start - self.first


def cut(size: int, length: int, radius: int) -> list[Cut]:
    """A side in equal pieces of about `length`, the last one shorter."""
    count = max(1, round(size / length)) if length > BLOCK_ROWS else -(-size // length)
    each = -(-size // count)
    return [Cut(start, min(start + each, size), size, radius) for start in range(0, size, each)]


def alibi_slopes(heads: int) -> Tensor:
    """[M]: 1/2, 1/2, 1/4, 1/4, ...; even heads use theirs on row distances, odd heads on column distances."""
    return 2.0 ** -((torch.arange(heads) + 2) // 2)


@remembered_constants(64)
def block_bias(
    alibi_heads: int,
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
    radius: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """[M or 1, queries, keys] of a block, its sides as in `Cut.relative`. Cached: blocks share a few."""
    down = (torch.arange(rows[0]) + rows[2])[:, None] - torch.arange(rows[1])[None, :]
    across = (torch.arange(columns[0]) + columns[2])[:, None] - torch.arange(columns[1])[None, :]
    # [rows, columns, key rows, key columns] by broadcasting
    down, across = down.abs()[:, None, :, None], across.abs()[None, :, None, :]
    outside = (down > radius) | (across > radius)
    bias = torch.zeros(1, *outside.shape)
    if alibi_heads > 1:
        even = (torch.arange(alibi_heads) % 2 == 0).view(-1, 1, 1, 1, 1)
        bias = -alibi_slopes(alibi_heads).view(-1, 1, 1, 1, 1) * torch.where(even, down[None], across[None])
    bias = bias.masked_fill(outside, float("-inf"))
    return bias.reshape(len(bias), rows[0] * columns[0], rows[1] * columns[1]).to(device, dtype)


@remembered_constants(16)
def rope_angles(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """float64 [h, w, d/2]: the first d/4 angles turn with the row, the others with the column."""
    frequencies = ROPE_BASE ** -(torch.arange(size // 4, dtype=torch.float64) / (size // 4))
    down = torch.arange(height)[:, None, None] * frequencies
    across = torch.arange(width)[None, :, None] * frequencies
    angles = torch.cat([down.expand(-1, width, -1), across.expand(height, -1, -1)], dim=-1)
    return angles.to(device)


def rotate_pairs(values: Tensor, angles: Tensor) -> Tensor:
    """[B, M, h, w, d]: channels i and i + d/2 turned together by angles [h, w, d/2] (RoPE, arXiv 2104.09864)."""
    cos, sin = angles.cos().to(values.dtype), angles.sin().to(values.dtype)
    first, second = values.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, radius: int) -> Tensor:
    """`windowed_attention` with ALiBi distances and scale 1, of every token to every other."""
    heads, height, width = query.shape[1:4]
    row = torch.arange(height, device="cpu").repeat_interleave(width)
    column = torch.arange(width, device="cpu").repeat(height)
    down, across = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    distance = torch.stack([2.0 ** -(head // 2 + 1) * (across if head % 2 else down) for head in range(heads)])
    query, key, value = (part.flatten(2, 3) for part in (query, key, value))
    scores = (query @ key.transpose(-1, -2) - distance).masked_fill((down > radius) | (across > radius), float("-inf"))
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).unflatten(1, (height, width))


def _trial_numbers() -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = random_numbers(3, 1, 2, 17, 20, 8)
    return query, key, value


def _trial_fast(device: torch.device) -> Tensor:
    query, key, value = (part.float().to(device) for part in _trial_numbers())
    return windowed_attention(query, key, value, 3, alibi_heads=2, scale=1.0)


TRIAL = Trial("window attention", _trial_fast, lambda: plain_attention(*_trial_numbers(), 3))
