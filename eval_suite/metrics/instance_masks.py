"""IoU of predicted and labelled masks of single objects, averaged over objects (EfficientViT-SAM's COCO protocol)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eval_suite.metrics.score import Tally, mean_at, same_shape

SMALL, LARGE = 32.0**2, 96.0**2
#: name -> smallest and largest area of an object that counts, both included
AREAS = {"miou": (0.0, float("inf")), "small": (0.0, SMALL), "medium": (SMALL, LARGE), "large": (LARGE, float("inf"))}


class InstanceIou(Tally):
    """`miou` over all objects, and over `small`, `medium` and `large` ones, percent.

    The unit of the standard error is the image: objects of one image share its features.
    """

    def __init__(self) -> None:
        super().__init__({name: mean_at(2 * at, weight=2 * at + 1, scale=100.0) for at, name in enumerate(AREAS)})

    def update(self, pred: Tensor, target: Tensor, areas: Sequence[float]) -> None:
        """Masks bool [n, H, W] of the objects of ONE image, n >= 0, and their annotated areas."""
        same_shape(pred, target)
        pred, target = pred.bool().flatten(1), target.bool().flatten(1)
        shared, union = ((pred & target).sum(1).double(), (pred | target).sum(1).double())
        self.add_ious(shared / union.clamp(min=1.0), areas)  # nothing predicted of nothing labelled is a miss

    def add_ious(self, ious: Tensor, areas: Sequence[float]) -> None:
        """IoU float64 [n] of the objects of one image, and their areas."""
        sizes = torch.tensor(list(areas), dtype=torch.float64)
        parts: list[Tensor] = []
        for low, high in AREAS.values():
            inside = ((sizes >= low) & (sizes <= high)).double()
            parts += [(ious.double().cpu() * inside).sum(), inside.sum()]
        self.add(torch.stack(parts)[None], torch.tensor([len(sizes) > 0]))
