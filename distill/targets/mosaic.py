"""Several small images on one canvas, for a teacher that only works at high resolution (RADIO's SAM).

As in RADIOv2.5 (arXiv 2412.07679): images of 432 px lie 2 x 2 on SAM's 1024 px, in cells of 512 px, images of 256 px
4 x 4; the teacher's map is cut back into them. Nothing is scaled: an image has as many tokens on the canvas as the
student sees of it. Where in its cell an image lies is not published; ours is at the top left, and what is left over is
the teacher's mean colour, as in SAM's own padding. Neighbours on a canvas see each other, as the teacher does what it
does; processes whose shares are multiples of a canvas's images fill the same canvases as one process would.
"""

from torch import Tensor

from distill.schedule import Grid, mosaic_cells
from teachers.contracts import BackboneSpec, resize_images


def lay_out(images: Tensor, spec: BackboneSpec, grid: Grid) -> Tensor:
    """[B, 3, H, W] -> canvases [ceil(B / (rows * columns)), 3, *native_size], in reading order.

    grid: tokens of an image on the canvas; the images are resized to exactly that many patches.
    """
    rows, columns = mosaic_cells(spec, grid)
    patch, per_canvas = spec.patch_size, rows * columns
    height, width = (cell * patch for cell in _cell(spec.native_grid, (rows, columns)))
    small = resize_images(images, (grid[0] * patch, grid[1] * patch))
    blank = small.new_tensor(spec.mean).view(1, -1, 1, 1)
    count = -(-len(small) // per_canvas)
    cells = blank.expand(count * per_canvas, -1, height, width).clone()
    cells[: len(small), :, : small.shape[2], : small.shape[3]] = small
    strips = cells.unflatten(0, (count, rows, columns)).permute(0, 3, 1, 4, 2, 5)
    canvases = blank.expand(count, -1, *spec.native_size).clone()
    canvases[:, :, : rows * height, : columns * width] = strips.flatten(4, 5).flatten(2, 3)
    return canvases


def cut_back(maps: Tensor, count: int, grid: Grid) -> Tensor:
    """A teacher's maps [M, C, G, G'] of the canvases -> [count, C, *grid], the images' own parts."""
    cells = (maps.shape[2] // grid[0], maps.shape[3] // grid[1])
    height, width = _cell((maps.shape[2], maps.shape[3]), cells)
    used = maps[:, :, : cells[0] * height, : cells[1] * width]
    parts = used.unflatten(3, (cells[1], width)).unflatten(2, (cells[0], height)).permute(0, 2, 4, 1, 3, 5)
    return parts.flatten(0, 2)[:count, :, : grid[0], : grid[1]].contiguous()


def _cell(whole: Grid, cells: Grid) -> Grid:
    return whole[0] // cells[0], whole[1] // cells[1]
