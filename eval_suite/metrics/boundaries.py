"""Boundaries: odsF, the best F over thresholds for the whole set, in pure Python.

The rules are those of the boundary benchmark (Martin et al. 2004) as the multi-task papers run it: the predicted map is
thinned by non-maximum suppression across the boundary, then for every threshold binarised, thinned to lines and matched
one to one with the label's thinned lines within a distance that is a share of the diagonal. SEISM solves a
minimum-cost assignment; here the matching has maximum cardinality, which can count slightly more hits. The metric
is therefore called odsf_py.
"""

import numpy as np
import torch
from scipy.ndimage import convolve1d, map_coordinates
from torch import Tensor

from common.errors import UserError
from eval_suite.metrics.pairing import Pairing
from eval_suite.metrics.score import Tally, same_shape
from eval_suite.metrics.thinning import thin, thin_levels

PASCAL, NYUD = 0.0075, 0.011  #: the farthest match, as a share of the diagonal
LEVELS = (0.001, *(level / 100 for level in range(1, 100)), 0.999)


class Boundaries(Tally):
    """odsf_py in percent, from hits, predicted and labelled boundary pixels per threshold over the whole set."""

    def __init__(
        self,
        *,
        farthest: float = PASCAL,
        thresholds: tuple[float, ...] = LEVELS,
        suppress: bool = True,
        ignore: int = 255,
    ) -> None:
        super().__init__({"odsf_py": lambda sums: 100.0 * f_scores(sums).amax(-1)})
        if list(thresholds) != sorted(thresholds):
            raise ValueError("thresholds ascend")
        self.farthest = farthest
        self.thresholds = thresholds
        self.suppress = suppress
        self.ignore = ignore

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Probability of a boundary [b, h, w] in [0, 1]; label in {0, 1} or `ignore`, thinned here."""
        same_shape(probability, target)
        if probability.numel() and not (probability.min() >= 0 and probability.max() <= 1):
            raise UserError("boundaries want probabilities in [0, 1]; apply the sigmoid first")
        rows = [self._row(p, t) for p, t in zip(probability.cpu().numpy(), target.cpu().numpy(), strict=True)]
        self.add(torch.tensor(np.stack(rows)), (target != self.ignore).flatten(1).any(1))

    def best_threshold(self) -> float:
        """The threshold of the best F."""
        return self.thresholds[int(f_scores(self.rows.sum(0)).argmax())]

    def _row(self, probability: np.ndarray, target: np.ndarray) -> np.ndarray:
        """[3 T]: hits, predicted pixels, labelled pixels per threshold (the last is the same for all)."""
        valid = target != self.ignore
        strength = suppressed(probability.astype(np.float64)) if self.suppress else probability
        lines = thin((target == 1) & valid)
        reach = self.farthest * float(np.hypot(*probability.shape))
        above = np.where(valid, np.searchsorted(self.thresholds, strength), 0)  # how many thresholds it is above
        pairing = Pairing(lines, above > 0, reach)
        hits, found = [], []
        before = np.zeros((0, 0))
        for drawn in thin_levels(above, len(self.thresholds)):
            same = np.array_equal(drawn, before)
            found.append(found[-1] if same else int(drawn.sum()))
            hits.append(hits[-1] if same else pairing.matched(drawn))
            before = drawn
        return np.array([*hits, *found, *[int(lines.sum())] * len(self.thresholds)], dtype=np.float64)


def f_scores(sums: Tensor) -> Tensor:
    """[..., 3 T] -> F per threshold [..., T]; nothing drawn, or nothing to draw, is 0."""
    hit, found, labelled = sums.chunk(3, dim=-1)
    precision, recall = hit / found.clamp(min=1.0), hit / labelled.clamp(min=1.0)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-12)


def suppressed(strength: np.ndarray) -> np.ndarray:
    """Only ridge tops [H, W] stay: a pixel weaker than either neighbour across the boundary becomes 0.

    Across is the direction in which the smoothed map bends down most: the eigenvector of its Hessian with the smallest
    eigenvalue. (Dollar & Zitnick 2015 use a closed form that is the same away from flat places.)
    """
    smooth = _triangle(strength, 4)
    down, right = np.gradient(smooth)
    down_down, right_right = np.gradient(down)[0], np.gradient(right)[1]
    down_right = np.gradient(right)[0]
    across = 0.5 * np.arctan2(2 * down_right, right_right - down_down) + np.pi / 2
    steps = np.stack([np.sin(across), np.cos(across)])
    grid = np.mgrid[: strength.shape[0], : strength.shape[1]].astype(np.float64)
    keep = np.ones(strength.shape, dtype=bool)
    fine = _triangle(strength, 1)
    for side in (-1.0, 1.0):
        beside = map_coordinates(fine, grid + side * steps, order=1, mode="nearest")
        keep &= fine * 1.01 >= beside
    return np.where(keep, strength, 0.0)


def _triangle(values: np.ndarray, radius: int) -> np.ndarray:
    kernel = np.concatenate([np.arange(1, radius + 2), np.arange(radius, 0, -1)]).astype(np.float64)
    kernel /= kernel.sum()
    return convolve1d(convolve1d(values, kernel, axis=0, mode="reflect"), kernel, axis=1, mode="reflect")
