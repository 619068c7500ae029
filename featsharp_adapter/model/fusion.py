"""The fusion block of FeatSharp (arXiv 2502.16025, section 3.3): one pre-norm transformer block with local attention.

It reads several maps side by side and returns a correction of the first.
Shapes: D the width of all maps, C of the first.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import unknown
from featsharp_adapter.model.local_attention import LocalAttention, Position

BlockKind = Literal["full", "no_attention", "no_ffn", "linear"]


class SwiGLU(nn.Module):
    """W3(silu(W1 x) * W2 x), arXiv 2002.05202; the last layer starts at zero."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, out)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class FusionBlock(nn.Module):
    """maps [B, D, h, w] -> [B, C, h, w].

    x1 = x + ls1 * Attention(LN(x));  y = x1[:C] + ls2 * SwiGLU(LN(x1)).
    norm: False leaves both LN out, as the repository's later configurations do.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        *,
        heads: int,
        window: int,
        hidden: int,
        layer_scale: float,
        position: Position = "alibi",
        norm: bool = True,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.out, self.radius = out, window // 2
        self.norm1, self.norm2 = _norm(dim, norm), _norm(dim, norm)
        self.attention = LocalAttention(dim, heads=heads, window=window, position=position, head_dim=head_dim)
        self.mlp = SwiGLU(dim, hidden, out)
        self.scale1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.scale2 = nn.Parameter(torch.full((out,), layer_scale))
        # With the last layers at zero the block starts as exactly the first map, however large the layer scale.
        _start_at_zero(self.attention.proj)
        _start_at_zero(self.mlp.w3)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.permute(0, 2, 3, 1)
        tokens = tokens + self.scale1 * self.attention(self.norm1(tokens))
        fused = tokens[..., : self.out] + self.scale2 * self.mlp(self.norm2(tokens))
        return fused.permute(0, 3, 1, 2)


class PartialBlock(nn.Module):
    """maps [B, D, h, w] -> [B, C, h, w]: y = x[:C] + F(LN(x)), the ablations of the paper's table 10.

    F is the SwiGLU alone, the attention alone, or one linear layer (without LN). No layer scale, as published; unlike
    there its last layer starts at zero, so that these too begin as their first map and differ in nothing else.
    """

    def __init__(self, dim: int, out: int, branch: nn.Module, last: nn.Linear, *, norm: bool, radius: int) -> None:
        super().__init__()
        self.out, self.radius = out, radius
        self.norm, self.branch = _norm(dim, norm), branch
        _start_at_zero(last)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.permute(0, 2, 3, 1)
        return (tokens[..., : self.out] + self.branch(self.norm(tokens))).permute(0, 3, 1, 2)


def build_block(
    kind: BlockKind,
    dim: int,
    out: int,
    *,
    heads: int,
    window: int,
    hidden: int | None,
    layer_scale: float,
    position: Position,
    norm: bool,
    head_dim: int | None,
) -> FusionBlock | PartialBlock:
    """The block of a fusion level. hidden: of the SwiGLU; None gives 16C/3, and 8C/3 without attention (published)."""
    if kind == "full":
        return FusionBlock(
            dim,
            out,
            heads=heads,
            window=window,
            hidden=round_hidden(16 * out // 3) if hidden is None else hidden,
            layer_scale=layer_scale,
            position=position,
            norm=norm,
            head_dim=head_dim,
        )
    if kind == "no_attention":
        mlp = SwiGLU(dim, round_hidden(8 * out // 3) if hidden is None else hidden, out)
        return PartialBlock(dim, out, mlp, mlp.w3, norm=norm, radius=0)
    if kind == "no_ffn":
        attention = LocalAttention(dim, out=out, heads=heads, window=window, position=position, head_dim=head_dim)
        return PartialBlock(dim, out, attention, attention.proj, norm=norm, radius=window // 2)
    if kind == "linear":
        linear = nn.Linear(dim, out)
        return PartialBlock(dim, out, linear, linear, norm=False, radius=0)
    raise unknown("fusion block", kind, ("full", "no_attention", "no_ffn", "linear"))


def round_hidden(size: int) -> int:
    """Up to a multiple of 8, as published."""
    return 8 * ((size + 7) // 8)


def _norm(dim: int, norm: bool) -> nn.Module:
    return nn.LayerNorm(dim) if norm else nn.Identity()


def _start_at_zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
