"""FeatUp's joint bilateral stack as its authors publish it (arXiv 2403.10516), with its corrections and dropout.

Levels of 2, each a bicubic upsampling under a kernel that a small network corrects, and a correction of the result. It
is what their checkpoints hold; `featup` is the plainer form that FeatSharp compares with.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.errors import UserError
from featsharp_adapter.model.adaptive_upsample import TRIAL, adaptive_upsample
from featsharp_adapter.model.exactness import check_backend
from featsharp_adapter.model.jbu import KEY_DIM, RADIUS, JBULevel
from featsharp_adapter.upsamplers.base import Upsampler

TAPS = (2 * RADIUS + 1) ** 2
#: The published stack is given images normalised by ImageNet's mean and standard deviation.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: How much every correction counts.
SHARE = 0.1


class PublishedLevel(JBULevel):
    """source [B, C, h, w], guidance [B, 3, H, W] normalised -> [B, C, 2h, 2w]."""

    def __init__(self) -> None:
        super().__init__(2, sigma=1.0)
        self.key = nn.Sequential(nn.Conv2d(3, KEY_DIM, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(KEY_DIM, KEY_DIM, 1))
        self.fixup = nn.Sequential(nn.Conv2d(TAPS + 3, TAPS, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(TAPS, TAPS, 1))

    def guided(self, source: Tensor, pixels: Tensor) -> Tensor:
        check_backend(source, TRIAL)
        kernel = self.kernel(pixels)
        taps = kernel.flatten(3).permute(0, 3, 1, 2)
        correction = self.fixup(torch.cat([taps, pixels], dim=1)).permute(0, 2, 3, 1)
        return adaptive_upsample(
            source, kernel + SHARE * correction.unflatten(-1, kernel.shape[-2:]), 2, mode="bicubic"
        )


class FeatUpPublishedUpsampler(Upsampler):
    """One level for each doubling; the factor is a power of two (published: 16)."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int]) -> None:
        if factor & (factor - 1):
            raise UserError(f"featup_published doubles: its factor is a power of two, not {factor}")
        super().__init__(dim=dim, factor=factor, grid=grid)
        self.levels = nn.ModuleList(PublishedLevel() for _ in range(factor.bit_length() - 1))
        self.fixup = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(dim, dim, 1))
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        guidance = (guidance - self.mean) / self.std
        for level in self.levels:
            low = level(low, guidance)
        return low + SHARE * self.fixup(low)

    def guide_parameters(self) -> list[nn.Parameter]:
        return list(self.levels.parameters())
