"""Depth against torchmetrics and scipy, on the facts every implementation must agree on."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torchmetrics import MeanSquaredError
from torchmetrics.regression import MeanAbsolutePercentageError

from common.errors import UserError
from eval_suite.metrics.depth import Depth, align_scale_shift


def depths(seed: int = 0, images: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(images, 8, 9, generator=generator) * 9 + 0.5
    pred = target * (0.6 + 0.9 * torch.rand(target.shape, generator=generator))
    target[torch.rand(target.shape, generator=generator) < 0.15] = 0.0
    return pred, target


def scored(pred: torch.Tensor, target: torch.Tensor, **options: object) -> dict[str, float]:
    metric = Depth(**options)  # type: ignore[arg-type]
    metric.update(pred, target)
    return {name: score.value for name, score in metric.scores().items()}


def test_perfect_and_scaled_predictions() -> None:
    _, target = depths()
    exact = scored(target, target)
    assert (exact["d1"], exact["rmse"], exact["abs_rel"]) == (100.0, 0.0, 0.0)
    scaled = scored(1.3 * target, target)
    assert (scaled["d1"], scaled["d2"]) == (0.0, 100.0)
    aligned = scored(1.3 * target + 0.4, target, align="scale_shift")
    assert aligned["d1"] == 100.0
    assert aligned["rmse"] == pytest.approx(0.0, abs=1e-6)


def test_pooled_errors_equal_torchmetrics() -> None:
    pred, target = depths()
    valid = target > 0
    scores = scored(pred, target, pool="pixel", max_depth=80.0)
    assert scores["rmse"] == pytest.approx(float(MeanSquaredError(squared=False)(pred[valid], target[valid])), rel=1e-5)
    outside = MeanAbsolutePercentageError()(pred[valid], target[valid])
    assert scores["abs_rel"] == pytest.approx(float(outside), rel=1e-5)


def test_per_image_values_are_averaged_over_images() -> None:
    pred, target = depths()
    target[0, :7] = 0  # few valid pixels: pooled and per-image values must differ
    per_image = []
    for p, t in zip(pred.numpy(), target.numpy(), strict=True):
        p, t = p[t > 0], t[t > 0]
        factor = np.maximum(p / t, t / p)
        per_image.append(
            [(factor < 1.25).mean() * 100, (factor < 1.25**2).mean() * 100, np.sqrt(np.mean((p - t) ** 2))]
        )
    scores = scored(pred, target)
    assert [scores["d1"], scores["d2"], scores["rmse"]] == pytest.approx(np.mean(per_image, 0), rel=1e-5)
    assert scores["rmse"] != pytest.approx(scored(pred, target, pool="pixel")["rmse"], rel=1e-3)


def test_alignment_equals_scipy_least_squares() -> None:
    pred, target = depths(seed=3, images=3)
    pred, target = pred.double().flatten(1), target.double().flatten(1)
    aligned = align_scale_shift(pred, target, target > 0)
    for image in range(3):
        valid = (target[image] > 0).numpy()
        columns = np.stack([pred[image].numpy()[valid], np.ones(valid.sum())], 1)
        scale, shift = lsq_linear(columns, target[image].numpy()[valid]).x
        np.testing.assert_allclose(aligned[image].numpy(), scale * pred[image].numpy() + shift, rtol=1e-7)


def test_a_flat_prediction_aligns_to_the_mean_depth() -> None:
    _, target = depths()
    flat = torch.full_like(target, 2.0)
    mean = scored(flat, target, align="scale_shift")["rmse"]
    expected = [float(image[image > 0].std(correction=0)) for image in target]
    assert mean == pytest.approx(np.mean(expected), rel=1e-5)


def test_what_does_not_count() -> None:
    """Beyond the range, invalid (0, nan): no influence. A negative prediction is wrong, not a lucky ratio."""
    pred, target = torch.tensor([[[1.0, 9.0, 9.0, 9.0]]]), torch.tensor([[[1.0, 0.0, 12.0, float("nan")]]])
    assert scored(pred, target)["d1"] == 100.0
    assert scored(-pred, target)["d3"] == 0.0


def test_images_without_depth_are_left_out_and_none_is_refused() -> None:
    pred, target = depths()
    target[2] = 0
    metric = Depth()
    metric.update(pred, target)
    assert metric.scores()["d1"].n == 5
    with pytest.raises(UserError, match="no image has a valid label"):
        scored(pred, torch.zeros_like(pred))


def test_nan_predictions_are_an_error() -> None:
    pred, target = depths()
    pred[:] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        scored(pred, target)
