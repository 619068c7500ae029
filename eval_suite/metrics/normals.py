"""Surface normals: the angle between prediction and label, in degrees."""

from typing import Literal, Self

import torch
from torch import Tensor

from common.errors import UserError
from eval_suite.maps import length, unit
from eval_suite.metrics.blind import MapTally
from eval_suite.metrics.score import mean_at, same_shape

THRESHOLDS = (11.25, 22.5, 30.0)
COMMON = 5  #: common directions that are tried as a constant answer


class Normals(MapTally):
    """Mean angular error and rmse (degrees), and recall (percent) within 11.25, 22.5 and 30 degrees.

    `pool="pixel"` pools all pixels (the PASCAL-Context and NYUDv2 multi-task harness), `pool="image"` averages the
    values of the images (probe3d).
    """

    def __init__(self, *, pool: Literal["image", "pixel"] = "pixel") -> None:
        names = ("mean", "rmse", *(f"recall_{threshold:g}" for threshold in THRESHOLDS))
        root = pool == "pixel"
        super().__init__(
            {
                name: mean_at(index, weight=5, scale=100.0 if index > 1 else 1.0, root=root and name == "rmse")
                for index, name in enumerate(names)
            },
            lower_is_better=("mean", "rmse"),
        )
        self.pool = pool

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Vectors [b, 3, h, w]; the prediction need not be of unit length, label pixels of length 0 do not count."""
        self.judge(pred, target)
        self.remember(target)

    def fresh(self) -> Self:
        return type(self)(pool=self.pool)

    def constants(self, labels: Tensor) -> Tensor:
        """The mean and the median of the vectors, and the most common directions to the nearest tenth."""
        vectors = labels.movedim(1, -1)[length(labels) > 0.5].double()
        tenths, counts = (10 * vectors).round().unique(dim=0, return_counts=True)
        common = tenths[counts.topk(min(COMMON, len(counts))).indices]
        return torch.cat([vectors.mean(0)[None], vectors.median(0).values[None], common])

    def judge(self, pred: Tensor, target: Tensor) -> None:
        same_shape(pred, target)
        valid = (length(target.double()) > 0.5).flatten(1)
        if not torch.isfinite(pred).all():
            raise UserError("a predicted normal is not finite; check the features for NaN")
        angles = angular_error(pred, target).flatten(1)
        parts = [angles, angles.square(), *(angles < threshold for threshold in THRESHOLDS), torch.ones_like(angles)]
        rows = torch.stack([torch.where(valid, part.double(), 0.0).sum(1) for part in parts], 1)
        if self.pool == "image":
            rows = rows / rows[:, 5:].clamp(min=1.0)
            rows[:, 1] = rows[:, 1].sqrt()
        self.add(rows, valid.any(1))


def angular_error(pred: Tensor, target: Tensor) -> Tensor:
    """Angle in degrees between vectors [b, 3, h, w] -> [b, h, w]; a prediction of length 0 is 90 degrees off.

    2 atan2(|p - q|, |p + q|) stays exact at small angles, where the arc cosine of a rounded product does not.
    """
    pred, target = unit(pred.double()), unit(target.double())
    angle = 2.0 * torch.atan2(length(pred - target), length(pred + target))
    return torch.rad2deg(torch.where(length(pred) > 0, angle, torch.pi / 2))
