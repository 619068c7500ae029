"""Boundaries: odsF, the best F over thresholds for the whole set, in pure Python.

The rules are those of the boundary benchmark (Martin et al. 2004) as the multi-task papers run it: the predicted map is
thinned by non-maximum suppression across the boundary, then for every threshold binarised, thinned to lines and matched
one to one with the label's thinned lines within a distance that is a share of the diagonal. Where several people drew
the boundaries each drawing is matched by itself, as BSDS500's benchmark does: a predicted pixel is right if it is
paired in one of them, and recall counts the pixels of all. SEISM and the benchmark solve a minimum-cost assignment;
here the matching has maximum cardinality, which can count slightly more hits. The metric is therefore called odsf_py,
and odsf_by_annotator_py in the results of sets with several drawings a photograph.
"""

import numpy as np
import torch
from scipy.ndimage import convolve1d, map_coordinates
from torch import Tensor

from common.errors import UserError
from eval_suite.metrics.pairing import Pairing
from eval_suite.metrics.score import Score, Tally, same_shape
from eval_suite.metrics.thinning import thin, thin_levels

PASCAL, NYUD = 0.0075, 0.011  #: the farthest match, as a share of the diagonal
LEVELS = (0.001, *(level / 100 for level in range(1, 100)), 0.999)


class Boundaries(Tally):
    """odsf_py in percent, from counts of boundary pixels per threshold over the whole set."""

    def __init__(
        self,
        *,
        farthest: float = PASCAL,
        thresholds: tuple[float, ...] = LEVELS,
        suppress: bool = True,
        ignore: int = 255,
    ) -> None:
        super().__init__({"odsf_py": lambda sums: 100.0 * f_scores(sums[..., :-3]).amax(-1)})
        if list(thresholds) != sorted(thresholds):
            raise ValueError("thresholds ascend")
        self.farthest = farthest
        self.thresholds = thresholds
        self.suppress = suppress
        self.ignore = ignore

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Probability of a boundary [b, h, w] in [0, 1]; label in {0, 1} or `ignore`, thinned here.

        The label is [b, h, w], or [b, people, h, w] with a plane for each drawing; planes that are `ignore` throughout
        stand for nobody.
        """
        drawings = target[:, None] if target.ndim == 3 else target
        for plane in range(drawings.shape[1]):
            same_shape(probability, drawings[:, plane])
        if probability.numel() and not (probability.min() >= 0 and probability.max() <= 1):
            raise UserError("boundaries want probabilities in [0, 1]; apply the sigmoid first")
        rows = [self._row(p, t) for p, t in zip(probability.cpu().numpy(), drawings.cpu().numpy(), strict=True)]
        self.add(torch.tensor(np.stack(rows)), (drawings != self.ignore).flatten(1).any(1))

    def _row(self, probability: np.ndarray, drawings: np.ndarray) -> np.ndarray:
        """[4 T + 3] per threshold: predicted pixels that are right, predicted, labelled ones found, labelled ones; and
        the first three of drawing everything."""
        people = [plane for plane in drawings if (plane != self.ignore).any()]
        if not people:
            return np.zeros(4 * len(self.thresholds) + 3)
        valid = np.logical_or.reduce([plane != self.ignore for plane in people])
        strength = suppressed(probability.astype(np.float64)) if self.suppress else probability
        above = np.where(valid, np.searchsorted(self.thresholds, strength), 0)  # how many thresholds it is above
        reach = self.farthest * float(np.hypot(*probability.shape))
        lines = [thin((plane == 1) & valid) for plane in people]
        pairings = [Pairing(one, above > 0, reach) for one in lines]
        counts: list[tuple[int, int, int]] = []
        before = np.zeros((0, 0))
        for drawn in thin_levels(above, len(self.thresholds)):
            counts.append(counts[-1] if np.array_equal(drawn, before) else _counts(drawn, pairings))
            before = drawn
        right, found, recalled = np.array(counts, dtype=np.float64).T
        labelled = np.full(len(counts), sum(int(one.sum()) for one in lines))
        everything = thin(valid)
        blind = _counts(everything, [Pairing(one, everything, reach) for one in lines])
        return np.concatenate([right, found, recalled, labelled, blind])

    def scores(self) -> dict[str, Score]:
        """The floor is that of one strength everywhere: what is left of the whole picture when it is thinned."""
        total = self.rows.sum(0)
        blind = f_scores(torch.cat([total[-3:], total[-4:-3]]))  # three counts, and the labelled pixels before them
        return {name: score.with_floor(100.0 * float(blind)) for name, score in super().scores().items()}


def _counts(drawn: np.ndarray, pairings: list[Pairing]) -> tuple[int, int, int]:
    """Drawn pixels paired in one of the drawings, drawn pixels, and pairs in all of them."""
    pairs = [pairing.matched(drawn) for pairing in pairings]
    if len(pairings) == 1:
        return pairs[0], int(drawn.sum()), pairs[0]
    right = np.logical_or.reduce([pairing.paired(drawn) for pairing in pairings])
    return int(right.sum()), int(drawn.sum()), sum(pairs)


def f_scores(sums: Tensor) -> Tensor:
    """[..., 4 T] -> F per threshold [..., T]; nothing drawn, or nothing to draw, is 0."""
    right, found, recalled, labelled = sums.chunk(4, dim=-1)
    precision, recall = right / found.clamp(min=1.0), recalled / labelled.clamp(min=1.0)
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
