"""Angles between normals against scipy and torchmetrics, exact at the ends of the range."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torchmetrics.functional import cosine_similarity

from common.errors import UserError
from eval_suite.metrics.normals import Normals, angular_error


def normals(seed: int, images: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(images, 3, 6, 7, generator=generator), dim=1)


def scored(pred: torch.Tensor, target: torch.Tensor, **options: str) -> dict[str, float]:
    metric = Normals(**options)  # type: ignore[arg-type]
    metric.update(pred, target)
    return {name: score.value for name, score in metric.scores().items()}


def test_a_rotation_by_twenty_degrees() -> None:
    target = torch.zeros(2, 3, 4, 4)
    target[:, 2] = 1.0
    turn = torch.from_numpy(Rotation.from_euler("x", 20, degrees=True).as_matrix()).float()
    scores = scored(torch.einsum("ij,bjhw->bihw", turn, target), target)
    assert scores["mean"] == pytest.approx(20.0, abs=1e-4)
    assert scores["rmse"] == pytest.approx(20.0, abs=1e-4)
    assert (scores["recall_11.25"], scores["recall_22.5"], scores["recall_30"]) == (0.0, 100.0, 100.0)


def test_angles_equal_the_arc_cosine_of_torchmetrics() -> None:
    pred, target = 3.0 * normals(0), normals(1)
    flat = [maps.movedim(1, -1).reshape(-1, 3) for maps in (pred, target)]
    cosine = cosine_similarity(flat[0], flat[1], reduction="none").clamp(-1, 1)
    outside = torch.rad2deg(torch.acos(cosine))
    torch.testing.assert_close(angular_error(pred, target).flatten().float(), outside, atol=2e-2, rtol=0)


def test_tiny_and_opposite_angles_are_exact() -> None:
    target = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    for angle in (0.0, 1e-5, 1e-3, 179.999, 180.0):
        radians = np.deg2rad(angle)
        pred = torch.tensor([np.sin(radians), 0.0, np.cos(radians)]).view(1, 3, 1, 1)
        assert float(angular_error(pred, target.double())) == pytest.approx(angle, abs=1e-9)


def test_pooling() -> None:
    """One image with a single valid pixel weighs as much as any image, or as one pixel."""
    target = normals(2, images=2)
    target[1, :, :, :] = 0
    target[1, :, 0, 0] = torch.tensor([0.0, 0.0, 1.0])
    pred = target.clone()
    pred[1, :, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    assert scored(pred, target, pool="image")["mean"] == pytest.approx(45.0, abs=1e-3)
    assert scored(pred, target, pool="image")["rmse"] == pytest.approx(45.0, abs=1e-3)
    assert scored(pred, target, pool="pixel")["mean"] == pytest.approx(90 / 43, abs=1e-3)
    assert scored(pred, target, pool="pixel")["rmse"] == pytest.approx(90 / 43**0.5, abs=1e-3)


def test_a_prediction_of_length_zero_is_wrong_and_nan_is_an_error() -> None:
    target = normals(3)
    assert scored(torch.zeros_like(target), target)["mean"] == pytest.approx(90.0)
    with pytest.raises(UserError, match="not finite"):
        scored(torch.full_like(target, float("nan")), target)
