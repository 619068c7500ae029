"""Joint bilateral upsampling (JBU) guided by the image, after FeatUp (arXiv 2403.10516) as FeatSharp uses it.

A level upsamples by one factor; a stack has one level per prime factor. The parameters do not depend on the feature
width: a level learns how to compare pixels, not features.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from featsharp_adapter.model.adaptive_upsample import TRIAL, adaptive_upsample
from featsharp_adapter.model.exactness import check_backend

RADIUS = 3
KEY_DIM = 32


def prime_factors(number: int) -> list[int]:
    """Ascending, with multiplicity: 12 -> [2, 2, 3]; 1 -> []."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


class JBULevel(nn.Module):
    """source [B, C, h, w], guidance [B, 3, H, W] in [0, 1] -> [B, C, f*h, f*w].

    The weight of a neighbour is a Gaussian of its distance times a softmax of how alike the two pixels' keys are.
    The Gaussian's width `sigma` is in half-windows: 1 (the published start) is nearly a 7 x 7 box, a blur that takes
    thousands of steps to unlearn; 0.35 is about one pixel. It is stored as a logarithm because it learns at a high rate
    and would otherwise cross zero, where the kernel collapses and its gradient with it. The published version scales
    both kernels by further learned scalars; normalising the product cancels them, so there are none here.
    """

    def __init__(self, factor: int, *, sigma: float = 0.35) -> None:
        super().__init__()
        self.factor = factor
        self.key = nn.Sequential(nn.Conv2d(3, KEY_DIM, 1), nn.GELU(), nn.Conv2d(KEY_DIM, KEY_DIM, 1))
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma)))

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        # Area pooling: bilinear resizing to a grid 16 times coarser would look at one pixel in 16.
        pixels = F.adaptive_avg_pool2d(guidance, (source.shape[-2] * self.factor, source.shape[-1] * self.factor))
        return self.guided(source, pixels)

    def guided(self, source: Tensor, pixels: Tensor) -> Tensor:
        """`forward` with the guidance [B, 3, f*h, f*w] at its own grid already."""
        if min(pixels.shape[-2:]) <= RADIUS:
            size = f"{pixels.shape[-2]}x{pixels.shape[-1]}"
            raise UserError(
                f"a filter of {2 * RADIUS + 1} pixels a side needs more than {size}: give it a larger image"
            )
        check_backend(source, TRIAL)
        return adaptive_upsample(source, self.kernel(pixels), self.factor)

    def kernel(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> weights [B, H, W, 7, 7] that sum to one."""
        keys = self.key(pixels)
        height, width = keys.shape[-2:]
        padded = F.pad(keys, (RADIUS,) * 4, mode="reflect")
        taps = 2 * RADIUS + 1
        likeness = [
            (keys * padded[:, :, dy : dy + height, dx : dx + width]).sum(dim=1)
            for dy in range(taps)
            for dx in range(taps)
        ]
        temperature = self.log_temperature.exp().clamp(1e-4, 1e4)
        # softmax(t l + log g) is the range softmax times the Gaussian, normalised, in one step.
        logits = temperature * torch.stack(likeness, dim=-1) + self._log_gaussian()
        return logits.softmax(dim=-1).unflatten(-1, (taps, taps))

    def _log_gaussian(self) -> Tensor:
        """[49]: -(x^2 + y^2) / (2 sigma^2), x and y from -1 to 1."""
        like = self.log_sigma
        line = torch.linspace(-1, 1, 2 * RADIUS + 1, device=like.device, dtype=like.dtype) ** 2
        squared = (line[:, None] + line[None, :]).flatten()
        return -squared / (2 * (2 * self.log_sigma).exp())


class JBUStack(nn.Module):
    """One level per prime factor of `factor`, smallest first; the identity for 1."""

    def __init__(self, factor: int, *, sigma: float = 0.35) -> None:
        super().__init__()
        levels = nn.ModuleList(JBULevel(prime, sigma=sigma) for prime in prime_factors(factor))
        self.levels: Sequence[JBULevel] = levels  # type: ignore[assignment]  # its stubs do not say of what it is a list

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        """[B, C, h, w], [B, 3, H, W] -> [B, C, factor*h, factor*w]."""
        for level in self.levels:
            source = level(source, guidance)
        return source

    def pyramid(self, guidance: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """The guidance [B, 3, H, W] of every level, for a source of `grid`: what `rows` is given."""
        pixels: list[Tensor] = []
        height, width = grid
        for level in self.levels:
            height, width = height * level.factor, width * level.factor
            pixels.append(F.adaptive_avg_pool2d(guidance, (height, width)))
        return pixels

    def rows(self, source: Tensor, pyramid: list[Tensor], start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the result, [B, C, stop-start, factor*w], from the few source rows they need."""
        if len(pyramid) == 0:
            return source[:, :, start:stop]
        level, pixels = self.levels[len(pyramid) - 1], pyramid[-1]
        factor, before = level.factor, pixels.shape[-2] // level.factor
        # A filter reaches RADIUS pixels up and down, and interpolation reads one source row more.
        first = max((start - RADIUS) // factor - 1, 0)
        last = min(-(-(stop + RADIUS) // factor) + 1, before)
        part = self.rows(source, pyramid[:-1], first, last)
        out = level.guided(part, pixels[:, :, first * factor : last * factor])
        return out[:, :, start - first * factor : stop - first * factor]
