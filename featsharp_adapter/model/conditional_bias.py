"""The conditional bias of FeatSharp's code (not in its paper): what a ViT adds depends on what it sees.

One transformer block reads the tokens of one pass of the teacher, normalised and without the fixed bias, and returns
what to add. A penalty keeps it from touching places where views of an image agree anyway.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from featsharp_adapter.model.views import stitch, tile_images


class ConditionalBias(nn.Module):
    """[B, C, n*g, n*g'], stitched from n x n passes -> what is added to it, same shape; zero before training.

    A pre-norm block, x1 = x + Attention(LN(x)), x2 = x1 + MLP(LN(x1)), each pass for itself; the difference x2 - x.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"{heads} heads do not divide features {dim} wide; choose another number for conditional")
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        wide, narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(wide, nn.GELU(), narrow)
        for last in (self.proj, narrow):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, n: int = 1) -> Tensor:
        passes = tile_images(features, n)
        tokens = passes.flatten(2).transpose(1, 2)
        parts = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = tokens + self.proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        added = seen + self.mlp(self.norm2(seen)) - tokens
        return stitch(added.transpose(1, 2).unflatten(2, tuple(passes.shape[-2:])), n)


def disturbance(added: Tensor, seen: Tensor, expected: Tensor, mask: Tensor) -> Tensor:
    """Mean of w |added|^2 over valid cells, w = exp(-d^2): how much is changed where nothing had to be.

    added, seen, expected: [B, C, g, g'], what is added to the view's features, those features, and the image's own
    features warped into the view; d^2 their mean squared difference over channels. mask: [B, 1, g, g'].
    """
    weight = torch.exp(-(seen - expected).square().mean(dim=1, keepdim=True)).detach() * mask
    cost = (weight * added.square().mean(dim=1, keepdim=True)).flatten(1).sum(dim=1)
    return (cost / mask.flatten(1).sum(dim=1).clamp(min=1)).mean()
