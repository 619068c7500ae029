"""What several upsamplers of the zoo are made of.

Shapes: B batch, H x W pixels of whatever map is meant, D width of an embedding, M heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UserError

#: Attention logits that exist at one time; more queries than fit go one part after the other.
LOGITS = 2**24
#: Groups of the normalisation in convolution towers.
GROUPS = 8


def pool_guidance(guidance: Tensor, size: tuple[int, int], cap: int) -> Tensor:
    """[B, 3, H, W] -> at most cap * size, by area pooling. More than that an encoder has no use for."""
    height, width = (min(side, cap * target) for side, target in zip(guidance.shape[-2:], size, strict=True))
    return F.adaptive_avg_pool2d(guidance, (height, width))


def coordinates(height: int, width: int, *, like: Tensor) -> Tensor:
    """[2, height, width]: row and column of each cell's centre, the whole map from -1 to 1."""
    rows, columns = ((2 * torch.arange(n, device=like.device, dtype=like.dtype) + 1) / n - 1 for n in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def check_divides(what: str, number: int, whole: int, of: str) -> None:
    """UserError unless `number` divides `whole`."""
    if number < 1 or whole % number:
        raise UserError(f"{what}: {number} does not divide {of} ({whole}); choose a number that does")


def check_odd(what: str, number: int) -> None:
    """UserError unless `number` is odd and positive."""
    if number < 1 or number % 2 == 0:
        raise UserError(f"{what} is an odd number of pixels, got {number}")


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, D, H, W] at every place."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """[B, D, H, W] -> same: two normalised, activated convolutions beside the identity."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.GroupNorm(GROUPS, width), nn.SiLU(), same_conv(width, width, kernel, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.layers(maps)


def conv_tower(inputs: int, width: int, *, kernel: int, block_kernel: int = 1, blocks: int = 2) -> nn.Sequential:
    """[B, inputs, H, W] -> [B, width, H, W]: a convolution and residual blocks, as JAFAR's encoders are built."""
    stem = same_conv(inputs, width, kernel, bias=False)
    return nn.Sequential(stem, *(ResidualBlock(width, block_kernel) for _ in range(blocks)))


def same_conv(inputs: int, outputs: int, kernel: int, *, bias: bool = True, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size (or divides it by the stride) and continues the border instead of zeros."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, padding_mode="replicate", bias=bias)


class Rotary(nn.Module):
    """Turns pairs of channels by angles linear in a place's coordinates (2-D RoPE), [B, D, H, W] -> same.

    Pair i turns by y * fy[i] + x * fx[i]. At first half of the pairs look at rows and half at columns, with frequencies
    from 1 to `base` in geometric steps; they are learned.
    """

    def __init__(self, width: int, *, base: float = 100.0) -> None:
        super().__init__()
        check_divides("rotary positions", 4, width, "the width of queries and keys")
        steps = base ** torch.linspace(0, 1, width // 4)
        still = torch.zeros_like(steps)
        self.frequencies = nn.Parameter(torch.stack([torch.cat([steps, still]), torch.cat([still, steps])]))

    def forward(self, maps: Tensor) -> Tensor:
        angles = torch.einsum("ahw,ad->dhw", coordinates(*maps.shape[-2:], like=maps), self.frequencies)
        first, second = maps.chunk(2, dim=1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=1)


class FourierFeatures(nn.Module):
    """[B, c, H, W] -> [B, 2*c*F, H, W]: sine and cosine of every channel at F frequencies from e^low to e^high.

    The phases are learned, as in FeatUp (arXiv 2403.10516) and LoftUp (arXiv 2504.14032).
    """

    frequencies: Tensor

    def __init__(self, channels: int, count: int, *, low: float = -2.0, high: float = 10.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(low, high, count).exp(), persistent=False)
        self.phases = nn.Parameter(torch.randn(2, channels, count, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        angles = (maps[:, None, :, None] * self.frequencies[:, None, None] + self.phases).flatten(2, 3)
        return torch.cat([angles[:, 0].sin(), angles[:, 1].cos()], dim=1)


def averaged_attention(query: Tensor, key: Tensor, values: Tensor) -> Tensor:
    """query [B, M, N, d], key [B, M, T, d], values [B, T, C] -> [B, N, C]: mean of the heads' weights on raw values.

    All heads weigh the same values, so that every result is a convex combination of them. Queries beyond what `LOGITS`
    allows go in parts, recomputed in the backward pass: memory grows with N and with T, not with their product.
    """
    part = max(1, LOGITS // (key.shape[0] * key.shape[1] * key.shape[2]))
    if part >= query.shape[2]:
        return _averaged(query, key, values)
    parts = query.split(part, dim=2)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, values)):
        return torch.cat([checkpoint(_averaged, q, key, values, use_reentrant=False) for q in parts], dim=1)
    return torch.cat([_averaged(q, key, values) for q in parts], dim=1)


def _averaged(query: Tensor, key: Tensor, values: Tensor) -> Tensor:
    logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    return logits.softmax(dim=-1).mean(dim=1) @ values


def to_tokens(maps: Tensor) -> Tensor:
    """[B, D, H, W] -> [B, H*W, D]."""
    return maps.flatten(2).transpose(1, 2)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, N, D] -> [B, M, N, D/M]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
