"""Depth: threshold accuracies and errors, as predicted or after the best scale and shift (Eigen et al.; probe3d)."""

from typing import Literal, Self

import torch
from torch import Tensor

from eval_suite.metrics.blind import QUANTILES, MapTally
from eval_suite.metrics.score import mean_at, same_shape

_SHARES = ("d1", "d2", "d3")
_KEYS = (*_SHARES, "rmse", "abs_rel")


class Depth(MapTally):
    """d1, d2, d3 (percent of pixels within a factor 1.25, 1.25^2, 1.25^3), rmse (metres), abs_rel.

    `align="scale_shift"` first fits scale and shift per image by least squares (scale-invariant depth). `pool="image"`
    averages per-image values (probe3d); `pool="pixel"` pools all pixels (the NYUDv2 multi-task harness).
    """

    def __init__(
        self,
        *,
        align: Literal["none", "scale_shift"] = "none",
        pool: Literal["image", "pixel"] = "image",
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
    ) -> None:
        super().__init__(
            {
                key: mean_at(
                    index, weight=5, scale=100.0 if key in _SHARES else 1.0, root=key == "rmse" and pool == "pixel"
                )
                for index, key in enumerate(_KEYS)
            },
            lower_is_better=("rmse", "abs_rel"),
        )
        self.align = align
        self.pool = pool
        self.min_depth = min_depth
        self.max_depth = max_depth

    def fresh(self) -> Self:
        return type(self)(align=self.align, pool=self.pool, min_depth=self.min_depth, max_depth=self.max_depth)

    def constants(self, labels: Tensor) -> Tensor:
        """The mean depth, which is best for rmse, and quantiles, among which the best of the others is nearly."""
        valid = labels[self._valid(labels)].double()
        return torch.cat([valid.mean()[None], valid.quantile(torch.linspace(0.05, 0.95, QUANTILES).double())])[:, None]

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Metres [b, h, w]; label pixels outside (0, max_depth] do not count.

        Predictions below `min_depth` are raised to it, so a negative depth is wrong and not a wrong sign.
        """
        self.judge(pred[:, None], target[:, None])
        self.remember(target[:, None])

    def judge(self, pred: Tensor, target: Tensor) -> None:
        """The same with maps [b, 1, h, w], none of them remembered."""
        same_shape(pred, target)
        pred, target = pred.double().flatten(1), target.double().flatten(1)
        valid = self._valid(target)
        if self.align == "scale_shift":
            pred = align_scale_shift(pred, target, valid)
        rows = _pixel_sums(pred.clamp(min=self.min_depth), target, valid)
        counted = valid.any(1)
        if self.pool == "image":
            rows = _per_image(rows)
        self.add(rows, counted)

    def _valid(self, target: Tensor) -> Tensor:
        return torch.isfinite(target) & (target > 0) & (target <= self.max_depth)


def align_scale_shift(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """pred [b, p] scaled and shifted, least squares to target [b, p] over `valid`; a flat prediction gets the mean."""
    weight = valid.double()
    count = weight.sum(1, keepdim=True).clamp(min=1.0)
    target = torch.where(valid, target, 0.0)
    mean_pred = (pred * weight).sum(1, keepdim=True) / count
    mean_target = (target * weight).sum(1, keepdim=True) / count
    covariance = ((pred - mean_pred) * (target - mean_target) * weight).sum(1, keepdim=True)
    variance = ((pred - mean_pred).square() * weight).sum(1, keepdim=True)
    flat = variance <= 1e-12 * count * mean_pred.square().clamp(min=1e-12)
    scale = torch.where(flat, 0.0, covariance / variance.clamp(min=1e-300))
    return (pred - mean_pred) * scale + mean_target


def _pixel_sums(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Per image [b, 6]: pixels within the three factors, squared and relative error, valid pixels."""
    safe = torch.where(valid, target, 1.0)
    factor = torch.maximum(pred / safe, safe / pred)
    parts = [factor < 1.25**power for power in (1, 2, 3)]
    parts += [(pred - safe).square(), (pred - safe).abs() / safe, torch.ones_like(pred)]
    return torch.stack([torch.where(valid, part.double(), 0.0).sum(1) for part in parts], 1)


def _per_image(rows: Tensor) -> Tensor:
    """Pixel sums [b, 6] -> each image's own value and a weight of one, [b, 6]."""
    values = rows / rows[:, 5:6].clamp(min=1.0)
    values[:, 3] = values[:, 3].sqrt()
    return values
