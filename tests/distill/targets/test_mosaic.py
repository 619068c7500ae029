"""Mosaics: images lie where they should, unscaled, and each gets its own part of the teacher's map back."""

import pytest
import torch
import torch.nn.functional as F
from small_run import small_vit
from torch import Tensor

from common.errors import UserError
from distill.targets.mosaic import cut_back, lay_out
from distill.targets.teacher_views import BatchViews, TeacherPool
from teachers.contracts import BackboneSpec, resize_images


def spec_of(height: int, width: int, patch: int = 4) -> BackboneSpec:
    """A teacher of one size, with a mean colour of its own."""
    mean = (0.1, 0.2, 0.3)
    return BackboneSpec("sam", "timm", patch, 3, None, (height, width), False, mean, (1.0,) * 3, "", "", "")


def mean_of_patches(canvases: Tensor, patch: int) -> Tensor:
    """A teacher that says of every patch its mean colour, and knows nothing of its neighbours."""
    return F.avg_pool2d(canvases, patch)


@pytest.mark.parametrize(
    ("native", "grid", "cells", "count"),
    [((32, 32), (3, 3), (2, 2), 6), ((32, 48), (3, 5), (2, 2), 4), ((32, 32), (2, 2), (4, 4), 17)],
)
def test_every_image_gets_its_own_map_back(
    native: tuple[int, int], grid: tuple[int, int], cells: tuple[int, int], count: int
) -> None:
    """With a teacher that has no context, a mosaic's parts are what it says of the images alone."""
    images = torch.rand(count, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    canvases = lay_out(images, spec_of(*native), grid)
    assert canvases.shape == (-(-count // (cells[0] * cells[1])), 3, *native)
    alone = mean_of_patches(resize_images(images, (grid[0] * 4, grid[1] * 4)), 4)
    assert torch.equal(cut_back(mean_of_patches(canvases, 4), count, grid), alone)


def test_images_lie_in_reading_order_with_the_mean_colour_between_them() -> None:
    """RADIO's 432 px on 1024 at an eighth: 2 x 2 cells of 16 tokens, an image of 13 and 3 left over."""
    images = torch.arange(1.0, 4.0).view(3, 1, 1, 1).expand(3, 3, 13, 13)
    (canvas,) = lay_out(images, spec_of(32, 32, patch=1), (13, 13))
    assert canvas[0, 0, 0] == 1 and canvas[0, 0, 16] == 2 and canvas[0, 16, 0] == 3
    blank = torch.tensor([0.1, 0.2, 0.3])
    for row, column in ((0, 13), (13, 0), (15, 31), (16, 16), (31, 31)):
        assert torch.equal(canvas[:, row, column], blank)
    assert int((canvas[0] == 0.1).sum()) == 32 * 32 - 3 * 13 * 13


def test_one_image_that_fills_the_canvas_is_the_plain_view() -> None:
    teacher = TeacherPool().get(small_vit(32, 12, summary="none"), None, 3)
    seen = BatchViews(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    mosaic = seen.mosaic(teacher, (4, 4))
    assert mosaic.summary is None and torch.equal(mosaic.low, seen.views(teacher, ()).low)
    quarters = seen.mosaic(teacher, (2, 2)).low
    assert quarters.shape == (2, 12, 2, 2)
    with pytest.raises(UserError, match="5x5 tokens does not fit on its canvas of 4x4"):
        seen.mosaic(teacher, (5, 5))


def test_a_real_teacher_sees_the_canvas() -> None:
    """The parts are those of one forward pass over the canvas, laid out by hand."""
    teacher = TeacherPool().get(small_vit(32, 12, summary="none"), None, 3)
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    rows = [torch.cat([images[0], images[1]], 2), torch.cat([images[2], images[3]], 2)]
    with torch.no_grad():
        whole: Tensor = teacher(torch.cat(rows, 1)[None]).spatial[0]
    parts = BatchViews(images).mosaic(teacher, (2, 2)).low
    assert torch.equal(parts[1], whole[:, :2, 2:]) and torch.equal(parts[2], whole[:, 2:, :2])
