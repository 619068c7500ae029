"""LoftUp (arXiv 2504.14032): coordinates and colours of fine cells ask a small transformer over the coarse features.

Published code: andrehuang/loftup, MIT; this is written from the paper. Any factor. Its own training objective needs
segmentation masks; here it is trained as all others are. Two changes: group instead of batch normalisation, since what
an image gives must not depend on its batch, and no layer normalisation at the end, since features in PHI-S space do not
have one length.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.parts import (
    ChannelNorm,
    FourierFeatures,
    check_divides,
    coordinates,
    same_conv,
    split_heads,
    to_tokens,
)

#: Frequencies of the positions that accompany coarse features.
COARSE_FREQUENCIES = 5


class CrossBlock(nn.Module):
    """queries [B, N, D], context [B, T, D] -> [B, N, D]: pre-norm cross-attention and feed-forward, both residual.

    Library attention: memory grows with N + T.
    """

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.context_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.proj = nn.Linear(inner, width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        normed, context = self.query_norm(queries), self.context_norm(context)
        q, k, v = (
            split_heads(layer(tokens), self.heads)
            for layer, tokens in ((self.query, normed), (self.key, context), (self.value, context))
        )
        queries = queries + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return queries + self.mlp(self.mlp_norm(queries))


class LoftUpUpsampler(Upsampler):
    """frequencies: of the fine cells' coordinates and colours. heads divide the feature width. depth: of blocks."""

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        frequencies: int = 20,
        heads: int = 4,
        depth: int = 2,
    ) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        check_divides("heads", heads, dim, "the feature width")
        width = dim + 4 * COARSE_FREQUENCIES
        inputs = 10 * frequencies + 3
        self.fine_features = FourierFeatures(5, frequencies)
        self.coarse_positions = FourierFeatures(2, COARSE_FREQUENCIES)
        layers: list[nn.Module] = [ChannelNorm(inputs)]
        for before in (inputs, width):
            layers += [same_conv(before, width, 3), nn.GroupNorm(1, width), nn.ReLU()]
        self.embed = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(CrossBlock(width, dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        size = (low.shape[-2] * self.factor, low.shape[-1] * self.factor)
        queries, context = to_tokens(self._fine(guidance, size)), to_tokens(self._coarse(low))
        for block in self.blocks:
            queries = block(queries, context)
        return self.out(self.norm(queries)).transpose(1, 2).unflatten(2, size)

    def _fine(self, guidance: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, D, k*g, k*g'] from the image alone: its colours and places, from -1 to 1."""
        colours = 2 * F.adaptive_avg_pool2d(guidance, size) - 1
        places = coordinates(*size, like=colours).expand(len(colours), -1, -1, -1)
        return self.embed(torch.cat([self.fine_features(torch.cat([places, colours], dim=1)), colours], dim=1))

    def _coarse(self, low: Tensor) -> Tensor:
        """[B, D, g, g']: the features with the code of their places beside them."""
        places = coordinates(*low.shape[-2:], like=low).expand(len(low), -1, -1, -1)
        return torch.cat([low, self.coarse_positions(places)], dim=1)
