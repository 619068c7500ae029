"""kNN and zero-shot against scikit-learn, accuracies against torchmetrics."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torchmetrics.classification import MulticlassAccuracy

from common.errors import UserError
from eval_suite.metrics.classification import (
    cosine_logits,
    knn_predict,
    mean_class_accuracy,
    top1,
    top_k,
    zero_shot_weights,
)


def cloud(seed: int, per_class: int, spread: float, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    noise = spread * torch.randn(len(labels), 16, generator=generator)
    return torch.eye(16)[labels] + noise, labels


def test_orthogonal_classes_even_when_k_exceeds_the_class() -> None:
    """With k = 30 of 36 the other classes outnumber the right one; the weight exp(s / 0.07) decides."""
    train, labels = cloud(0, per_class=12, spread=0.05)
    test, truth = cloud(1, per_class=20, spread=0.05)
    for k in (5, 30):
        assert top1(knn_predict(train, labels, test, classes=3, k=k), truth).value == 100.0


@pytest.mark.parametrize("k", [1, 7, 20])
def test_vote_equals_scikit_learn(k: int) -> None:
    train, labels = cloud(2, per_class=40, spread=0.5, classes=6)
    test, _ = cloud(3, per_class=30, spread=0.5, classes=6)

    def weight(distance: np.ndarray) -> np.ndarray:
        return np.exp((1.0 - distance) / 0.07)

    outside = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weight)
    outside.fit(train.double().numpy(), labels.numpy())
    ours = knn_predict(train, labels, test, classes=6, k=k, chunk=17)
    assert ours.tolist() == outside.predict(test.double().numpy()).tolist()


def test_length_of_a_feature_does_not_matter() -> None:
    train, labels = cloud(4, per_class=15, spread=0.6)
    test, _ = cloud(5, per_class=15, spread=0.6)
    stretch = torch.rand(len(train), 1) * 9 + 0.1
    ours = knn_predict(train * stretch, labels, test * stretch, classes=3)
    assert torch.equal(ours, knn_predict(train, labels, test, classes=3))


def test_knn_refuses_what_it_cannot_score() -> None:
    train, labels = cloud(6, per_class=2, spread=0.1)
    with pytest.raises(UserError, match="needs at least 20"):
        knn_predict(train, labels, train, classes=3)
    with pytest.raises(UserError, match="test features hold NaN"):
        knn_predict(train, labels, train * float("nan"), classes=3, k=2)


def test_zero_shot_of_identity_prototypes() -> None:
    images, labels = cloud(7, per_class=9, spread=0.0)
    weights = zero_shot_weights(torch.eye(16)[:3, None].repeat(1, 2, 1))
    logits = cosine_logits(images, weights)
    assert top1(logits.argmax(1), labels).value == 100.0
    torch.testing.assert_close(cosine_logits(images * 37.0, weights), logits)


def test_prompts_are_normalised_before_they_are_averaged() -> None:
    prompts = torch.tensor([[[10.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(zero_shot_weights(prompts)[0], F.normalize(torch.tensor([1.0, 1.0]), dim=0))


def test_accuracies_equal_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(8)
    logits, labels = torch.randn(200, 7, generator=generator), torch.randint(0, 6, (200,), generator=generator)
    for k in (1, 5):
        outside = MulticlassAccuracy(7, top_k=k, average="micro")(logits, labels)
        assert top_k(logits, labels, k).value == pytest.approx(100 * float(outside), abs=1e-4)
    predictions = logits[:, :6].argmax(1)
    outside = MulticlassAccuracy(6, average="macro")(predictions, labels)
    assert mean_class_accuracy(predictions, labels, 7).value == pytest.approx(100 * float(outside), abs=1e-4)


def test_error_of_top1_is_binomial() -> None:
    predictions, labels = torch.zeros(400, dtype=torch.long), (torch.arange(400) >= 300).long()
    score = top1(predictions, labels)
    assert (score.value, score.n) == (75.0, 400)
    assert score.stderr == pytest.approx(100 * (0.75 * 0.25 / 399) ** 0.5)
