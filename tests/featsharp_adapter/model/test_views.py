"""Tiles are cut and put back exactly, and the teacher looks once at exactly what it would look at piece by piece."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featsharp_adapter.model.views import stitch, teacher_views, tile_images
from teachers.contracts import resize_images


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_stitching_undoes_tiling(batch: int, n: int, height: int, width: int) -> None:
    images = torch.rand(batch, 3, n * height, n * width)
    tiles = tile_images(images, n)
    assert tiles.shape == (batch * n * n, 3, height, width)
    assert torch.equal(stitch(tiles, n), images)


def test_tiles_come_image_by_image_in_reading_order() -> None:
    images = torch.rand(2, 3, 6, 9)
    assert torch.equal(tile_images(images, 3)[9 + 3 * 1 + 2], images[1, :, 2:4, 6:9])
    with pytest.raises(ValueError, match="cannot be cut"):
        tile_images(images, 4)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_one_pass_gives_what_single_passes_give(teacher, chunk: int) -> None:
    images = torch.rand(2, 3, 100, 70)
    height, width = teacher.spec.native_size
    views = teacher_views(teacher, images, (2, 3), chunk=chunk)
    assert teacher.seen == 2 * (1 + 4 + 9)
    low = teacher(resize_images(images, (height, width)))
    assert torch.allclose(views.low, low.spatial, atol=1e-6)
    assert torch.allclose(views.summary, low.summary, atol=1e-6)
    large = resize_images(images, (3 * height, 3 * width))
    tile = teacher(large[1:, :, 2 * height :, width : 2 * width]).spatial[0]
    rows, columns = teacher.spec.native_grid
    assert torch.allclose(views.tiles[3][1, :, 2 * rows :, columns : 2 * columns], tile, atol=1e-6)
    assert views.tiles[2].shape == (2, 8, 2 * rows, 2 * columns)


def test_no_grids_no_tiles(teacher) -> None:
    views = teacher_views(teacher, torch.rand(1, 3, 32, 24), ())
    assert views.tiles == {} and teacher.seen == 1
