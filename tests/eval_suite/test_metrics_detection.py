"""Box AP against COCO's own tool and torchmetrics, random and adversarial, all sizes; its error against a bootstrap."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

from common.errors import UserError
from eval_suite.metrics.detection import LEVELS, SIZES, Boxes, box_ap


def official(found: list[Boxes], truth: list[Boxes]) -> dict[str, float]:
    """COCOeval's AP by size, percent; -100 where there is none."""
    notes, said = [], []
    for image, boxes in enumerate(truth, 1):
        for at, (x0, y0, x1, y1) in enumerate(boxes.corners.tolist()):
            notes.append(
                {"id": len(notes) + 1, "image_id": image, "category_id": int(boxes.classes[at]) + 1,
                 "bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(boxes.areas[at]), "iscrowd": int(boxes.crowd[at])}
            )  # fmt: skip
    for image, boxes in enumerate(found, 1):
        for at, (x0, y0, x1, y1) in enumerate(boxes.corners.tolist()):
            said.append(
                {"image_id": image, "category_id": int(boxes.classes[at]) + 1, "score": float(boxes.scores[at]),
                 "bbox": [x0, y0, x1 - x0, y1 - y0]}
            )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "images": [{"id": n + 1} for n in range(len(truth))], "annotations": notes,
            "categories": [{"id": n + 1} for n in range(5)], "info": {},
        }  # fmt: skip
        known.createIndex()
        tool = COCOeval(known, known.loadRes(said), "bbox")
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    return dict(zip(("all", "small", "medium", "large"), 100 * tool.stats[[0, 3, 4, 5]], strict=True))


def scene(rng: np.random.Generator, *, whole: bool = False, ties: bool = False) -> tuple[Boxes, Boxes]:
    """Labels and guesses of one image: near misses, doubles, other classes, nothing at all; sizes around the limits."""
    count = int(rng.integers(0, 9))
    low = rng.uniform(0, 300, (count, 2))
    sides = rng.choice([4.0, 20, 31, 32, 33, 60, 95, 96, 97, 150], (count, 2))
    corners = np.concatenate([low, low + sides], 1)
    if whole:
        corners = corners.round()
    classes = rng.integers(0, 3, count)
    areas = sides.prod(1) * rng.choice([1.0, 0.6], count)
    truth = Boxes(corners, classes, crowd=rng.random(count) < 0.2, areas=areas)
    again = rng.integers(0, max(count, 1), int(rng.integers(0, 14)) if count else 0)
    moved = corners[again] + rng.normal(0, rng.choice([0.0, 1.0, 6.0]), (len(again), 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    said = np.where(rng.random(len(again)) < 0.8, classes[again], rng.integers(0, 4, len(again)))
    scores = rng.choice([0.2, 0.5, 0.8], len(again)) if ties else rng.random(len(again))
    return Boxes(moved, said, scores), truth


def scenes(rng: np.random.Generator, count: int, **how: bool) -> tuple[list[Boxes], list[Boxes]]:
    """Guesses and labels of several images."""
    pairs = [scene(rng, **how) for _ in range(count)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def rounded(images: list[Boxes]) -> list[Boxes]:
    """The same with corners on whole pixels."""
    return [dataclasses.replace(boxes, corners=boxes.corners.round()) for boxes in images]


@pytest.mark.parametrize("seed", range(6))
def test_ap_is_that_of_cocos_own_tool(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, truth = scenes(rng, 12, whole=seed % 2 == 0, ties=seed % 3 == 0)
    expected = official(found, truth)
    for size in SIZES:
        if expected[size] < 0:
            with pytest.raises(UserError, match=f"no labelled box of size {size}"):
                box_ap(found, truth, size)
        else:
            assert box_ap(found, truth, size).value == pytest.approx(expected[size], abs=1e-6), size


def test_more_than_a_hundred_boxes_and_equal_overlaps() -> None:
    """Only the hundred best of a class count; two labels a guess overlaps equally; a guess inside two crowds."""
    rng = np.random.default_rng(9)
    corners = np.array([[10.0 * n, 0, 10.0 * n + 8, 8] for n in range(130)])
    truth = [Boxes(corners, np.zeros(130, int), crowd=np.zeros(130, bool), areas=np.full(130, 64.0))]
    found = [Boxes(corners, np.zeros(130, int), rng.random(130))]
    assert box_ap(found, truth).value == pytest.approx(official(found, truth)["all"], abs=1e-6)
    pair = np.array([[0.0, 0, 20, 10], [0.0, 10, 20, 20], [100, 100, 200, 200], [100, 100, 210, 210]])
    crowd = np.array([False, False, True, True])
    truth = [Boxes(pair, np.zeros(4, int), crowd=crowd, areas=np.array([200.0, 200, 1e4, 1.2e4]))]
    guesses = np.array([[0.0, 0, 20, 20], [0, 5, 20, 15], [120, 120, 150, 150], [121, 121, 150, 150]])
    found = [Boxes(guesses, np.zeros(4, int), np.array([0.9, 0.8, 0.7, 0.6]))]
    assert box_ap(found, truth).value == pytest.approx(official(found, truth)["all"], abs=1e-6)


def test_ap_agrees_with_torchmetrics() -> None:
    rng = np.random.default_rng(3)
    found, truth = (rounded(part) for part in scenes(rng, 8))  # torchmetrics keeps boxes in float32
    # its own thresholds are float32, so that a recall of 0.2 falls short of 0.2
    metric = MeanAveragePrecision(
        "xyxy", iou_thresholds=list(LEVELS), rec_thresholds=np.linspace(0, 1, 101).tolist(), backend="pycocotools"
    )
    tensor = torch.from_numpy
    said = [{"boxes": tensor(f.corners), "scores": tensor(f.scores), "labels": tensor(f.classes)} for f in found]
    true = [
        {
            "boxes": tensor(t.corners),
            "labels": tensor(t.classes),
            "area": tensor(t.areas),
            "iscrowd": tensor(t.crowd).int(),
        }
        for t in truth
    ]
    metric.update(said, true)
    outside = metric.compute()
    for size, key in (("all", "map"), ("small", "map_small"), ("medium", "map_medium"), ("large", "map_large")):
        assert box_ap(found, truth, size).value == pytest.approx(100 * float(outside[key]), abs=1e-4)


def test_the_error_of_ap_is_the_jackknife_over_images() -> None:
    """Left out one at a time and scored anew; the fast way matches once and masks."""
    rng = np.random.default_rng(4)
    found, truth = scenes(rng, 9)
    others = [box_ap(found[:at] + found[at + 1 :], truth[:at] + truth[at + 1 :]).value for at in range(9)]
    expected = np.sqrt(8 / 9 * np.sum((np.array(others) - np.mean(others)) ** 2))
    assert box_ap(found, truth).stderr == pytest.approx(expected)
    labelled = next(at for at, boxes in enumerate(truth) if (~boxes.crowd).any())
    assert box_ap([found[labelled]], [truth[labelled]]).stderr is None
