"""Where a point of one RGB-D view lies in another: back-projection, rigid motion, projection, and is it seen there?"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval_suite.readers.contracts import PairGeometry
from eval_suite.readers.fitting import Fit


def correspondences(
    depth: tuple[np.ndarray, np.ndarray],
    intrinsics: tuple[np.ndarray, np.ndarray],
    poses: tuple[np.ndarray, np.ndarray],
    *,
    count: int,
    seed: int,
    tolerance: float = 0.05,
) -> tuple[Tensor, Tensor, Tensor]:
    """points and targets float32 [count, 2] = (x, y) at pixel centres +0.5, valid bool [count].

    Depth maps [H, W] are metres along the optical axis, 0 where unknown; intrinsics 3x3; poses 4x4 camera-to-world. A
    point is valid if it falls inside the second view and the depth measured there agrees within `tolerance` of it, so
    neither hidden points nor unknown depth count. Points are drawn with the seed out of those that are valid.
    """
    rows, columns = np.nonzero(depth[0] > 0)
    world = (
        lift(columns + 0.5, rows + 0.5, depth[0][rows, columns], intrinsics[0]) @ poses[0][:3, :3].T + poses[0][:3, 3]
    )
    local = (world - poses[1][:3, 3]) @ poses[1][:3, :3]  # the inverse of a rotation is its transpose
    targets, ahead = project(local, intrinsics[1])
    seen = ahead > 1e-6
    height, width = depth[1].shape
    seen &= (targets >= 0).all(1) & (targets[:, 0] < width) & (targets[:, 1] < height)
    at = np.where(seen[:, None], targets, 0.0).astype(np.int64)
    measured = depth[1][at[:, 1], at[:, 0]]
    seen &= (measured > 0) & (np.abs(measured - ahead) <= tolerance * np.maximum(ahead, 1e-6))
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(seen))[:count]
    missing = count - len(chosen)
    points = np.stack([columns[chosen] + 0.5, rows[chosen] + 0.5], 1)
    return (
        torch.from_numpy(np.pad(points, ((0, missing), (0, 0)))).float(),
        torch.from_numpy(np.pad(targets[chosen], ((0, missing), (0, 0)))).float(),
        torch.arange(count) < len(chosen),
    )


@dataclass(frozen=True)
class DepthView:
    """One view: depth [H, W] in metres, intrinsics in its pixels, camera-to-world pose, and the box that is read."""

    depth: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray
    crop: tuple[float, float, float, float] | None = None


def pair_geometry(first: DepthView, second: DepthView, fit: Fit, cells: tuple[int, int]) -> PairGeometry:
    """Both views on a grid of cells, and how the first camera's points come to the second."""
    motion = np.linalg.inv(second.pose) @ first.pose
    x0, y0, x1, y1 = _box(second)
    affine = fit.affine(int(y1 - y0), int(x1 - x0))
    shown = np.array([[affine.scale_x, 0, affine.shift_x], [0, affine.scale_y, affine.shift_y], [0, 0, 1]])
    shown = shown @ np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1]]) @ second.intrinsics
    return PairGeometry(
        cloud(first, fit, cells),
        cloud(second, fit, cells),
        torch.from_numpy(motion).float(),
        torch.from_numpy(shown).float(),
    )


def cloud(view: DepthView, fit: Fit, cells: tuple[int, int]) -> Tensor:
    """Camera points float32 [h, w, 3] at the centres of cells of the fitted view, picked as Probe3D picks (nearest)."""
    x0, y0, x1, y1 = (int(side) for side in _box(view))
    rows, columns = np.mgrid[y0:y1, x0:x1] + 0.5
    grid = np.stack([columns, rows, view.depth[y0:y1, x0:x1]], -1)
    picked = Fit(cells[0], cells[1], fit.mode).labels(grid, 0).reshape(-1, 3)
    points = lift(picked[:, 0], picked[:, 1], picked[:, 2], view.intrinsics)
    return torch.from_numpy(points).float().unflatten(0, cells)


def _box(view: DepthView) -> tuple[float, float, float, float]:
    return view.crop or (0.0, 0.0, float(view.depth.shape[1]), float(view.depth.shape[0]))


def lift(x: np.ndarray, y: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Pixels and metres along the axis -> points [n, 3] in camera coordinates (x right, y down, z ahead)."""
    focal, centre = intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2]
    return np.stack([(x - centre[0]) / focal[0] * depth, (y - centre[1]) / focal[1] * depth, depth], 1)


def project(points: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Camera points [n, 3] -> pixels [n, 2] and depth [n]; pixels are 0 where the depth is not ahead."""
    ahead = points[:, 2]
    safe = np.where(ahead > 1e-6, ahead, 1.0)
    pixels = points[:, :2] / safe[:, None] * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2]
    return np.where((ahead > 1e-6)[:, None], pixels, 0.0), ahead
