"""Networks whose true scores are known, for simulations of the error bars: units that share their difficulty."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from eval_suite.metrics.score import Statistic, mean_at, score_of
from eval_suite.metrics.segmentation import Segmentation
from eval_suite.results import BackboneName, Metrics, Result

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class World:
    """`draw(rng, n, difficulty, gain)` gives statistics [n, k] of one network; equal gains, equal laws."""

    draw: Callable[[np.random.Generator, np.ndarray, float], np.ndarray]
    statistic: Statistic
    higher_is_better: bool = True
    shared: float = 0.7  #: share of a unit's variance that all networks have in common

    def units(self, rng: np.random.Generator, difficulty: np.ndarray) -> np.ndarray:
        own = rng.normal(size=difficulty.shape)
        return np.sqrt(self.shared) * difficulty + np.sqrt(1 - self.shared) * own

    def rows(self, rng: np.random.Generator, difficulty: np.ndarray, gain: float = 0.0) -> torch.Tensor:
        """Statistics [n, k] of a network on units of some difficulty [n]."""
        return torch.from_numpy(self.draw(rng, self.units(rng, difficulty), gain))

    def truth(self, gain: float) -> float:
        """The score over very many units."""
        rng = np.random.default_rng(99)
        return float(self.statistic(self.rows(rng, rng.normal(size=400_000), gain).sum(0)))


def _top1(rng: np.random.Generator, hard: np.ndarray, gain: float) -> np.ndarray:
    return np.stack([hard < 0.4 + gain, np.ones_like(hard)], 1).astype(float)


def _recall(rng: np.random.Generator, hard: np.ndarray, gain: float) -> np.ndarray:
    points = rng.integers(20, 200, size=hard.shape)
    return np.stack([rng.binomial(points, 1 / (1 + np.exp(hard - gain))), points], 1).astype(float)


def _rmse(rng: np.random.Generator, hard: np.ndarray, gain: float) -> np.ndarray:
    """Squared errors with a lognormal tail: the worst of a hundred images has ten times the mean's error."""
    return np.stack([np.exp(hard - gain), np.ones_like(hard)], 1)


CLASSES = 6


def _miou(rng: np.random.Generator, hard: np.ndarray, gain: float) -> np.ndarray:
    area = 784 * rng.dirichlet(np.full(CLASSES, 0.7), size=len(hard))
    right = 1 / (1 + np.exp(hard[:, None] - 0.5 - gain + 0.3 * rng.normal(size=area.shape)))
    hit = area * right
    predicted = hit + (784 - hit.sum(1, keepdims=True)) / CLASSES
    return np.concatenate([hit, predicted, area], 1)


_IOU = Segmentation(CLASSES)
WORLDS = {
    "top-1": World(_top1, mean_at(0, weight=1, scale=100.0)),
    "recall": World(_recall, mean_at(0, weight=1, scale=100.0)),
    "RMSE": World(_rmse, mean_at(0, weight=1, root=True), higher_is_better=False),
    "mIoU": World(_miou, lambda sums: 100.0 * _IOU._mean(*_IOU._iou(sums))),
}


def run_of(rows: torch.Tensor, world: World, name: str, test_set: str, task: str = "t") -> Metrics:
    """A metrics file of one result with its samples."""
    score = score_of(rows, world.statistic, len(rows))
    result = Result.of(score, group="g", task=task, metric="m", higher_is_better=world.higher_is_better, seed=0)
    return Metrics(
        schema=1,
        backbone=BackboneName(name=name, digest=name),
        suite="simulated",
        results=(result.scored_on(test_set),),
    )
