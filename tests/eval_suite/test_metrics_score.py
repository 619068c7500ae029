"""The standard errors are right, the units are the images, and processes add up to one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from two_processes import said_by_two

from common.errors import UserError
from eval_suite import processes
from eval_suite.metrics.score import clustered_mean, jackknife, mean_at
from eval_suite.metrics.segmentation import Segmentation


def test_error_of_a_mean_is_the_textbook_one() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(3.0, 2.0, 57))
    score = clustered_mean(values, None, scale=100.0)
    assert score.value == pytest.approx(100 * float(values.mean()))
    assert score.stderr == pytest.approx(100 * float(values.std()) / 57**0.5)
    assert score.n == 57


def test_error_of_a_pooled_rmse_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(5, 60, 150).astype(float)
    squares = pixels * rng.gamma(2.0, 0.5, 150)
    rows = torch.from_numpy(np.stack([squares, pixels], 1))
    _, stderr = jackknife(rows, mean_at(0, weight=1, root=True))
    outside = bootstrap(
        (squares, pixels), lambda s, p, axis: np.sqrt(s.sum(axis) / p.sum(axis)), paired=True, n_resamples=3000, rng=2
    )
    assert stderr == pytest.approx(outside.standard_error, rel=0.1)


def test_error_of_miou_agrees_with_the_bootstrap() -> None:
    target, pred = _maps(images=80)
    metric = _segmentation(target, pred)
    rows = metric.rows.numpy()
    rng = np.random.default_rng(3)
    draws = []
    for _ in range(800):
        hit, predicted, labelled = np.split(rows[rng.integers(0, len(rows), len(rows))].sum(0), 3)
        draws.append(100 * (hit / (predicted + labelled - hit)).mean())
    assert metric.scores()["miou"].stderr == pytest.approx(np.std(draws), rel=0.12)


def test_items_of_one_image_are_not_independent() -> None:
    """Ten copies of every item are no new knowledge: the error stays that of the images."""
    values = torch.tensor([0.0, 1, 1, 0, 1, 1, 1])
    once = clustered_mean(values, None)
    copied = clustered_mean(values.repeat_interleave(10), torch.arange(7).repeat_interleave(10))
    assert copied.stderr == pytest.approx(once.stderr)
    assert clustered_mean(values.repeat_interleave(10), None).stderr < 0.4 * once.stderr
    assert copied.n == 70


def test_one_image_has_no_error_and_none_is_refused() -> None:
    assert clustered_mean(torch.tensor([0.5]), None).stderr is None
    with pytest.raises(UserError, match="nothing to score"):
        clustered_mean(torch.tensor([]), None)
    with pytest.raises(UserError, match="no image has a valid label"):
        Segmentation(3).scores()


def _maps(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(0, 4, (images, 6, 5), generator=generator)
    wrong = torch.rand(images, 1, 1, generator=generator) > torch.rand(images, 6, 5, generator=generator)
    pred = torch.where(wrong, torch.randint(0, 4, target.shape, generator=generator), target)
    target[:, 0] = 255
    return target, pred


def _segmentation(target: torch.Tensor, pred: torch.Tensor) -> Segmentation:
    metric = Segmentation(4)
    for lines in torch.arange(len(target)).split(7):
        metric.update(pred[lines], target[lines])
    return metric


def _half() -> tuple[torch.Tensor, float]:
    target, pred = _maps(images=21)
    rank = processes.rank()
    metric = _segmentation(target[rank * 9 :][: 9 + 3 * rank], pred[rank * 9 :][: 9 + 3 * rank])
    metric.gather()
    return metric.rows, metric.scores()["miou"]


def test_two_processes_score_as_one(tmp_path: Path) -> None:
    whole = _segmentation(*_maps(images=21))
    for rows, score in said_by_two(_half, tmp_path):
        assert torch.equal(rows, whole.rows)
        assert score == whole.scores()["miou"]


def test_merging_is_the_same_as_seeing_everything() -> None:
    target, pred = _maps(images=20)
    first, second = _segmentation(target[:8], pred[:8]), _segmentation(target[8:], pred[8:])
    first.merge(second)
    assert first.scores() == _segmentation(target, pred).scores()
