"""What a metric of maps gives an answer that knows nothing of the image: one constant for every pixel of the set.

A tally of this kind remembers some label pixels of every image. Its floors are its own values of the best of a few
constants on them, so that they follow every rule of the metric: pooling, alignment, what counts.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from eval_suite.metrics.score import Score, Statistic, Tally
from eval_suite.processes import all_say

SIDE = 16  #: label pixels remembered of an image, each way
QUANTILES = 19  #: constants tried between the smallest and the largest label


class MapTally(Tally):
    """A tally of label maps [b, C, h, w] that knows its floors."""

    def __init__(self, statistics: Mapping[str, Statistic], lower_is_better: Sequence[str]) -> None:
        super().__init__(statistics)
        self._lower = tuple(lower_is_better)
        self._some: list[Tensor] = []

    @abstractmethod
    def fresh(self) -> Self:
        """One with the same rules that has seen nothing."""

    @abstractmethod
    def judge(self, pred: Tensor, target: Tensor) -> None:
        """Score maps [b, C, h, w], without remembering them."""

    @abstractmethod
    def constants(self, labels: Tensor) -> Tensor:
        """Answers to try, [n, C], given labels [N, C, SIDE, SIDE]."""

    def remember(self, target: Tensor) -> None:
        """Keep some pixels of the labels [b, C, h, w]."""
        self._some.append(F.interpolate(target.detach().float().cpu(), size=(SIDE, SIDE), mode="nearest-exact"))

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._some.extend(other._some)

    def gather(self) -> None:
        super().gather()
        self._some = [some for parts in all_say(self._some) for some in parts]

    def floors(self) -> dict[str, float]:
        """Of every statistic the value of the constant that is best for it."""
        labels = torch.cat(self._some)
        found: list[dict[str, float]] = []
        for constant in self.constants(labels):
            blind = self.fresh()
            blind.judge(constant.view(1, -1, 1, 1).expand_as(labels), labels)
            found.append(blind.values())
        return {name: (min if name in self._lower else max)(each[name] for each in found) for name in found[0]}

    def scores(self) -> dict[str, Score]:
        """Every statistic with its standard error over images and its floor."""
        found = super().scores()
        floors = self.floors()
        return {name: score.with_floor(floors[name]) for name, score in found.items()}
