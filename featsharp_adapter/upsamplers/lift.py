"""LiFT (arXiv 2403.14625): a small U-Net doubles the features' grid with the help of the image, as often as needed.

Published code: saksham-s/lift, MIT; this is written from the paper. The paper doubles and iterates with the same
weights; here there is one network per distinct prime factor, so that 2 * 2 still shares one and 3 is possible.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp_adapter.model.jbu import prime_factors
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.parts import GROUPS, same_conv

#: Pixels of the image per fine cell and side that the image branch starts from, and its width.
PIXELS = 4
IMAGE_WIDTH = 32


def _block(inputs: int, outputs: int, *, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        same_conv(inputs, outputs, kernel, bias=False, stride=stride), nn.GroupNorm(GROUPS, outputs), nn.ReLU()
    )


class LiftLevel(nn.Module):
    """low [B, C, h, w], guidance [B, 3, H, W] -> [B, C, p*h, p*w].

    The image goes down to the fine and on to the coarse grid. Beside the latter the features go up by a transposed
    convolution, meet the former (the skip connection), and are mixed. Group instead of batch normalisation: what an
    image gives must not depend on the others of its batch.
    """

    def __init__(self, dim: int, prime: int, hidden: int) -> None:
        super().__init__()
        self.prime = prime
        self.to_fine = nn.Sequential(_block(3, IMAGE_WIDTH, stride=2), _block(IMAGE_WIDTH, IMAGE_WIDTH, stride=2))
        self.to_coarse = nn.Sequential(
            nn.Conv2d(IMAGE_WIDTH, IMAGE_WIDTH, prime, stride=prime), nn.GroupNorm(GROUPS, IMAGE_WIDTH), nn.ReLU()
        )
        self.up = nn.ConvTranspose2d(dim + IMAGE_WIDTH, hidden, prime, stride=prime)
        self.mix = nn.Sequential(_block(hidden + IMAGE_WIDTH, hidden), _block(hidden, hidden))
        self.out = nn.Conv2d(hidden, dim, 1)

    def forward(self, low: Tensor, guidance: Tensor) -> Tensor:
        step = PIXELS * self.prime
        size = (step * low.shape[-2], step * low.shape[-1])
        fine = self.to_fine(F.adaptive_avg_pool2d(guidance, size))
        up = self.up(torch.cat([low, self.to_coarse(fine)], dim=1))
        return self.out(self.mix(torch.cat([up, fine], dim=1)))


class LiftUpsampler(Upsampler):
    """hidden: width of the U-Net's upper half; None gives C/2 as published, rounded up to a multiple of 8."""

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int], hidden: int | None = None) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        width = dim // 2 if hidden is None else hidden
        width = GROUPS * max(1, -(-width // GROUPS))
        self.primes = prime_factors(factor)
        self.levels = nn.ModuleDict({str(prime): LiftLevel(dim, prime, width) for prime in sorted(set(self.primes))})

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        for prime in self.primes:
            low = self.levels[str(prime)](low, guidance)
        return low
