"""Nearest neighbours between frozen maps: where does a point of one image lie in another?"""

import torch
import torch.nn.functional as F
from torch import Tensor

from eval_suite.maps import resize_map


def sample_points(spatial: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Unit features [B, K, C] of maps [B, C, h, w] at points [B, K, 2] = (x, y) in pixels of images of `size`."""
    scale = points.new_tensor([size[1], size[0]])
    grid = (2 * points / scale - 1)[:, :, None]
    values = F.grid_sample(spatial, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.normalize(values[..., 0].transpose(1, 2), dim=-1)


def best_matches(queries: Tensor, spatial: Tensor, cells: int, size: tuple[int, int]) -> Tensor:
    """Unit queries [B, K, C] -> the most similar place [B, K, 2] = (x, y) in images of `size`.

    The map [B, C, h, w] is bilinearly resized to `cells` x `cells` places, as Probe3D resizes to a fixed grid, so
    backbones with different token grids are judged on the same one. Of equally similar places (enlarging copies the
    outermost cells of a map) the first in reading order is taken.
    """
    places = F.normalize(resize_map(spatial, (cells, cells)).flatten(2), dim=1)
    best = torch.bmm(queries, places).argmax(-1)
    step = queries.new_tensor([size[1] / cells, size[0] / cells])
    return (torch.stack([best % cells, best // cells], -1) + 0.5) * step


def match_pairs(first: Tensor, second: Tensor, points: Tensor, cells: int, size: tuple[int, int]) -> Tensor:
    """Maps [N, C, h, w] of two views, points [N, K, 2] in the first -> matched points [N, K, 2] in the second."""
    out = []
    for rows in torch.arange(len(points)).split(16):
        queries = sample_points(first[rows], points[rows], size)
        out.append(best_matches(queries, second[rows], cells, size))
    return torch.cat(out)


def match_in_boxes(queries: Tensor, spatial: Tensor, boxes: Tensor, cells: int, size: tuple[int, int]) -> Tensor:
    """Unit queries [B, K, C] -> the most similar of `cells` x `cells` places in each box: [B, K, 2] = (x, y).

    boxes [B, 4] = (x0, y0, x1, y1) in images of `size`; maps [B, C, h, w] are read bilinearly.
    """
    steps = (torch.arange(cells) + 0.5) / cells
    share = torch.stack([steps.repeat(cells), steps.repeat_interleave(cells)], -1).to(boxes)
    places = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
    best = torch.bmm(queries, sample_points(spatial, places, size).transpose(1, 2)).argmax(-1)
    return places.gather(1, best[..., None].expand(-1, -1, 2))
