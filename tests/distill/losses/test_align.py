"""How grids meet."""

import pytest
import torch

from distill.losses.align import common_grid, resize_map


@pytest.mark.parametrize(
    ("align", "grid"), [("student", (4, 9)), ("teacher", (6, 5)), ("min", (4, 5)), ("max", (6, 9))]
)
def test_common_grid_is_taken_per_axis(align: str, grid: tuple[int, int]) -> None:
    assert common_grid(align, (4, 9), (6, 5)) == grid


def test_same_grid_changes_nothing() -> None:
    features = torch.randn(1, 2, 3, 4)
    assert resize_map(features, (3, 4)) is features


def test_shrinking_averages_instead_of_skipping() -> None:
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)[None, None]
    assert resize_map(checker, (4, 4)).abs().max() < 0.01


def test_enlarging_keeps_constants_and_orientation() -> None:
    ramp = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 1, 4, 3)
    large = resize_map(ramp, (8, 6))
    assert (large.diff(dim=2) >= 0).all() and torch.allclose(large.diff(dim=3), torch.zeros(()))
    assert torch.allclose(resize_map(torch.full((1, 1, 3, 3), 2.5), (7, 5)), torch.tensor(2.5))
