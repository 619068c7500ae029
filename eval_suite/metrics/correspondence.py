"""Correspondence: recall of matched points within a distance, and PCK of keypoints."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from eval_suite.metrics.score import Score, cluster_rows, mean_at, mean_class_share, score_of


def recall_at(errors: Tensor, valid: Tensor, thresholds: Sequence[float]) -> dict[float, Score]:
    """Share of all valid points closer than each threshold, percent, pooled over pairs (Probe3D).

    errors [P, K]: distance of point k of pair p from where it should be; valid bool [P, K]. The unit of the standard
    error is the pair.
    """
    valid = valid.bool()
    counts = valid.double().sum(1)
    _check(errors[valid])
    scores = {}
    for threshold in thresholds:
        hit = ((errors < threshold) & valid).double().sum(1)
        rows = torch.stack([hit, counts], 1)[counts > 0]
        units = (counts > 0).nonzero().flatten()
        scores[threshold] = score_of(rows, mean_at(0, weight=1, scale=100.0), int(counts.sum()), units)
    return scores


def views_recall(
    errors: Mapping[str, Tensor], centimetres: Sequence[float], pixels: Sequence[float]
) -> dict[str, Score]:
    """Metric -> score, of errors "metres" and "places" (pixels) [P, K] where "valid"."""
    near = recall_at(errors["metres"], errors["valid"], [limit / 100 for limit in centimetres])
    seen = recall_at(errors["places"], errors["valid"], pixels)
    in_space = {f"recall_{limit:g}cm": near[limit / 100] for limit in centimetres}
    return in_space | {f"recall_{limit:g}px": seen[limit] for limit in pixels}


def pck(
    errors: Tensor,
    sides: Tensor,
    *,
    pairs: Tensor,
    kinds: Tensor | None = None,
    alpha: float = 0.1,
    ends: Tensor | None = None,
) -> Score:
    """Percentage of correct keypoints: error <= alpha * side, side = the longer side of the target's box.

    errors, sides [M] in the same unit; pairs int [M] says which image pair a keypoint is of. ends int [P, 2]: the
    images of pair number p; the standard error then leaves out an image with all its pairs (the jackknife of a
    U-statistic, Arvesen 1969), as 200 pairs of 15 objects are not 200 observations. Without it the unit is the pair.
    With kinds int [M] the result is the mean over kinds (SPair-71k), else over keypoints.
    """
    _check(errors)
    kinds = torch.zeros_like(pairs) if kinds is None else kinds
    names, where = torch.unique(kinds, return_inverse=True)
    member = F.one_hot(where, len(names)).double()
    hit = member * (errors <= alpha * sides)[:, None]
    rows = cluster_rows(torch.cat([hit, member], 1), pairs)
    numbers = torch.unique(pairs)
    if ends is None:
        return score_of(rows, mean_class_share, len(errors), numbers)
    used = ends[numbers]
    once = rows * (used[:, 0] != used[:, 1])[:, None]  # a pair within one image goes with it, and goes once
    touched = cluster_rows(torch.cat([rows, once]), torch.cat([used[:, 0], used[:, 1]]))
    return score_of(touched, mean_class_share, len(errors), torch.unique(used), rows.sum(0))


def _check(errors: Tensor) -> None:
    if not len(errors):
        raise UserError("nothing to score: no pair has a point that is visible in both images")
    if not torch.isfinite(errors).all():
        raise UserError("a correspondence error is not finite; check the features for NaN")
