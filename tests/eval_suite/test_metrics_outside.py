"""Metrics against outside implementations on awkward inputs: nothing labelled, one class, ties, flat maps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.morphology import thin as skimage_thin
from sklearn.metrics import auc, balanced_accuracy_score, mean_squared_error
from sklearn.neighbors import KNeighborsClassifier
from torchmetrics.classification import BinaryPrecisionRecallCurve, MulticlassJaccardIndex

from common.errors import UserError
from eval_suite.metrics.classification import knn_predict, mean_class_accuracy
from eval_suite.metrics.correspondence import pck, recall_at
from eval_suite.metrics.depth import Depth
from eval_suite.metrics.instance_retrieval import mean_average_precision
from eval_suite.metrics.saliency import BETA_SQUARED, THRESHOLDS, Saliency
from eval_suite.metrics.segmentation import Segmentation
from eval_suite.metrics.thinning import thin

DRAWN = settings(max_examples=8, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10_000)


@DRAWN
@given(SEEDS, st.integers(2, 6), st.sampled_from([0.0, 0.3, 0.97]), st.integers(1, 4))
def test_miou_of_any_maps(seed: int, classes: int, ignored: float, present: int) -> None:
    """Few classes present, nearly everything ignored, classes only ever predicted."""
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(rng.integers(0, min(present, classes), (3, 6, 7)))
    pred = torch.from_numpy(rng.integers(0, classes, target.shape))
    target[torch.from_numpy(rng.random(target.shape) < ignored)] = 255
    metric = Segmentation(classes)
    metric.update(pred, target)
    if not (target != 255).any():
        with pytest.raises(UserError, match="no image has a valid label"):
            metric.scores()
        return
    outside = MulticlassJaccardIndex(classes, average="macro", ignore_index=255)
    assert metric.scores()["miou"].value == pytest.approx(100 * float(outside(pred, target)), abs=1e-3)


@DRAWN
@given(SEEDS, st.sampled_from(["any", "flat", "sure", "nothing"]))
def test_maxf_of_any_maps(seed: int, kind: str) -> None:
    """A flat probability, certainties, and pictures in which nothing is salient."""
    rng = np.random.default_rng(seed)
    target = torch.from_numpy((rng.random((2, 5, 6)) < 0.3).astype(np.int64))
    probability = torch.from_numpy(rng.random(target.shape))
    if kind == "flat":
        probability[:] = float(rng.random())
    elif kind == "sure":
        probability = probability.round()
    elif kind == "nothing":
        target[0] = 0
    if not target.any():
        return  # torchmetrics has no recall then
    metric = Saliency(variant="plain")
    metric.update(probability, target)
    precision, recall, _ = BinaryPrecisionRecallCurve(thresholds=THRESHOLDS)(probability, target)
    f = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    assert metric.scores()["maxf"].value == pytest.approx(100 * float(f[:-1].nan_to_num(0.0).max()), rel=1e-5, abs=1e-6)


@DRAWN
@given(SEEDS, st.sampled_from([0.0, 0.5, 0.95]))
def test_pooled_depth_error_with_holes(seed: int, holes: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.01, 12, (3, 5, 4))
    truth[rng.random(truth.shape) < holes] = rng.choice([0.0, np.nan, np.inf])
    pred = rng.uniform(-1, 12, truth.shape)
    valid = np.isfinite(truth) & (truth > 0) & (truth <= 10)
    metric = Depth(pool="pixel", max_depth=10.0)
    metric.update(torch.from_numpy(pred), torch.from_numpy(truth))
    if not valid.any():
        return
    said, true = np.maximum(pred[valid], 1e-3), truth[valid]
    scores = metric.scores()
    assert scores["rmse"].value == pytest.approx(mean_squared_error(true, said) ** 0.5)
    assert scores["d2"].value == pytest.approx(100 * np.mean(np.maximum(said / true, true / said) < 1.25**2))


@DRAWN
@given(SEEDS, st.integers(1, 30))
def test_knn_with_doubled_neighbours(seed: int, k: int) -> None:
    """Half of the bank are copies with another label: the vote must still be the one of the neighbours' weights."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(15, 4))
    bank = np.concatenate([half, half]).astype(np.float32)
    labels = rng.integers(0, 3, 30)
    queries = rng.normal(size=(9, 4)).astype(np.float32)
    k = k if k % 2 == 0 else k + 1  # a pair of copies is in or out as a whole
    k = min(k, 30)
    outside = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    shares = outside.fit(bank, labels).predict_proba(queries)
    clear = np.sort(shares, 1)[:, -1] - np.sort(shares, 1)[:, -2] > 1e-3 if shares.shape[1] > 1 else np.ones(9, bool)
    said = knn_predict(torch.tensor(bank), torch.tensor(labels), torch.tensor(queries), classes=3, k=k).numpy()
    assert np.array_equal(said[clear], outside.classes_[shares.argmax(1)][clear])


@DRAWN
@given(SEEDS, st.integers(1, 5))
def test_mean_class_accuracy_of_any_labels(seed: int, present: int) -> None:
    rng = np.random.default_rng(seed)
    labels, said = rng.integers(0, present, 20), rng.integers(0, 5, 20)
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(UserWarning)  # classes that are only ever predicted
        expected = balanced_accuracy_score(labels, said)
    value = mean_class_accuracy(torch.from_numpy(said), torch.from_numpy(labels), 5).value
    assert value == pytest.approx(100 * expected)


@DRAWN
@given(SEEDS, st.sampled_from([0.05, 0.5]))
def test_revisited_map_is_the_area_by_trapezoids(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permutation(60).reshape(3, 20).astype(np.float64)
    positive = rng.random((3, 20)) < share
    positive[:, rng.integers(0, 20)] = True
    junk = (rng.random((3, 20)) < 0.4) & ~positive
    expected = []
    for query in range(3):
        order = [at for at in np.argsort(-scores[query]) if not junk[query, at]]
        hits = np.cumsum(positive[query][order])
        precision = np.concatenate([[1.0], hits / np.arange(1, len(hits) + 1)])
        expected.append(auc(np.concatenate([[0.0], hits / hits[-1]]), precision))
    found = mean_average_precision(*(torch.from_numpy(part) for part in (scores, positive, junk)))
    assert found.value == pytest.approx(100 * np.mean(expected))


@DRAWN
@given(SEEDS)
def test_recalls_and_pck_at_their_very_thresholds(seed: int) -> None:
    """Errors exactly at a threshold: a recall wants less than it (Probe3D), PCK at most it (SPair)."""
    rng = np.random.default_rng(seed)
    errors, valid = rng.choice([0.0, 1.0, 2.0, 5.0], (4, 6)), rng.random((4, 6)) < 0.7
    valid[0, 0] = True
    found = recall_at(torch.from_numpy(errors), torch.from_numpy(valid), (1.0, 2.0))
    for limit in (1.0, 2.0):
        assert found[limit].value == pytest.approx(100 * np.mean(errors[valid] < limit))
    sides, pairs = torch.full((24,), 10.0), torch.arange(24) // 6
    share = pck(torch.from_numpy(errors.flatten()), sides, pairs=pairs, alpha=0.1).value
    assert share == pytest.approx(100 * np.mean(errors.flatten() <= 1.0))


@DRAWN
@given(SEEDS, st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_thinning_is_that_of_scikit_image(seed: int, share: float) -> None:
    """Noise, nearly full and full masks, thick bars and rings."""
    rng = np.random.default_rng(seed)
    mask = rng.random((17, 23)) < share
    y, x = np.mgrid[:17, :23]
    mask |= np.abs(np.hypot(y - 8, x - rng.integers(5, 18)) - 5) < 1.6
    mask[rng.integers(0, 14) :][:3, 2:20] |= bool(rng.integers(0, 2))
    assert np.array_equal(thin(mask), skimage_thin(mask))
