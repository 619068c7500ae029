"""mIoU against torchmetrics and scikit-learn, and the cases on which definitions differ."""

import pytest
import torch
from sklearn.metrics import jaccard_score
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from common.errors import UserError
from eval_suite.metrics.segmentation import Segmentation


def scored(pred: torch.Tensor, target: torch.Tensor, classes: int, **options: str) -> Segmentation:
    metric = Segmentation(classes, **options)  # type: ignore[arg-type]
    metric.update(pred, target)
    return metric


def test_hand_example() -> None:
    """One right of two in each of two classes, the third never occurs, one pixel ignored."""
    target, pred = torch.tensor([[[0, 0], [1, 255]]]), torch.tensor([[[0, 1], [1, 1]]])
    assert scored(pred, target, 3).scores()["miou"].value == pytest.approx(50.0)
    assert scored(pred, target, 3, absent="zero").scores()["miou"].value == pytest.approx(100.0 / 3)
    assert scored(pred, target, 3).iou_per_class()[2] is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("missing", [False, True])
def test_equals_torchmetrics(seed: int, missing: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = 6
    pred = torch.randint(0, classes - missing, (4, 9, 11), generator=generator)
    target = torch.randint(0, classes - missing, (4, 9, 11), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    scores = scored(pred, target, classes).scores()
    jaccard = MulticlassJaccardIndex(classes, average="macro", ignore_index=255)(pred, target)
    micro = MulticlassAccuracy(classes, average="micro", ignore_index=255)(pred, target)
    macro = MulticlassAccuracy(classes, average="macro", ignore_index=255)(pred, target)
    assert scores["miou"].value == pytest.approx(100 * float(jaccard), abs=1e-4)
    each = MulticlassJaccardIndex(classes, average=None, ignore_index=255)(pred, target)
    for number, score in enumerate(scores["miou"].by_class):
        occurs = bool(((target == number) | ((pred == number) & (target != 255))).any())
        assert (score is not None) == occurs
        assert score is None or score.value == pytest.approx(100 * float(each[number]), abs=1e-4)
    assert scores["pixel_accuracy"].value == pytest.approx(100 * float(micro), abs=1e-4)
    assert scores["class_accuracy"].value == pytest.approx(100 * float(macro), abs=1e-4)


def test_absent_zero_equals_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randint(0, 4, (2, 5, 5), generator=generator), torch.randint(0, 4, (2, 5, 5))
    outside = jaccard_score(target.flatten(), pred.flatten(), labels=list(range(6)), average="macro", zero_division=0)
    assert scored(pred, target, 6, absent="zero").scores()["miou"].value == pytest.approx(100 * outside)


def test_the_error_of_a_class_is_the_jackknife_over_images() -> None:
    pred, target = torch.randint(0, 3, (2, 7, 6, 6), generator=torch.Generator().manual_seed(1))
    score = scored(pred, target, 3).scores()["miou"].by_class[1]
    left_out = [scored(pred[keep], target[keep], 3).scores()["miou"].by_class[1] for keep in ~torch.eye(7).bool()]
    values = torch.tensor([other.value for other in left_out if other is not None], dtype=torch.float64)
    assert score is not None
    assert score.stderr == pytest.approx(float((values - values.mean()).square().sum() * 6 / 7) ** 0.5)


def test_images_without_a_valid_pixel_do_not_count() -> None:
    target = torch.zeros(3, 2, 2, dtype=torch.uint8)
    target[1] = 255
    assert scored(torch.zeros(3, 2, 2), target, 2).scores()["miou"].n == 2


def test_classes_are_pooled_over_images_not_averaged_per_image() -> None:
    target = torch.tensor([[[0, 0, 0, 0]], [[0, 1, 1, 1]]])
    pred = torch.tensor([[[0, 0, 0, 0]], [[1, 1, 1, 1]]])
    assert scored(pred, target, 2).scores()["miou"].value == pytest.approx(100 * (4 / 5 + 3 / 4) / 2)


@pytest.mark.parametrize("values", [[0, 7], [0, -1]])
def test_a_class_outside_the_range_is_named(values: list[int]) -> None:
    target = torch.tensor([[values]])
    with pytest.raises(UserError, match=r"label has class .* expected 0\.\.4"):
        scored(torch.zeros(1, 1, 2), target, 5)


def test_a_size_mismatch_is_named() -> None:
    with pytest.raises(UserError, match="differ in shape"):
        scored(torch.zeros(1, 2, 2), torch.zeros(1, 4, 4), 2)
