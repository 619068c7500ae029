"""What fidelity does not see: roughness, disagreement with the image's edges, and a changed distribution.

Fidelity averages over cells and so prefers blur (FeatSharp, arXiv 2502.16025, appendix B.2); these are printed beside
it, and are losses for those who want them (FeatUp's recipe, arXiv 2403.10516, trains with CRF).
Shapes: maps [B, C, H, W] in normalised space.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Points drawn from a map for CRF and MMD: their cost grows with the square.
POINTS = 1000
#: Of the CRF's affinity, as published: nearness of places (in sides of the image) and of colours, and their weight.
ALPHA, BETA, WEIGHT = 0.1, 0.15, 10.0


@dataclass(frozen=True)
class SideMetrics:
    """Means over images; lower is smoother (tv), truer to edges (crf), closer to the teacher's distribution (mmd)."""

    tv: float
    crf: float
    mmd: float


def total_variation(maps: Tensor) -> Tensor:
    """[B]: squared differences of neighbours, down and across, summed over the map and divided by its size."""
    down = maps.diff(dim=2).square().flatten(1).sum(dim=1)
    across = maps.diff(dim=3).square().flatten(1).sum(dim=1)
    return (down + across) / maps[0].numel()


def conditional_random_field(maps: Tensor, guidance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """[B]: squared difference of features where places and colours are alike, mean over pairs of sampled points.

    guidance: [B, 3, H, W] in [0, 1], brought to the grid of the map. The affinity of two points is
    WEIGHT * exp(-|place|^2 / (2 ALPHA) - |colour|^2 / (2 BETA)), places in [0, 1].
    """
    height, width = maps.shape[-2:]
    colours = F.adaptive_avg_pool2d(guidance, (height, width)).flatten(2)
    picks = _points(height * width, POINTS, maps, generator)
    places = torch.stack([picks // width / height, picks % width / width])
    affinity = WEIGHT * torch.exp(-_squared(places[None]) / (2 * ALPHA) - _squared(colours[..., picks]) / (2 * BETA))
    difference = _squared(maps.flatten(2)[..., picks]) / maps.shape[1]
    return (affinity * difference).mean(dim=(1, 2))


def maximum_mean_discrepancy(
    maps: Tensor, reference: Tensor, gamma: float | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """[B]: unbiased MMD^2 (Gretton et al. 2012, lemma 6) of the two sets of features with kernel exp(-gamma |x - y|^2).

    reference: [B, C, h, w], the teacher's own map. gamma: None takes one over the median squared distance of the
    reference's features; the paper's text says the median distance itself, which makes nearly every kernel value zero.
    """
    ours, theirs = (_sample(values, generator) for values in (maps, reference))
    if gamma is None:
        between = _squared(theirs.detach())
        rows, columns = torch.triu_indices(between.shape[1], between.shape[1], 1, device=maps.device)
        scale = 1 / between[:, rows, columns].median(dim=1).values.clamp(min=1e-12)
    else:
        scale = maps.new_full((len(maps),), gamma)
    kernel = [torch.exp(-scale[:, None, None] * _squared(*pair)) for pair in ((ours,), (theirs,), (ours, theirs))]
    return _off_diagonal(kernel[0]) + _off_diagonal(kernel[1]) - 2 * kernel[2].mean(dim=(1, 2))


def _points(total: int, wanted: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """At most `wanted` different places out of `total`; all of them, in order, where there are no more."""
    if total <= wanted:
        return torch.arange(total, device=like.device)
    return torch.randperm(total, generator=generator)[:wanted].to(like.device)


def _sample(maps: Tensor, generator: torch.Generator | None) -> Tensor:
    return maps.flatten(2)[..., _points(maps.shape[-2] * maps.shape[-1], POINTS, maps, generator)]


def _squared(first: Tensor, second: Tensor | None = None) -> Tensor:
    """[B, C, N], [B, C, M] -> squared distances [B, N, M]; of the first to itself without a second."""
    second = first if second is None else second
    products = first.transpose(1, 2) @ second
    lengths = first.square().sum(dim=1)[:, :, None] + second.square().sum(dim=1)[:, None, :]
    return (lengths - 2 * products).clamp(min=0)


def _off_diagonal(kernel: Tensor) -> Tensor:
    size = kernel.shape[-1]
    return (kernel.sum(dim=(1, 2)) - kernel.diagonal(dim1=1, dim2=2).sum(dim=1)) / (size * (size - 1))
