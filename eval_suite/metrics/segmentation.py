"""Semantic segmentation: intersection over union from counts over the whole set.

The mean is over classes, never over images: the mIoU of mmsegmentation and DINOv3, and torchmetrics'
MulticlassJaccardIndex, not its segmentation.MeanIoU, which averages per image.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from common.errors import UserError
from eval_suite.metrics.score import Score, Tally, mean_at, same_shape, score_of


class Segmentation(Tally):
    """mIoU, pixel accuracy and mean class accuracy, percent.

    `absent` says what a class that occurs in neither prediction nor label counts: "skip" leaves it out of the mean
    (ADE20K, VOC), "zero" scores it 0 (the PASCAL-Context and NYUDv2 multi-task harness).
    """

    def __init__(self, classes: int, *, ignore: int = 255, absent: Literal["skip", "zero"] = "skip") -> None:
        super().__init__(
            {
                "miou": lambda sums: 100.0 * self._mean(*self._iou(sums)),
                "pixel_accuracy": lambda sums: 100.0 * sums[..., :classes].sum(-1) / sums[..., 2 * classes :].sum(-1),
                "class_accuracy": lambda sums: 100.0 * self._mean(sums[..., :classes], sums[..., 2 * classes :]),
            }
        )
        self.classes = classes
        self.ignore = ignore
        self.absent = absent

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Class maps int [b, h, w] of prediction and label; label pixels equal to `ignore` do not count."""
        same_shape(pred, target)
        pred, target = pred.long(), target.long()
        valid = target != self.ignore
        self._check(pred[valid], target[valid])
        hit = _areas(target, valid & (pred == target), self.classes)
        rows = torch.cat([hit, _areas(pred, valid, self.classes), _areas(target, valid, self.classes)], 1)
        self.add(rows, valid.flatten(1).any(1))

    def scores(self) -> dict[str, Score]:
        """With the floors of an answer that calls everything by the most frequent class."""
        areas = self.rows.sum(0)[2 * self.classes :]
        largest, present = float(areas.max() / areas.sum()), int((areas > 0).sum())
        counted = present if self.absent == "skip" else self.classes
        floors = {"miou": largest / counted, "pixel_accuracy": largest, "class_accuracy": 1 / counted}
        found = {name: score.with_floor(100.0 * floors[name]) for name, score in super().scores().items()}
        return found | {"miou": replace(found["miou"], by_class=tuple(self.iou_per_class()))}

    def iou_per_class(self) -> list[Score | None]:
        """IoU of each class in percent with its error over images; None for a class that never occurs."""
        rows, units = self.rows, torch.cat(self._units)
        hit, union = self._iou(rows)
        pairs, seen = torch.stack([hit, union], -1), union.sum(0) > 0
        share = mean_at(0, weight=1, scale=100.0)
        return [
            score_of(pairs[:, number], share, len(rows), units) if seen[number] else None
            for number in range(self.classes)
        ]

    def _check(self, pred: Tensor, target: Tensor) -> None:
        for name, values in (("prediction", pred), ("label", target)):
            if len(values) and (int(values.min()) < 0 or int(values.max()) >= self.classes):
                raise UserError(
                    f"{name} has class {int(values.min())}..{int(values.max())}, expected 0..{self.classes - 1}; "
                    "check the class count of the data"
                )

    def _iou(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        hit, predicted, labelled = sums.split(self.classes, dim=-1)
        return hit, predicted + labelled - hit

    def _mean(self, part: Tensor, whole: Tensor) -> Tensor:
        """Mean of part / whole over classes, [..., C] -> [...]; an empty class counts as `absent` says."""
        share = part / whole.clamp(min=1.0)
        present = whole > 0
        if self.absent == "zero":
            return share.mean(-1)
        return (share * present).sum(-1) / present.sum(-1)


def _areas(maps: Tensor, where: Tensor, classes: int) -> Tensor:
    """Pixels of each class among those where `where` holds: [b, h, w] -> [b, classes]."""
    images = torch.arange(len(maps), device=maps.device).view(-1, 1, 1).expand_as(maps)
    index = (images * classes + maps)[where]
    return torch.bincount(index, minlength=len(maps) * classes).view(len(maps), classes)
