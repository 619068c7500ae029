"""Homographies, masks and the loss: geometry against known answers, the loss against a loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.model.multiview import (
    ViewSettings,
    border_weights,
    consistency_loss,
    homography_between,
    inside_share,
    random_homographies,
    view_grid,
    view_images,
    warp,
)

STILL = ViewSettings(zoom=(1.0, 1.0), perspective=(0.0, 0.0), rotation=0.0, shift=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(dx: float, dy: float) -> torch.Tensor:
    """The view that shows what lies dx, dy (half sides) to the right and below."""
    return torch.tensor([[[1.0, 0.0, dx], [0.0, 1.0, dy], [0.0, 0.0, 1.0]]])


def test_four_points_determine_a_homography() -> None:
    source, target = torch.rand(4, 2, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
    matrix = homography_between(source, target)
    mapped = torch.cat([source, torch.ones(4, 1, dtype=torch.float64)], dim=1) @ matrix.T
    assert torch.allclose(mapped[:, :2] / mapped[:, 2:], target, atol=1e-8)


def test_no_motion_is_the_identity() -> None:
    assert torch.allclose(random_homographies(3, STILL, generator()), torch.eye(3).expand(3, 3, 3), atol=1e-6)
    maps = torch.randn(1, 4, 5, 7)
    assert torch.allclose(warp(maps, torch.eye(3)[None]), maps, atol=1e-5)


def test_a_shift_by_whole_cells_moves_whole_cells() -> None:
    maps = torch.randn(1, 2, 4, 10)
    seen = warp(maps, moved(2 * 3 / 10, 2 * 1 / 4))  # three columns, one row
    assert torch.allclose(seen[..., :3, :7], maps[..., 1:, 3:], atol=1e-5)


def test_rotation_is_one_in_pixels_on_any_aspect() -> None:
    settings = ViewSettings(zoom=(1.0, 1.0), perspective=(0.0, 0.0), rotation=30.0, shift=0.0)
    matrix = random_homographies(1, settings, generator(3), aspect=2.0)[0].double()
    pixels = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))  # half sides -> equal units
    rotation = (pixels @ matrix @ pixels.inverse())[:2, :2]
    assert torch.allclose(rotation @ rotation.T, torch.eye(2, dtype=torch.float64), atol=1e-6)
    assert 0 < abs(math.degrees(math.atan2(rotation[1, 0], rotation[0, 0]))) <= 30


def test_zoom_below_one_shows_a_part_of_the_image() -> None:
    settings = ViewSettings(zoom=(0.5, 0.5), perspective=(0.0, 0.0), rotation=0.0, shift=0.0)
    corners = view_grid(random_homographies(1, settings, generator()), 2, 2)
    assert torch.allclose(corners.abs(), torch.full((1, 2, 2, 2), 0.25), atol=1e-6)


def test_views_are_reproducible_and_differ() -> None:
    settings = ViewSettings()
    first, again = (random_homographies(4, settings, generator(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[1]) and not torch.allclose(
        first, random_homographies(4, settings, generator(6))
    )


def test_features_and_images_move_together() -> None:
    """A teacher that averages patches commutes with the warp, up to interpolation: no half-cell offset between them."""
    ramp = torch.stack(torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 96), indexing="ij"))
    images = torch.cat([ramp, ramp[:1]])[None]
    homographies = random_homographies(1, ViewSettings(), generator(1))
    target = F.avg_pool2d(view_images(images, homographies, (48, 48)), 8)
    sharp = F.avg_pool2d(images, 8)  # 12 x 12, twice the teacher's grid
    predicted = AverageDownsampler(2)(warp(sharp, homographies))
    inside = inside_share(homographies, (6, 6))[0, 0] == 1
    inside[0] = inside[-1] = inside[:, 0] = inside[:, -1] = False  # interpolation flattens the ramp at its end
    assert inside.sum() >= 9
    assert ((predicted - target).abs() * inside).max() < 2e-3


def test_inside_share_counts_area() -> None:
    assert inside_share(torch.eye(3)[None], (3, 5)).eq(1).all()
    share = inside_share(moved(2 / 4 * 1.5, 0.0), (2, 4))  # one and a half columns stick out on the right
    assert torch.allclose(share[0, 0, 0], torch.tensor([1.0, 1.0, 0.5, 0.0]))


def test_border_weights_have_mean_one_and_sit_on_the_seams() -> None:
    weights = border_weights((3, 4), 2, 2.0)[0, 0]
    assert weights.shape == (6, 8) and weights.mean().item() == pytest.approx(1.0)
    heavy = weights > weights.min()
    assert heavy[2:4].all() and heavy[:, 3:5].all() and not heavy[:2, :3].any() and not heavy[4:, 5:].any()
    assert (weights.max() / weights.min()).item() == pytest.approx(2.0)


def test_loss_is_the_masked_weighted_mean_of_a_loop() -> None:
    sharp, target = torch.randn(2, 3, 8, 12), torch.randn(2, 3, 4, 6)
    homographies = random_homographies(2, ViewSettings(shift=0.2), generator(2))
    weights = border_weights((4, 6), 2, 2.0)
    predicted = AverageDownsampler(2)(warp(sharp, homographies))
    mask = inside_share(homographies, (4, 6))
    spread = AverageDownsampler(2)(warp(weights.expand(2, -1, -1, -1), homographies))
    expected = 0.0
    for image in range(2):
        total = cells = 0.0
        for row in range(4):
            for column in range(6):
                difference = predicted[image, :, row, column] - target[image, :, row, column]
                valid, weight = mask[image, 0, row, column], spread[image, 0, row, column]
                total += float(valid * weight * (difference**2).mean())
                cells += float(valid)
        expected += total / max(cells, 12) / 2
    assert 0.5 < mask.mean() < 1
    loss = consistency_loss(sharp, target, homographies, AverageDownsampler(2), weights)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_few_valid_cells_do_not_get_the_whole_say() -> None:
    sharp, target = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 4, 4)
    loss = consistency_loss(sharp, target, moved(1.5, 0.0), AverageDownsampler(2), None)  # a quarter is inside
    assert float(loss) == pytest.approx(0.5)
