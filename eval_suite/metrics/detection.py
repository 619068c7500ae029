"""COCO's average precision of boxes: mean over IoU 0.50 .. 0.95, precision read at 101 recalls, 100 boxes an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from eval_suite.metrics.score import Score

LEVELS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
MOST = 100
SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


GROUPS = 20  #: of images, for the standard error


@dataclass(frozen=True)
class Boxes:
    """Boxes of an image: corners [n, 4] = x0, y0, x1, y1 in pixels, classes int [n]; scores [n] of predictions.

    Of labels crowd bool [n] (regions a prediction may lie in without being wrong) and areas [n], the boxes' own if None
    (COCO's are those of the masks).
    """

    corners: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None


def box_ap(found: Sequence[Boxes], truth: Sequence[Boxes], size: str = "all") -> Score:
    """AP in percent over classes that have a label of that size; found and truth are lists of images.

    The standard error is a jackknife that leaves out one of 20 groups of images at a time.
    """
    if len(found) != len(truth) or not truth:
        raise UserError(f"{len(found)} images with predictions for {len(truth)} with labels")
    for number, boxes in enumerate(found):
        _check_finite(boxes, f"the predictions for image {number}")
    for number, boxes in enumerate(truth):
        _check_finite(boxes, f"the labels of image {number}")
    classes = sorted({int(c) for boxes in truth for c in boxes.classes})
    matched = [_class_matches(found, truth, cls, SIZES[size]) for cls in classes]
    value = _mean_ap(matched, np.ones(len(truth), bool))
    if value is None:
        raise UserError(f"no labelled box of size {size}")
    groups = min(GROUPS, len(truth))
    member = np.arange(len(truth)) % groups
    others: list[float | None] = (
        [_mean_ap(matched, member != group) for group in range(groups)] if groups > 1 else [None]
    )
    known = [other for other in others if other is not None]
    stderr = None
    if len(known) == len(others):
        stderr = float(np.sqrt((groups - 1) / groups * np.sum((np.array(known) - np.mean(known)) ** 2)))
    return Score(value, sum(len(boxes.corners) for boxes in truth), stderr)


def _check_finite(boxes: Boxes, what: str) -> None:
    """UserError for NaN or infinity, which would sort anywhere, and for predictions that have no score."""
    for name, values in (("box", boxes.corners), ("score", boxes.scores), ("area", boxes.areas)):
        if values is not None and not np.isfinite(values).all():
            raise UserError(f"{what} hold a {name} that is not finite; check the features and the head for NaN")


def overlaps(first: np.ndarray, second: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of boxes [n, 4] and [m, 4] -> [n, m]; with a crowd the share of the first box inside it."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    own, other = areas_of(first), areas_of(second)
    union = np.where(crowd[None], own[:, None], own[:, None] + other[None] - shared)
    return shared / np.maximum(union, 1e-12)


@dataclass(frozen=True)
class Matches:
    """Predictions of one class by falling score over all images, and how many labels of it each image has."""

    image: np.ndarray  #: int [n]
    hit: np.ndarray  #: bool [levels, n]
    ignored: np.ndarray  #: bool [levels, n]
    labelled: np.ndarray  #: int [images]


def _class_matches(found: Sequence[Boxes], truth: Sequence[Boxes], cls: int, size: tuple[float, float]) -> Matches:
    scores, image = [np.zeros(0)], [np.zeros(0, np.int64)]
    right, ignored = [np.zeros((len(LEVELS), 0), bool)], [np.zeros((len(LEVELS), 0), bool)]
    labelled = np.zeros(len(truth), np.int64)
    for number, (said, true) in enumerate(zip(found, truth, strict=True)):
        ours, theirs = said.classes == cls, true.classes == cls
        if not ours.any() and not theirs.any():
            continue
        score = np.zeros(0) if said.scores is None else said.scores[ours]
        order = np.argsort(-score, kind="stable")[:MOST]
        crowd = np.zeros(len(true.classes), bool) if true.crowd is None else true.crowd.astype(bool)
        area = areas_of(true.corners) if true.areas is None else true.areas
        hit, out, labelled[number] = _match(
            said.corners[ours][order], true.corners[theirs], crowd[theirs], area[theirs], size
        )
        scores.append(score[order])
        image.append(np.full(len(order), number))
        right.append(hit)
        ignored.append(out)
    ranked = np.argsort(-np.concatenate(scores), kind="stable")
    hit, out = np.concatenate(right, 1)[:, ranked], np.concatenate(ignored, 1)[:, ranked]
    return Matches(np.concatenate(image)[ranked], hit, out, labelled)


def _mean_ap(classes: Sequence[Matches], kept: np.ndarray) -> float | None:
    """Percent over the images kept (bool [images]); None where they hold no label."""
    values = []
    for one in classes:
        labelled, chosen = int(one.labelled[kept].sum()), kept[one.image]
        if labelled:
            hits = [one.hit[at][chosen & ~one.ignored[at]] for at in range(len(LEVELS))]
            values.append(np.mean([_interpolated(some, labelled) for some in hits]))
    return 100.0 * float(np.mean(values)) if values else None


def areas_of(corners: np.ndarray) -> np.ndarray:
    """Boxes [n, 4] -> pixels [n]."""
    return np.clip(corners[:, 2:] - corners[:, :2], 0, None).prod(-1)


def _match(
    ours: np.ndarray, theirs: np.ndarray, crowd: np.ndarray, area: np.ndarray, size: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Boxes of one class in one image, ours by falling score -> hit and ignored [levels, n], and labels that count.

    Each prediction takes the free label it overlaps most (of equals the last, as COCO's tool does). Labels of another
    size or crowds are taken only where nothing else fits, and the prediction is then ignored, as is an unmatched one of
    another size.
    """
    aside = crowd | (area < size[0]) | (area > size[1])
    own = areas_of(ours)
    shared = overlaps(ours, theirs, crowd)
    hit, out = np.zeros((len(LEVELS), len(ours)), bool), np.zeros((len(LEVELS), len(ours)), bool)
    for at, level in enumerate(LEVELS):
        free = np.ones(len(theirs), bool)
        for number in range(len(ours)):
            fits = (shared[number] >= level - 1e-10) & (free | crowd)
            good = np.flatnonzero(fits & ~aside)
            rest = np.flatnonzero(fits & aside)
            chosen = good if len(good) else rest
            if len(chosen):
                best = chosen[::-1][shared[number][chosen[::-1]].argmax()]  # of equals the last, as pycocotools has it
                free[best] = False
                hit[at, number], out[at, number] = not aside[best], bool(aside[best])
            else:
                out[at, number] = not size[0] <= own[number] <= size[1]
    return hit, out, int((~aside).sum())


def _interpolated(hits: np.ndarray, labelled: int) -> float:
    """Mean over recalls 0, 0.01, ... 1 of the best precision at that recall or beyond."""
    if not len(hits):
        return 0.0
    found = np.cumsum(hits)
    recall, precision = found / labelled, found / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.where(at < len(precision), precision[np.minimum(at, len(precision) - 1)], 0.0).mean())
