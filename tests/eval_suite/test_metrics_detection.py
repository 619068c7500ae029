"""Boxes' average precision and COCO's masks against pycocotools, on random and on awkward inputs."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eval_suite.metrics.detection import SIZES, Boxes, box_ap
from eval_suite.readers.coco import instance_mask
from eval_suite.readers.rle import decode_rle
from teachers.errors import UserError


def coco_scores(found: list[Boxes], truth: list[Boxes]) -> dict[str, float]:
    """AP in percent by size, as pycocotools prints it; -100 where nothing is labelled."""
    said, notes = [], []
    for image, (ours, theirs) in enumerate(zip(found, truth, strict=True)):
        for corners, cls, crowd in zip(theirs.corners, theirs.classes, theirs.crowd, strict=True):
            notes.append(_note(image, corners, cls) | {"id": len(notes) + 1, "iscrowd": int(crowd)})
        for corners, cls, score in zip(ours.corners, ours.classes, ours.scores, strict=True):
            said.append(_note(image, corners, cls) | {"score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        labels = COCO()
        categories = [{"id": number, "name": str(number)} for number in range(6)]
        images = [{"id": number} for number in range(len(truth))]
        labels.dataset = {"images": images, "annotations": notes, "categories": categories}
        labels.createIndex()
        judge = COCOeval(labels, labels.loadRes(said), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(("all", "small", "medium", "large"), 100 * judge.stats[[0, 3, 4, 5]], strict=True))


def _note(image: int, corners: np.ndarray, cls: int) -> dict[str, object]:
    x0, y0, x1, y1 = (float(side) for side in corners)
    return {
        "image_id": image, "category_id": int(cls), "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
    }  # fmt: skip


def world(seed: int, images: int = 12, classes: int = 4) -> tuple[list[Boxes], list[Boxes]]:
    """Labels of all sizes, some crowds; predictions near them, doubled, of wrong classes, and from nowhere."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(images):
        count = int(rng.integers(0, 9))
        low = rng.integers(0, 300, (count, 2))
        side = rng.choice([8, 20, 32, 60, 96, 200], (count, 2))
        corners = np.concatenate([low, low + side], 1).astype(float)
        labels = rng.integers(0, classes, count)
        truth.append(Boxes(corners, labels, None, rng.random(count) < 0.15))
        copies = int(rng.integers(0, 3))
        nowhere = np.tile(rng.integers(0, 200, (3, 2)), 2) + np.array([0, 0, 40, 50])
        near = np.concatenate([*[corners] * copies, nowhere.astype(float)])
        near[:, 2:] += rng.normal(0, 0.05, (len(near), 2)) * (near[:, 2:] - near[:, :2])
        said = np.concatenate([labels] * copies + [rng.integers(0, classes + 1, 3)])
        said = np.where(rng.random(len(said)) < 0.1, rng.integers(0, classes, len(said)), said)
        scores = rng.integers(0, 8, len(said)) / 8 if seed % 2 else rng.random(len(said))  # odd seeds: many ties
        found.append(Boxes(near, said, scores))
    return found, truth


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_agrees_with_pycocotools(seed: int) -> None:
    found, truth = world(seed)
    theirs = coco_scores(found, truth)
    for size in SIZES:
        if theirs[size] < 0:
            with pytest.raises(UserError, match=f"no labelled box of size {size}"):
                box_ap(found, truth, size)
        else:
            assert box_ap(found, truth, size).value == pytest.approx(theirs[size], abs=1e-6)


def awkward() -> dict[str, tuple[list[Boxes], list[Boxes]]]:
    box, on_the_edge = np.array([[10.0, 10, 60, 60]]), np.array([[0.0, 0, 32, 32], [0, 100, 96, 196]])
    zero, no = np.zeros(1, int), np.zeros(1, bool)
    many = np.tile(box, (150, 1))
    falling = np.linspace(1, 0, 150)
    right_last = many.copy()
    right_last[:149] += 200
    return {
        "nothing found in one image": (
            [Boxes(box, zero, np.ones(1)), Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))],
            [Boxes(box, zero, None, no), Boxes(box, zero, None, no)],
        ),
        "areas of exactly 32^2 and 96^2": (
            [Boxes(on_the_edge, np.zeros(2, int), np.array([0.9, 0.8]))],
            [Boxes(on_the_edge, np.zeros(2, int), None, np.zeros(2, bool))],
        ),
        "two equal labels": (
            [Boxes(np.tile(box, (2, 1)), np.zeros(2, int), np.array([0.9, 0.8]))],
            [Boxes(np.tile(box, (2, 1)), np.zeros(2, int), None, np.zeros(2, bool))],
        ),
        "the right one is beyond the hundredth": (
            [Boxes(right_last, np.zeros(150, int), falling)],
            [Boxes(box, zero, None, no)],
        ),
        "many in one crowd": ([Boxes(many, np.zeros(150, int), falling)], [
            Boxes(np.array([[0.0, 0, 100, 100], [10, 10, 60, 60]]), np.zeros(2, int), None, np.array([True, False]))
        ]),
        "only crowds of one class": (
            [Boxes(np.tile(box, (2, 1)), np.array([0, 1]), np.array([0.9, 0.8]))],
            [Boxes(np.tile(box, (2, 1)), np.array([0, 1]), None, np.array([True, False]))],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", awkward())
def test_awkward_boxes_agree_with_pycocotools(case: str) -> None:
    found, truth = awkward()[case]
    for size, wanted in coco_scores(found, truth).items():
        if wanted >= 0:
            assert box_ap(found, truth, size).value == pytest.approx(wanted, abs=1e-6), size


@pytest.mark.parametrize("seed", range(4))
def test_run_length_masks_agree_with_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((23, 31)) < (0.02, 0.5, 0.98, 0.0)[seed]
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(decode_rle(packed["counts"], 23, 31), mask)
    assert np.array_equal(decode_rle(packed["counts"].decode(), 23, 31), mask)
    with pytest.raises(UserError, match="damaged"):
        decode_rle(packed["counts"][:-1] + b"o", 23, 31)  # "o" says that more follows


def test_polygons_cover_what_pycocotools_says_to_a_pixel_along_the_edge() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        angles = np.sort(rng.random(12)) * 2 * np.pi
        radius = rng.uniform(15, 40, 12)
        polygon = np.stack([60 + radius * np.cos(angles), 50 + radius * np.sin(angles)], 1).ravel().tolist()
        theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 100, 120))).astype(bool)
        ours = instance_mask([polygon], 100, 120)
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9
