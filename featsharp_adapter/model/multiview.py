"""Multi-view consistency (FeatSharp, arXiv 2502.16025, section 3.3): the objective that needs no sharp ground truth.

A view is the image through a random homography. The teacher's features of the view must be what comes out when the
sharpened map goes through the same homography and is brought down to the teacher's grid.

Coordinates: x right, y down, -1 to 1 over the whole image (edges, not pixel centres: align_corners=False), so that one
matrix holds for pixels, tokens and sharpened tokens alike. A homography [3, 3] maps points of the view to the image.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from featsharp_adapter.model.uncertainty import discount
from teachers.contracts import resize_images


@dataclass(frozen=True)
class ViewSettings:
    """How far a view may differ from the image; the defaults are the paper's.

    zoom: range of the side of the view in sides of the image, log-uniform; below 1 the view shows a part, larger.
    perspective: range of the standard deviation of the corners' random shift, in sides, drawn uniformly per view.
    rotation: largest angle in degrees. shift: largest shift in sides of the image, uniform.
    hflip: probability of a mirrored view; listed in the paper's table 11, and 0 in its code.
    """

    zoom: tuple[float, float] = (0.95, 1 / 0.95)
    perspective: tuple[float, float] = (0.01, 0.05)
    rotation: float = 5.0
    shift: float = 0.1
    hflip: float = 0.0


def random_homographies(
    count: int, settings: ViewSettings, generator: torch.Generator, *, aspect: float = 1.0
) -> Tensor:
    """[count, 3, 3], view -> image. aspect: width / height of the image in pixels, so that a rotation is one."""
    matrices = [_random_homography(settings, generator, aspect) for _ in range(count)]
    return torch.stack(matrices).float()


def _random_homography(settings: ViewSettings, generator: torch.Generator, aspect: float) -> Tensor:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    zoom = math.exp(uniform(math.log(settings.zoom[0]), math.log(settings.zoom[1]), 1).item())
    angle = math.radians(uniform(-settings.rotation, settings.rotation, 1).item())
    sigma = uniform(*settings.perspective, 1)
    # Shifts are in sides; a side is 2 long in these coordinates.
    corners = (2 * sigma * torch.randn(4, 2, generator=generator, dtype=torch.float64)).clamp(-0.9, 0.9)
    shift = uniform(-2 * settings.shift, 2 * settings.shift, 2)
    cos, sin = math.cos(angle), math.sin(angle)
    similarity = torch.tensor(
        [
            [zoom * cos, -zoom * sin / aspect, shift[0]],
            [zoom * sin * aspect, zoom * cos, shift[1]],
            [0.0, 0.0, 1.0],
        ],
        dtype=torch.float64,
    )
    square = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    matrix = similarity @ homography_between(square, square + corners)
    # Drawn only where it can happen, so that seeds give the views they gave before there was a mirror.
    if settings.hflip > 0 and uniform(0, 1, 1).item() < settings.hflip:
        matrix = matrix @ torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    return matrix


def homography_between(source: Tensor, target: Tensor) -> Tensor:
    """The [3, 3] that maps four points [4, 2] to four points [4, 2] (direct linear transformation, last entry 1)."""
    x, y = source.unbind(1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows_u = torch.stack([x, y, one, zero, zero, zero, -x * target[:, 0], -y * target[:, 0]], dim=1)
    rows_v = torch.stack([zero, zero, zero, x, y, one, -x * target[:, 1], -y * target[:, 1]], dim=1)
    solution = torch.linalg.solve(torch.cat([rows_u, rows_v]), torch.cat([target[:, 0], target[:, 1]]))
    return torch.cat([solution, solution.new_ones(1)]).view(3, 3)


def view_grid(homographies: Tensor, height: int, width: int) -> Tensor:
    """[B, 3, 3] -> [B, height, width, 2]: where in the image each cell centre of the view lies."""
    y = (2 * torch.arange(height, device=homographies.device) + 1) / height - 1
    x = (2 * torch.arange(width, device=homographies.device) + 1) / width - 1
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).to(homographies.dtype)
    mapped = torch.einsum("bij,hwj->bhwi", homographies, points)
    return mapped[..., :2] / mapped[..., 2:]


def warp(maps: Tensor, homographies: Tensor, *, mode: str = "bilinear") -> Tensor:
    """[B, C, H, W] seen through [B, 3, 3] -> [B, C, H, W]; what lies outside is reflected, and masked elsewhere."""
    grid = view_grid(homographies, *maps.shape[-2:]).to(maps.dtype)
    return F.grid_sample(maps, grid, mode=mode, padding_mode="reflection", align_corners=False)


def view_images(images: Tensor, homographies: Tensor, size: tuple[int, int], *, antialias: bool = True) -> Tensor:
    """Images [B, 3, H, W] through [B, 3, 3], at `size`: bicubic at full resolution, then antialiased down."""
    return resize_images(warp(images, homographies, mode="bicubic").clamp(0, 1), size, antialias=antialias)


def inside_share(homographies: Tensor, grid: tuple[int, int], samples: int = 8) -> Tensor:
    """[B, 3, 3] -> [B, 1, g, g']: the share of each cell of the view inside the image, by samples^2 points."""
    points = view_grid(homographies, grid[0] * samples, grid[1] * samples)
    inside = (points.abs().amax(dim=-1) <= 1).float()
    return F.avg_pool2d(inside[:, None], samples)


def border_weights(grid: tuple[int, int], n: int, weight: float) -> Tensor:
    """[1, 1, n*g, n*g'] of mean 1: `weight` on the two cells at each border between tiles, where stitching shows."""
    sides = []
    for size in grid:
        side = torch.zeros(n * size, dtype=torch.bool)
        for border in range(size, n * size, size):
            side[border - 1 : border + 1] = True
        sides.append(side)
    weights = torch.where(sides[0][:, None] | sides[1][None, :], weight, 1.0)
    return (weights / weights.mean())[None, None]


def masked_error(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over channels of the squared error, times mask [B, 1, g, g'] -> [B, g, g']."""
    return (predicted - target).square().mean(dim=1) * mask[:, 0]


def consistency_loss(
    sharp: Tensor,
    target: Tensor,
    homographies: Tensor,
    downsampler: torch.nn.Module,
    weights: Tensor | None,
    uncertainty: Tensor | None = None,
) -> Tensor:
    """One view of each image: sharp [B, C, k*g, k*g'], target [B, C, g, g'], both in PHI-S space -> scalar.

    weights: of places of the sharpened map, [1, 1, k*g, k*g']. Where less than half of an image's cells are valid, the
    sum is divided by that half, so that a few cells do not get a whole view's say (as the published code does).
    uncertainty: u of `uncertainty.py` for every place of the sharpened map, [B, 1, k*g, k*g'].
    """
    grid = (target.shape[-2], target.shape[-1])
    mask = inside_share(homographies, grid)
    importance = mask
    if weights is not None:
        spread = warp(weights.expand(len(sharp), -1, -1, -1), homographies)
        importance = mask * F.adaptive_avg_pool2d(spread, grid)
    penalty = torch.zeros((), device=sharp.device)
    if uncertainty is not None:
        importance = importance * F.adaptive_avg_pool2d(warp(discount(uncertainty), homographies), grid)
        log_variance = F.adaptive_avg_pool2d(warp(uncertainty, homographies), grid) / 2
        penalty = ((log_variance * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp(min=1)).mean()
    error = masked_error(downsampler(warp(sharp, homographies)), target, importance)
    cells = mask.flatten(1).sum(dim=1).clamp(min=grid[0] * grid[1] / 2)
    return (error.flatten(1).sum(dim=1) / cells).mean() + penalty
