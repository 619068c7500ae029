"""How well sharpened maps explain what the teacher says of other views of the same image.

fidelity = MSE(Y, mean of Y) / MSE(X, Y) (FeatSharp, arXiv 2502.16025, equation 7): Y the teacher's features of the
views, X the warped, downsampled prediction, both in the teacher's own units, over the valid cells of held-out images. 1
is what predicting the mean gives. The published code takes the first variance from PHI-S's training statistics instead,
so that it is 1 / MSE in PHI-S space; both are recorded. A downsampler comes between, and a learned one can hide an
upsampler's faults, so the error is measured by both a fixed average and the learned one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.model.multiview import inside_share, masked_error, warp
from featsharp_adapter.model.side_metrics import (
    SideMetrics,
    conditional_random_field,
    maximum_mean_discrepancy,
    total_variation,
)
from featsharp_adapter.training.samples import Sample

LEAST = 1e-12  #: of an error, in units of the variance: a perfect prediction has a large fidelity and not none


@dataclass(frozen=True)
class Fidelity:
    """Over all valid cells of all views of `images` images.

    mse: in normalised space, with its standard error over images. ratio: equation 7.
    """

    mse: float
    stderr: float
    images: int
    ratio: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        errors = {"mse": self.mse, "mse_stderr": self.stderr, "images": self.images}
        return {"fidelity": self.ratio, "inverse_mse": 1 / max(self.mse, LEAST), **errors}


def evaluate_held_out(
    adapter: Adapter, learned: nn.Module, samples: Iterable[Sample]
) -> tuple[dict[str, Fidelity], SideMetrics]:
    """Fidelity by both downsamplers, and what it does not see."""
    downsamplers = {"average": AverageDownsampler(adapter.factor), "learned": learned.eval()}
    errors = collect_errors(adapter.eval(), downsamplers, samples)
    return {name: summarise(parts, errors.variance) for name, parts in errors.by_downsampler.items()}, errors.side


@dataclass(frozen=True)
class HeldOutErrors:
    """by_downsampler: float64 [N, 3], of each image the masked squared error summed over its views in normalised
    space, its count of valid cells, and the error in the teacher's units. variance: MSE(Y, mean of Y) per value, in
    the teacher's units. side: means over images.
    """

    by_downsampler: dict[str, Tensor]
    variance: float
    side: SideMetrics


@torch.no_grad()
def collect_errors(adapter: Adapter, downsamplers: Mapping[str, nn.Module], samples: Iterable[Sample]) -> HeldOutErrors:
    """One pass over the held-out samples."""
    parts: dict[str, list[Tensor]] = {name: [] for name in downsamplers}
    spread = _WeightedVariance()
    side: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)  # the same points for every upsampler
    for sample in samples:
        sharp = adapter.forward_normalised(sample.views, sample.guidance())
        sums = {name: torch.zeros(len(sharp), 3, dtype=torch.float64) for name in downsamplers}
        for view in range(sample.targets.shape[1]):
            homographies = sample.homographies[:, view]
            target = adapter.denoise_normalised(sample.targets[:, view])
            raw = adapter.normaliser.denormalise(target)
            mask = inside_share(homographies, (target.shape[-2], target.shape[-1]))
            spread.update(raw, mask)
            warped = warp(sharp, homographies)
            for name, downsampler in downsamplers.items():
                predicted = downsampler(warped)
                error = masked_error(predicted, target, mask).flatten(1).sum(dim=1)
                raw_error = masked_error(adapter.normaliser.denormalise(predicted), raw, mask).flatten(1).sum(dim=1)
                sums[name] += torch.stack([error, mask.flatten(1).sum(dim=1), raw_error], dim=1).double().cpu()
        for name, values in sums.items():
            parts[name].append(values)
        side.append(_side_metrics(adapter, sharp, sample, generator))
    tv, crf, mmd = torch.cat(side).double().mean(dim=0).tolist()
    errors = {name: torch.cat(values) for name, values in parts.items()}
    return HeldOutErrors(errors, spread.value(), SideMetrics(tv, crf, mmd))


def summarise(errors: Tensor, variance: float) -> Fidelity:
    """[N, 3] (error sum, cells, error sum in raw units) -> ratios of the sums; standard error by the delta method."""
    count = len(errors)
    total_error, total_cells, total_raw = errors.sum(dim=0).tolist()
    mse = total_error / total_cells
    residual = errors[:, 0] - mse * errors[:, 1]
    spread = residual.square().sum().sqrt() / total_cells * (count / max(count - 1, 1)) ** 0.5
    return Fidelity(mse, float(spread), count, variance / max(total_raw / total_cells, LEAST * variance))


class _WeightedVariance:
    """Mean over channels of the variance of features [B, C, g, g'] whose cells count by a mask [B, 1, g, g'].

    In float64 around a first guess of the mean, since features may be far from zero.
    """

    def __init__(self) -> None:
        self.shift: Tensor | None = None
        self.weight = 0.0
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def update(self, features: Tensor, mask: Tensor) -> None:
        values = features.detach().cpu().double().transpose(0, 1).flatten(1)
        weights = mask.detach().cpu().double().flatten()
        if self.shift is None or self.first is None or self.second is None:
            self.shift = values.mean(dim=1, keepdim=True)
            self.first = self.second = torch.zeros(len(values), dtype=torch.float64)
        centred = values - self.shift
        self.weight += float(weights.sum())
        self.first = self.first + centred @ weights
        self.second = self.second + centred.square() @ weights

    def value(self) -> float:
        assert self.first is not None and self.second is not None
        return float((self.second / self.weight - (self.first / self.weight).square()).mean())


def _side_metrics(adapter: Adapter, sharp: Tensor, sample: Sample, generator: torch.Generator) -> Tensor:
    """[B, 3]: TV, CRF, MMD of each image."""
    low = adapter.denoise_normalised(sample.views.low)
    tv = total_variation(sharp)
    crf = conditional_random_field(sharp, sample.guidance(), generator)
    return torch.stack([tv, crf, maximum_mean_discrepancy(sharp, low, generator=generator)], dim=1).cpu()
