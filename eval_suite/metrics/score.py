"""What a metric says: a value, how many things it was taken over, and how far it may be off.

Every metric here is a function of sums of per-image statistics (pixels right, pixels seen, ...) over the whole set.
Keeping one row of statistics per image makes processes mergeable by concatenation and gives one standard error for all
metrics: the jackknife over images (Efron & Tibshirani 1993, chapter 11), which needs no seed. Pixels and questions of
one image are not independent, images are; that is why the image is the unit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from teachers.errors import UserError

#: sums [..., k] of per-image statistics -> values [...]
Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Score:
    """`value` over `n` items; `stderr` is None where one image alone was seen.

    `influence` [images] says what each image adds to the error: its squares sum to stderr squared, and the difference
    of two rows' influences on the same images gives the error of the difference (infinitesimal jackknife).
    """

    value: float
    n: int
    stderr: float | None
    influence: tuple[float, ...] | None = None


def mean_at(index: int, *, weight: int, scale: float = 1.0, root: bool = False) -> Statistic:
    """The statistic scale * sums[index] / sums[weight], or its square root."""

    def statistic(sums: Tensor) -> Tensor:
        mean = scale * sums[..., index] / sums[..., weight]
        return mean.clamp(min=0.0).sqrt() if root else mean  # the clamp: differences of sums may round below 0

    return statistic


def mean_class_share(sums: Tensor) -> Tensor:
    """[..., 2 C] of hits per class and items per class -> mean over the classes that occur of their share, percent."""
    hit, seen = sums.chunk(2, dim=-1)
    return 100.0 * (hit / seen.clamp(min=1.0)).sum(-1) / (seen > 0).sum(-1)


def jackknife(rows: Tensor, statistic: Statistic, n: int | None = None) -> Score:
    """Per-image statistics [images, k] -> score over all, its error from leaving out one image at a time.

    `n` counts the items where they are not the images. The error is None for a single image, or where leaving one out
    leaves nothing to score.
    """
    total = rows.sum(0)
    value = float(statistic(total))
    images = len(rows)
    n = images if n is None else n
    if images < 2:
        return Score(value, n, None)
    others = statistic(total - rows)
    influence = (others.mean() - others) * math.sqrt((images - 1) / images)
    stderr = float(influence.square().sum().sqrt())
    if not math.isfinite(stderr):
        return Score(value, n, None)
    return Score(value, n, stderr, tuple(influence.tolist()))


def clustered_mean(values: Tensor, clusters: Tensor | None, *, scale: float = 1.0) -> Score:
    """Plain mean of `values` [n] times `scale`; the error treats items of one cluster (int [n]) as one draw."""
    values = values.double()
    if clusters is None:
        rows = torch.stack([values, torch.ones_like(values)], 1)
    else:
        rows = cluster_rows(torch.stack([values, torch.ones_like(values)], 1), clusters)
    if not len(values):
        raise UserError("nothing to score: the data has no items for this metric")
    return jackknife(rows, mean_at(0, weight=1, scale=scale), len(values))


def cluster_rows(rows: Tensor, clusters: Tensor) -> Tensor:
    """Statistics [n, k] of items summed per cluster (int [n]) -> [number of clusters, k]."""
    members, where = torch.unique(torch.as_tensor(clusters), return_inverse=True)
    return torch.zeros(len(members), rows.shape[1], dtype=rows.dtype).index_add_(0, where, rows)


class Tally:
    """Rows of per-image statistics, and the named statistics over their sum. Metrics derive from it."""

    def __init__(self, statistics: Mapping[str, Statistic]) -> None:
        self._statistics = dict(statistics)
        self._rows: list[Tensor] = []

    @property
    def rows(self) -> Tensor:
        """All statistics so far, float64 [images, k]."""
        if not self._rows:
            raise UserError(f"nothing to score for {', '.join(self._statistics)}: no image has a valid label")
        return torch.cat(self._rows)

    def add(self, rows: Tensor, counted: Tensor) -> None:
        """Append statistics [b, k] of a batch; images where `counted` (bool [b]) is False have nothing to score."""
        kept = rows.detach().double().cpu()[counted.cpu()]
        if not torch.isfinite(kept).all():
            raise UserError(f"a prediction for {', '.join(self._statistics)} is not finite; check the features for NaN")
        if len(kept):
            self._rows.append(kept)

    def merge(self, other: Self) -> None:
        """Take over what another tally of the same metric saw."""
        self._rows.extend(other._rows)

    def gather(self) -> None:
        """Merge the tallies of all processes, in rank order; does nothing in a single process."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        parts: list[list[Tensor]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, self._rows)
        self._rows = [rows for part in parts for rows in part]

    def scores(self) -> dict[str, Score]:
        """Every statistic of this metric with its standard error over images."""
        rows = self.rows
        return {name: jackknife(rows, statistic) for name, statistic in self._statistics.items()}


def same_shape(pred: Tensor, target: Tensor) -> None:
    """UserError unless a prediction has the shape of its label."""
    if pred.shape != target.shape:
        raise UserError(f"prediction {tuple(pred.shape)} and label {tuple(target.shape)} differ in shape")
