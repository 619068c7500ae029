"""The fusion block of FeatSharp (arXiv 2502.16025, section 3.3): one pre-norm transformer block with local attention.

It reads several maps side by side and returns a correction of the first.
Shapes: D the width of all maps, C of the first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp_adapter.local_attention import LocalAttention


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
    """

    def __init__(self, dim: int, out: int, *, heads: int, window: int, hidden: int, layer_scale: float) -> None:
        super().__init__()
        self.out = out
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = LocalAttention(dim, heads=heads, window=window)
        self.mlp = SwiGLU(dim, hidden, out)
        self.scale1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.scale2 = nn.Parameter(torch.full((out,), layer_scale))
        # With the last layers at zero the block starts as exactly the first map, however large the layer scale.
        for last in (self.attention.proj, self.mlp.w3):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.permute(0, 2, 3, 1)
        tokens = tokens + self.scale1 * self.attention(self.norm1(tokens))
        fused = tokens[..., : self.out] + self.scale2 * self.mlp(self.norm2(tokens))
        return fused.permute(0, 3, 1, 2)
