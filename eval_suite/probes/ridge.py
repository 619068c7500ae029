"""Closed-form linear probe of a dense quantity: ridge regression on bilinearly resized features.

A 1x1 convolution commutes with bilinear resizing, so fitting on resized features and predicting on the token grid
before resizing is the same probe; the normal equations make it exact, free of seeds, and fast.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eval_suite.maps import resize_map
from eval_suite.probes.heads import Standardise
from eval_suite.readers.contracts import LabelMaps

PENALTIES = tuple(10.0**power for power in range(-6, 1))  #: of the mean squared feature; chosen on held-out images
HELD_OUT = 5  #: every fifth training image chooses the penalty


@dataclass(frozen=True)
class Moments:
    """Sums of products of features x (with a constant 1) and targets y over the pixels that count."""

    xx: Tensor
    xy: Tensor
    yy: Tensor
    count: float

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.count + other.count)

    def error(self, weight: Tensor) -> float:
        """Mean squared error of `weight` [C + 1, T] on the pixels behind these sums."""
        quadratic = torch.einsum("ct,cd,dt->", weight, self.xx, weight)
        return float((quadratic - 2 * (weight * self.xy).sum() + self.yy.sum()) / max(self.count, 1.0))


@dataclass(frozen=True)
class RidgeHead:
    """A fitted linear map from tokens to targets."""

    normalise: Standardise
    weight: Tensor  #: [C + 1, T], the last row is the constant
    penalty: float  #: the one chosen

    def predict(self, spatial: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, C, h, w] -> [B, T, *size]."""
        tokens = self.normalise(spatial)
        linear = torch.einsum("bchw,ct->bthw", tokens, self.weight[:-1])
        return resize_map(linear + self.weight[-1, :, None, None], size)


def fit_ridge(spatial: Tensor, targets: LabelMaps, masks: LabelMaps, size: tuple[int, int]) -> RidgeHead:
    """Features [N, C, h, w] -> targets [N, T, H, W] where masks [N, H, W], fitted on maps of `size` cells."""
    normalise = Standardise(spatial)
    rows = torch.arange(len(spatial))
    held = rows % HELD_OUT == HELD_OUT - 1 if len(rows) >= HELD_OUT else torch.zeros(len(rows), dtype=torch.bool)
    fitted = _moments(spatial, targets, masks, rows[~held], size, normalise)
    if not held.any():
        return RidgeHead(normalise, _solve(fitted, PENALTIES[2]).float(), PENALTIES[2])
    judged = _moments(spatial, targets, masks, rows[held], size, normalise)
    best = min(PENALTIES, key=lambda penalty: judged.error(_solve(fitted, penalty)))
    return RidgeHead(normalise, _solve(fitted + judged, best).float(), best)


def _solve(moments: Moments, penalty: float) -> Tensor:
    width = len(moments.xx)
    ridge = torch.full((width,), penalty * moments.count, dtype=torch.float64)
    ridge[-1] = 0.0  # the constant is free
    jitter = 1e-9 * moments.count
    return torch.linalg.solve(moments.xx + torch.diag(ridge + jitter), moments.xy)


def _moments(
    spatial: Tensor, targets: LabelMaps, masks: LabelMaps, rows: Tensor, size: tuple[int, int], normalise: Standardise
) -> Moments:
    width = spatial.shape[1] + 1
    total: Moments | None = None
    for batch in rows.split(32):
        maps = resize_map(normalise(spatial[batch]), size)
        values, counts = _shrink(targets[batch].float(), size), _shrink(masks[batch][:, None].float(), size)[:, 0] > 0
        features = maps.movedim(1, -1)[counts]
        features = torch.cat([features, features.new_ones(len(features), 1)], 1)
        wanted = values.movedim(1, -1)[counts]
        part = Moments(
            (features.T @ features).double(),
            (features.T @ wanted).double(),
            wanted.double().square().sum(0),
            float(len(wanted)),
        )
        total = part if total is None else total + part
    return total or Moments(torch.zeros(width, width), torch.zeros(width, 1), torch.zeros(1), 0.0)


def _shrink(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(maps, size=size, mode="nearest-exact")
