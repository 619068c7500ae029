"""How well sharpened maps explain what the teacher says of other views of the same image (FeatSharp, equation 7).

fidelity = variance of the teacher's features / masked squared error of the warped, downsampled prediction; PHI-S makes
the variance 1, so it is 1 / MSE in PHI-S space. 1 is what predicting the mean gives. A downsampler comes between, and a
learned one can hide an upsampler's faults, so the error is measured by both a fixed average and the learned one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featsharp_adapter.adapter import Adapter
from featsharp_adapter.downsampler import AverageDownsampler
from featsharp_adapter.multiview import inside_share, masked_error, warp
from featsharp_adapter.view_data import Sample


@dataclass(frozen=True)
class Fidelity:
    """`mse` in PHI-S space over all valid cells of all views; `stderr` of it over images; `images` judged."""

    mse: float
    stderr: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the fidelity itself."""
        return {"fidelity": 1 / self.mse, "mse": self.mse, "mse_stderr": self.stderr, "images": self.images}


def measure_fidelity(adapter: Adapter, learned: nn.Module, samples: Iterable[Sample]) -> dict[str, Fidelity]:
    """Held-out samples -> {"average": by a fixed average of cells, "learned": by the downsampler trained with it}."""
    downsamplers = {"average": AverageDownsampler(adapter.factor), "learned": learned.eval()}
    return {name: summarise(parts) for name, parts in image_errors(adapter.eval(), downsamplers, samples).items()}


@torch.no_grad()
def image_errors(
    adapter: Adapter, downsamplers: Mapping[str, nn.Module], samples: Iterable[Sample]
) -> dict[str, Tensor]:
    """Per downsampler float64 [N, 2]: each image's masked error summed over its views, and its count of valid cells."""
    parts: dict[str, list[Tensor]] = {name: [] for name in downsamplers}
    for sample in samples:
        sharp = adapter.forward_normalised(sample.views, sample.guidance())
        sums = {name: torch.zeros(len(sharp), 2, dtype=torch.float64) for name in downsamplers}
        for view in range(sample.targets.shape[1]):
            homographies = sample.homographies[:, view]
            target = adapter.denoise_normalised(sample.targets[:, view])
            mask = inside_share(homographies, (target.shape[-2], target.shape[-1]))
            warped = warp(sharp, homographies)
            for name, downsampler in downsamplers.items():
                error = masked_error(downsampler(warped), target, mask).flatten(1).sum(dim=1)
                sums[name] += torch.stack([error, mask.flatten(1).sum(dim=1)], dim=1).double().cpu()
        for name, values in sums.items():
            parts[name].append(values)
    return {name: torch.cat(values) for name, values in parts.items()}


def summarise(errors: Tensor) -> Fidelity:
    """[N, 2] (error sum, cells) -> the ratio of the sums, its standard error by the delta method over images."""
    count = len(errors)
    total_error, total_cells = errors.sum(dim=0).tolist()
    mse = total_error / total_cells
    residual = errors[:, 0] - mse * errors[:, 1]
    spread = residual.square().sum().sqrt() / total_cells * (count / max(count - 1, 1)) ** 0.5
    return Fidelity(mse, float(spread), count)
