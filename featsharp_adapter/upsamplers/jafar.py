"""JAFAR (arXiv 2506.11136): fine queries from the image attend to coarse keys that the features have modulated.

Published code: PaulCouairon/JAFAR, Apache-2.0; this is written from the paper. Any factor; every fine feature is a
convex combination of the teacher's own.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.parts import (
    GROUPS,
    Rotary,
    averaged_attention,
    check_divides,
    conv_tower,
    pool_guidance,
    split_heads,
    to_tokens,
)


class SpatialFeatureTransform(nn.Module):
    """keys [B, D, g, g'], features [B, C, g, g'] -> gamma(features) * norm(keys) + beta(features) (section 3.2)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, affine=False)
        self.gamma = nn.Conv2d(dim, width, 1, bias=False)
        self.beta = nn.Conv2d(dim, width, 1, bias=False)

    def forward(self, keys: Tensor, features: Tensor) -> Tensor:
        return self.gamma(features) * self.norm(keys) + self.beta(features)


class JafarUpsampler(Upsampler):
    """Attention of every fine cell to all coarse cells; the heads' weights are averaged and weigh raw features.

    width: of queries and keys, a multiple of 8 and of `heads`. The image is looked at in at most twice the target's
    resolution, which is what queries averaged to the target can use.
    """

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int], width: int = 128, heads: int = 4) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        check_divides("width", GROUPS, width, "the width of queries and keys")
        check_divides("heads", heads, width, "the width of queries and keys")
        self.heads = heads
        self.image = conv_tower(3, width, kernel=3)
        self.rotary = Rotary(width)
        self.query, self.key = conv_tower(width, width, kernel=1), conv_tower(width, width, kernel=1)
        self.modulate = SpatialFeatureTransform(width, dim)
        self.query_norm, self.key_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.to_query, self.to_key = nn.Linear(width, width), nn.Linear(width, width)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        size = (low.shape[-2] * self.factor, low.shape[-1] * self.factor)
        image = self.rotary(self.image(pool_guidance(guidance, size, 2)))
        queries = F.adaptive_avg_pool2d(self.query(image), size)
        keys = self.modulate(F.adaptive_avg_pool2d(self.key(image), (low.shape[-2], low.shape[-1])), low)
        query = split_heads(self.to_query(self.query_norm(to_tokens(queries))), self.heads)
        key = split_heads(self.to_key(self.key_norm(to_tokens(keys))), self.heads)
        return averaged_attention(query, key, to_tokens(low)).transpose(1, 2).unflatten(2, size)
