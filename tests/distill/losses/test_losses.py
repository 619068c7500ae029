"""Losses against plain loops."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from distill.losses.losses import angular, cosine, hybrid, hybrid_map, mse, spatial_loss, summary_loss
from distill.losses.teacher_dropping import drop, keep, per_image
from distill.recipe_training import LossNode
from distill.targets.dispersion import DirectionStatistics, angles


def angle(a: Tensor, b: Tensor) -> float:
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def test_cosine_is_one_minus_cos_per_image() -> None:
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    assert float(cosine(a, b)) == pytest.approx(sum(1 - angle(x, y) for x, y in zip(a, b, strict=True)) / 3, abs=1e-6)
    assert float(cosine(a, 7 * a)) == pytest.approx(0, abs=1e-6)


def test_mse_is_the_mean_over_everything() -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    total = sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    assert float(mse(a, b)) == pytest.approx(total / a.numel(), rel=1e-5)


def test_hybrid_is_per_position_cosine_and_smooth_l1() -> None:
    a, b = torch.randn(2, 3, 2, 2), 3 * torch.randn(2, 3, 2, 2)
    vectors = [(a[n, :, y, x], b[n, :, y, x]) for n in range(2) for y in range(2) for x in range(2)]
    cosines = sum(1 - angle(x, y) for x, y in vectors) / len(vectors)
    gaps = (a - b).abs().flatten().tolist()
    smooth = sum(0.5 * d * d if d < 1 else d - 0.5 for d in gaps) / len(gaps)
    assert float(hybrid(a, b)) == pytest.approx(0.9 * cosines + 0.1 * smooth, rel=1e-5)


@pytest.mark.parametrize("loss", [mse, hybrid])
def test_two_halves_average_to_the_whole(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """What makes 2 processes x b equal 1 process x 2b."""
    a, b = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    halves = (loss(a[:2], b[:2]) + loss(a[2:], b[2:])) / 2
    assert torch.allclose(halves, loss(a, b), rtol=1e-6)


def degrees(a: Tensor, b: Tensor) -> float:
    """The angle between two vectors, radians, by plain arithmetic."""
    return math.acos(angle(a, b))


def test_angular_is_the_squared_angle_over_the_dispersion() -> None:
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    slow = sum(degrees(x, y) ** 2 for x, y in zip(a, b, strict=True)) / 4
    assert float(angular(a, b, 0.5)) == pytest.approx(slow / 0.5, rel=1e-4)


def test_angular_has_a_gradient_where_student_and_teacher_agree() -> None:
    a = torch.randn(2, 4, requires_grad=True)
    angular(a, a.detach(), 1.0).backward()
    assert torch.isfinite(a.grad).all()


def test_dispersion_is_the_mean_squared_angle_to_the_mean_direction() -> None:
    rows = torch.randn(20, 5) + 1
    statistics = DirectionStatistics()
    for batch in rows.split(7):
        statistics.update(batch)
    mean = rows.sum(0)
    slow = sum(degrees(row, mean) ** 2 for row in rows) / 20
    assert statistics.dispersion() == pytest.approx(slow, rel=1e-4)
    assert float(angles(rows, mean.expand_as(rows)).square().mean()) == pytest.approx(slow, rel=1e-4)
    assert float(angular(mean.expand_as(rows), rows, slow)) == pytest.approx(1, rel=1e-4)


def test_angular_without_a_spread_is_refused() -> None:
    node = LossNode(summary="angular")
    for dispersion, message in ((None, "no estimate"), (0.0, "all alike")):
        with pytest.raises(UserError, match=message):
            summary_loss(node, dispersion)


def test_hybrid_map_takes_one_cosine_per_image() -> None:
    a, b = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    cosines = sum(1 - angle(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)) / 3
    assert float(hybrid_map(a, b, cosine_share=1)) == pytest.approx(cosines, abs=1e-5)


def test_share_and_beta_come_from_the_recipe() -> None:
    a, b = torch.randn(2, 3, 2, 2), 4 * torch.randn(2, 3, 2, 2)
    made = spatial_loss(LossNode(spatial="hybrid", cosine_share=0.5, beta=2))
    steps = [abs(x - y) for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
    smooth = sum(d * d / 4 if d < 2 else d - 1 for d in steps) / len(steps)
    angles_only = float(hybrid(a, b, cosine_share=1))
    assert float(made(a, b)) == pytest.approx(0.5 * angles_only + 0.5 * smooth, rel=1e-4)
    assert float(spatial_loss(LossNode())(a, b)) == float(mse(a, b))


@pytest.mark.parametrize("loss", [mse, hybrid, hybrid_map])
def test_per_image_losses_average_to_the_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    each = per_image(loss, a, b)
    assert each.shape == (5,) and float(each.mean()) == pytest.approx(float(loss(a, b)), rel=1e-5)
    assert float(each[3]) == pytest.approx(float(loss(a[3:4], b[3:4])), rel=1e-5)


def test_the_hardest_teacher_is_never_dropped() -> None:
    losses = torch.rand(4, 200)
    torch.manual_seed(0)
    coefficients = keep(losses, 0.5)
    assert (coefficients.gather(0, losses.argmax(0, keepdim=True)) > 0).all()
    assert float(coefficients.sum()) == pytest.approx(losses.numel(), rel=1e-5)
    others = (coefficients > 0).sum() - 200
    assert 0.4 < float(others) / 600 < 0.6


def test_dropping_nothing_changes_nothing() -> None:
    terms = {"a": {"summary": torch.rand(3), "spatial": torch.rand(3)}, "b": {"spatial": torch.rand(3)}}
    dropped = drop(terms, 0.0)
    assert set(dropped) == {"a/summary", "a/spatial", "b/spatial"}
    for name, kinds in terms.items():
        for kind, values in kinds.items():
            assert float(dropped[f"{name}/{kind}"]) == pytest.approx(float(values.mean()))


def test_dropping_is_a_weighted_sum_over_teachers_and_images() -> None:
    terms = {"a": {"spatial": torch.tensor([1.0, 5.0])}, "b": {"spatial": torch.tensor([4.0, 2.0])}}
    torch.manual_seed(3)
    coefficients = keep(torch.tensor([[1.0, 5.0], [4.0, 2.0]]), 0.9)
    torch.manual_seed(3)
    total = float(sum(drop(terms, 0.9).values()))
    slow = sum(float(c * v) for c, v in zip(coefficients.flatten(), [1.0, 5.0, 4.0, 2.0], strict=True)) / 2
    assert total == pytest.approx(slow)
