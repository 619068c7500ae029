"""How a student map and a target map of different grids meet (the recipe's `align`).

FeatSharp's paper does not say how its 81x81 targets meet a 64x64 student; `student` (targets resized to the student's
grid) is the plain reading, `min` is what NVIDIA's public trainer does, `max` what it says the original did.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.recipe import Align

Grid = tuple[int, int]


def common_grid(align: Align, student: Grid, teacher: Grid) -> Grid:
    """The grid on which the two are compared; min and max are taken for rows and columns on their own."""
    if align == "student":
        return student
    if align == "teacher":
        return teacher
    pick = min if align == "min" else max
    return pick(student[0], teacher[0]), pick(student[1], teacher[1])


def resize_map(features: Tensor, grid: Grid) -> Tensor:
    """[B, C, h, w] -> [B, C, *grid], bilinear; antialiased, so shrinking averages instead of skipping tokens."""
    if tuple(features.shape[-2:]) == tuple(grid):
        return features
    return F.interpolate(features, size=grid, mode="bilinear", align_corners=False, antialias=True)
