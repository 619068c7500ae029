"""ReSFU (arXiv 2407.02283): like SAPA with aligned embeddings, a learned similarity, and neighbours on the fine grid.

Published code: zmhhmz/ReSFU, which states no licence and needs a CUDA extension; this is written from the paper, with
nothing of that code, and needs none. Any whole factor.

Shapes: k*g x k*g' the fine grid, D the width of embeddings, K taps a side.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.parts import GROUPS, check_divides, check_odd
from featsharp_adapter.upsamplers.simple import resize_features
from featsharp_adapter.upsamplers.taps import weigh_taps

#: Of the guided filter (the published setting), in fine cells.
RADIUS, EPSILON = 8, 1e-3
#: Channels of the similarity before they become K*K logits.
HIDDEN = 128


def box_mean(maps: Tensor, radius: int) -> Tensor:
    """[B, D, H, W] -> same: means over the part of a (2 radius + 1)^2 window that lies inside, one side at a time."""
    side = 2 * radius + 1
    rows = F.avg_pool2d(maps, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), 1, (0, radius), count_include_pad=False)


def guided_filter(guide: Tensor, source: Tensor, radius: int = RADIUS, epsilon: float = EPSILON) -> Tensor:
    """Both [B, D, H, W] -> source, explained by guide linearly within windows (He et al., ECCV 2010)."""
    mean_guide, mean_source = box_mean(guide, radius), box_mean(source, radius)
    covariance = box_mean(guide * source, radius) - mean_guide * mean_source
    variance = box_mean(guide * guide, radius) - mean_guide.square()
    slope = covariance / (variance + epsilon)
    return box_mean(slope, radius) * guide + box_mean(mean_source - slope * mean_guide, radius)


def smooth(maps: Tensor) -> Tensor:
    """[B, D, H, W] -> same, through a 3 x 3 Gaussian of standard deviation 1."""
    line = torch.exp(-(torch.arange(-1, 2, device=maps.device, dtype=maps.dtype) ** 2) / 2)
    kernel = (torch.outer(line, line) / line.sum() ** 2).expand(maps.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(maps, (1,) * 4, mode="replicate"), kernel, groups=maps.shape[1])


class PairedDifference(nn.Module):
    """centres, neighbours [B, D, H, W] -> logits [B, K*K, H, W].

    Paired central difference convolution: sum over taps of w * (neighbour - centre), whose second half is a 1 x 1
    convolution by the taps' sum; then two small layers that turn differences into one logit per neighbour.
    """

    def __init__(self, width: int, factor: int, *, kernel: int, groups: int) -> None:
        super().__init__()
        self.factor, self.groups = factor, groups
        self.norm = nn.GroupNorm(GROUPS, width)
        self.weight = nn.Parameter(torch.empty(HIDDEN, width // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(HIDDEN, 1, 1))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")
        self.logits = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(HIDDEN, HIDDEN, 1, groups=groups),
            nn.ReLU(),
            nn.GroupNorm(GROUPS, HIDDEN),
            nn.Conv2d(HIDDEN, kernel**2, 1),
        )

    def forward(self, centres: Tensor, neighbours: Tensor) -> Tensor:
        around = F.pad(self.norm(neighbours), (self.weight.shape[-1] // 2 * self.factor,) * 4, mode="replicate")
        around = F.conv2d(around, self.weight, dilation=self.factor, groups=self.groups)
        summed = self.weight.sum(dim=(2, 3), keepdim=True)
        return self.logits(around - F.conv2d(self.norm(centres), summed, groups=self.groups) + self.bias)


class ResfuUpsampler(Upsampler):
    """A softmax over K x K neighbours, `factor` fine cells apart, of the bilinearly upsampled features.

    Two similarities are added: semantic (the upsampled embedding against the image's view of it, a guided filter) and
    detail (the smoothed embedding of the image against itself). Neighbours outside the map have no weight. width:
    of embeddings, a multiple of 8 that `groups` divides. The image itself stands for the fine encoder feature.
    """

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        kernel: int = 3,
        width: int = 32,
        groups: int = 4,
    ) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        check_odd("kernel", kernel)
        check_divides("width", GROUPS, width, "the width of embeddings")
        check_divides("groups", groups, width, "the width of embeddings")
        self.kernel = kernel
        self.image_norm, self.feature_norm = nn.GroupNorm(3, 3), nn.GroupNorm(_groups(dim), dim)
        self.image_embed, self.feature_embed = nn.Conv2d(3, width, 1), nn.Conv2d(dim, width, 1)
        self.semantic = PairedDifference(width, factor, kernel=kernel, groups=groups)
        self.detail = PairedDifference(width, factor, kernel=kernel, groups=groups)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        fine = resize_features(low, self.factor)
        size = (fine.shape[-2], fine.shape[-1])
        image = self.image_embed(self.image_norm(F.adaptive_avg_pool2d(guidance, size)))
        features = resize_features(self.feature_embed(self.feature_norm(low)), self.factor)
        logits = self.semantic(features, guided_filter(image, features)) + self.detail(smooth(image), image)
        weights = logits.masked_fill(self._outside(size, logits.device), float("-inf")).softmax(dim=1)
        return weigh_taps(fine, weights[:, :, None], dilation=self.factor)[:, :, 0]

    def _outside(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """[K*K, k*g, k*g']: whether a neighbour lies outside of the map."""
        steps = (torch.arange(self.kernel, device=device) - self.kernel // 2) * self.factor
        rows, columns = (
            ((places := torch.arange(side, device=device) + steps[:, None]) < 0) | (places >= side) for side in size
        )
        return (rows[:, None, :, None] | columns[None, :, None, :]).flatten(0, 1)


def _groups(dim: int) -> int:
    """Groups of the features' normalisation: the published 32, or as many as divide a width that 32 does not."""
    return next(count for count in range(min(32, dim), 0, -1) if dim % count == 0)
