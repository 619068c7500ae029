"""What a metric says: a value, how many things it was taken over, and how far it may be off.

Every metric here is a function of sums of per-image statistics (pixels right, pixels seen, ...) over the whole set.
Keeping one row of statistics per image makes processes mergeable by concatenation and gives one standard error for all
metrics: the jackknife over images (Efron & Tibshirani 1993, chapter 11), which needs no seed. Pixels and questions of
one image are not independent, images are; that is why the image is the unit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError
from eval_suite.sample_scores import Samples

#: sums [..., k] of per-image statistics -> values [...]
Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Score:
    """`value` over `n` items; `stderr` and `samples` are None where one unit alone was seen.

    `floor` is the value of an answer that knows nothing of the image, where that is known.
    """

    value: float
    n: int
    stderr: float | None
    samples: Samples | None = field(default=None, compare=False, repr=False)
    floor: float | None = field(default=None, compare=False)
    #: of a mean over classes the score of each class, None for one that never occurs; () for other metrics
    by_class: "tuple[Score | None, ...]" = field(default=(), compare=False, repr=False)

    @property
    def units(self) -> int | None:
        """How many independent units the error was taken over."""
        return None if self.samples is None else len(self.samples.units)

    def with_floor(self, floor: float | None) -> "Score":
        """The same score, told its floor."""
        return replace(self, floor=floor)


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


def jackknife(rows: Tensor, statistic: Statistic, total: Tensor | None = None) -> tuple[float, float | None]:
    """Per-image statistics [n, k] -> (value over all, standard error from leaving out one image at a time).

    The error is None for a single image, or where leaving one out leaves nothing to score.
    """
    value, others = leave_one_out(rows, statistic, total)
    if others is None:
        return value, None
    spread = (others - others.mean()).square().sum() * (len(rows) - 1) / len(rows)
    return value, float(spread.sqrt()) if torch.isfinite(spread) else None


def leave_one_out(rows: Tensor, statistic: Statistic, total: Tensor | None = None) -> tuple[float, Tensor | None]:
    """Per-image statistics [n, k] -> value over all, and without each image [n] (None for a single one).

    `total` [k] where it is not their sum: what goes with one object goes with another, too, where pairs share them.
    """
    total = rows.sum(0) if total is None else total
    value = float(statistic(total))
    return value, statistic(total - rows) if len(rows) > 1 else None


def score_of(
    rows: Tensor, statistic: Statistic, count: int, units: Tensor | None = None, total: Tensor | None = None
) -> Score:
    """The score of per-unit statistics [n, k] over `count` items; `units` int [n] numbers them, 0 .. n - 1 if None.

    `total` as in `leave_one_out`.
    """
    value, stderr = jackknife(rows, statistic, total)
    if stderr is None:
        return Score(value, count, None)
    others = leave_one_out(rows, statistic, total)[1]
    assert others is not None  # there is an error, so there are at least two units
    units = torch.arange(len(rows)) if units is None else units.long().cpu()
    scores = (len(rows) * value - (len(rows) - 1) * others).double().cpu()
    return Score(value, count, stderr, Samples(units.numpy(), scores.numpy()))


def clustered_mean(values: Tensor, clusters: Tensor | None, *, scale: float = 1.0) -> Score:
    """Plain mean of `values` [n] times `scale`; the error treats items of one cluster (int [n]) as one draw."""
    values = values.double()
    units = None
    rows = torch.stack([values, torch.ones_like(values)], 1)
    if clusters is not None:
        units, rows = torch.unique(torch.as_tensor(clusters)), cluster_rows(rows, clusters)
    if not len(values):
        raise UserError("nothing to score: the data has no items for this metric")
    return score_of(rows, mean_at(0, weight=1, scale=scale), len(values), units)


def cluster_rows(rows: Tensor, clusters: Tensor) -> Tensor:
    """Statistics [n, k] of items summed per cluster (int [n]) -> [number of clusters, k]."""
    members, where = torch.unique(torch.as_tensor(clusters), return_inverse=True)
    return torch.zeros(len(members), rows.shape[1], dtype=rows.dtype).index_add_(0, where, rows)


class Tally:
    """Rows of per-image statistics, and the named statistics over their sum. Metrics derive from it."""

    def __init__(self, statistics: Mapping[str, Statistic]) -> None:
        self._statistics = dict(statistics)
        self._rows: list[Tensor] = []
        self._units: list[Tensor] = []
        self._seen = 0  #: images so far, those with nothing to score included

    @property
    def rows(self) -> Tensor:
        """All statistics so far, float64 [images, k]."""
        if not self._rows:
            raise UserError(f"nothing to score for {', '.join(self._statistics)}: no image has a valid label")
        return torch.cat(self._rows)

    def add(self, rows: Tensor, counted: Tensor) -> None:
        """Append statistics [b, k] of a batch; images where `counted` (bool [b]) is False have nothing to score."""
        counted = counted.cpu()
        kept = rows.detach().double().cpu()[counted]
        units = self._seen + counted.nonzero().flatten()
        self._seen += len(counted)
        if not torch.isfinite(kept).all():
            raise UserError(f"a prediction for {', '.join(self._statistics)} is not finite; check the features for NaN")
        if len(kept):
            self._rows.append(kept)
            self._units.append(units)

    def merge(self, other: Self) -> None:
        """Take over what another tally of the same metric saw."""
        self._rows.extend(other._rows)
        self._units.extend(units + self._seen for units in other._units)
        self._seen += other._seen

    def gather(self) -> None:
        """Merge the tallies of all processes, in rank order; does nothing in a single process."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        parts: list[tuple[list[Tensor], list[Tensor], int]] = [([], [], 0)] * dist.get_world_size()
        dist.all_gather_object(parts, (self._rows, self._units, self._seen))
        self._rows, self._units, self._seen = [], [], 0
        for rows, units, seen in parts:
            self._rows.extend(rows)
            self._units.extend(own + self._seen for own in units)
            self._seen += seen

    def values(self) -> dict[str, float]:
        """Every statistic of this metric."""
        total = self.rows.sum(0)
        return {name: float(statistic(total)) for name, statistic in self._statistics.items()}

    def scores(self) -> dict[str, Score]:
        """Every statistic of this metric with its standard error over images."""
        rows = self.rows
        units = torch.cat(self._units)
        return {name: score_of(rows, statistic, len(rows), units) for name, statistic in self._statistics.items()}


def same_shape(pred: Tensor, target: Tensor) -> None:
    """UserError unless a prediction has the shape of its label."""
    if pred.shape != target.shape:
        raise UserError(f"prediction {tuple(pred.shape)} and label {tuple(target.shape)} differ in shape")
