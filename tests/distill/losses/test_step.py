"""The step: the report holds what was summed, weights are applied once, grids meet where the recipe says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_recipe
from torch import Tensor

from common.recipes import apply_override, validate
from distill.losses.step import DistillStep
from distill.recipe import Recipe
from teachers.contracts import Features


def answers(grid: int, seed: int) -> Mapping[str, Features]:
    """Features of the two teachers at some grid."""
    torch.manual_seed(seed)
    coarse = Features(torch.randn(2, 24), torch.randn(2, 24, grid, grid, requires_grad=True))
    return {"coarse": coarse, "fine": Features(None, torch.randn(2, 12, 4, 4))}


def step(*overrides: str, teacher_grid: int = 4, dispersions: dict[str, float] | None = None) -> DistillStep:
    data: dict[str, Any] = small_recipe(Path("unused"))
    for override in overrides:
        apply_override(data, override)
    recipe = validate(Recipe, data, "test")
    return DistillStep(lambda _: answers(4, 0), lambda _: answers(teacher_grid, 1), recipe, dispersions)


IMAGES: Tensor = torch.zeros(2, 3, 32, 32)


def test_report_sums_to_the_loss() -> None:
    result = step("teachers.coarse.weight.spatial=0.3")(IMAGES)
    assert set(result.report) == {"coarse/summary", "coarse/spatial", "fine/spatial"}
    assert torch.equal(torch.stack(list(result.report.values())).sum(), result.loss.detach())
    assert result.loss.requires_grad and not any(term.requires_grad for term in result.report.values())


def test_weights_scale_their_own_term_only() -> None:
    one, three = step()(IMAGES).report, step("teachers.coarse.weight.summary=3")(IMAGES).report
    assert torch.allclose(three["coarse/summary"], 3 * one["coarse/summary"])
    assert torch.equal(three["coarse/spatial"], one["coarse/spatial"])


def test_a_weight_of_zero_leaves_the_loss_out() -> None:
    assert "coarse/summary" not in step("teachers.coarse.weight.summary=0")(IMAGES).report


@pytest.mark.parametrize("loss", ["mse", "hybrid"])
def test_perfect_answers_cost_nothing(loss: str) -> None:
    made = step(f"loss.spatial={loss}")
    made.targets = made.student
    assert float(made(IMAGES).loss.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("align", "same_as"), [("student", "min"), ("teacher", "max")])
def test_alignment_with_a_finer_teacher(align: str, same_as: str) -> None:
    """A teacher of 6x6 against a student of 4x4: student = min and teacher = max, and the two differ."""
    losses = {
        name: float(step(f"align={name}", teacher_grid=6)(IMAGES).loss.detach())
        for name in ("student", "teacher", "min", "max")
    }
    assert losses[align] == losses[same_as]
    assert losses["student"] != losses["teacher"]


def test_dropping_keeps_the_report_honest() -> None:
    """Two teachers; with dropping the report still sums to the loss, and its gradient is still there."""
    made = step("loss.drop_teachers=0.5")
    result = made(IMAGES)
    assert set(result.report) == {"coarse/summary", "coarse/spatial", "fine/spatial"}
    assert torch.equal(torch.stack(list(result.report.values())).sum(), result.loss.detach())
    assert result.loss.requires_grad


def test_the_angular_loss_is_balanced_by_each_teachers_own_dispersion() -> None:
    recipe = step("loss.summary=angular", "teachers.fine.weight.summary=0", dispersions={"coarse": 0.25})
    double = step("loss.summary=angular", "teachers.fine.weight.summary=0", dispersions={"coarse": 0.5})
    one, half = recipe(IMAGES).report["coarse/summary"], double(IMAGES).report["coarse/summary"]
    assert torch.allclose(one, 2 * half)
