"""What stands at every pixel: the point in space and its normal, in flat arrays [3, N] over the picture."""

from dataclasses import dataclass

import numpy as np

from imagery.scenes.surfaces import BOX, FRUSTUM, SPHERE, SurfaceTable
from imagery.scenes.visibility import Hits

_BACKGROUND_NORMALS = np.array(
    [[0, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, -1]], dtype=np.float64
)
_ON_DISC = 1e-7  # metres; how exactly a hit on a top or bottom disc reproduces its height in float64


@dataclass(frozen=True)
class Surfels:
    """Points and unit normals [3, N] in world axes, for the N = H * W pixels; sky has zero points and normals."""

    code: np.ndarray
    points: np.ndarray
    normals: np.ndarray


def surfels(table: SurfaceTable, hits: Hits, centre: np.ndarray) -> Surfels:
    """Points and normals of all pixels."""
    code = hits.code.ravel()
    depth = np.where(code > 0, hits.depth.ravel(), 0.0)
    rays = hits.rays.reshape(3, -1)
    points = np.empty_like(rays)
    normals = np.empty_like(rays)
    # background rows of this table are right for every pixel that is no object, and overwritten for the others
    lookup = np.zeros((3, len(table)))
    lookup[:, : len(_BACKGROUND_NORMALS)] = _BACKGROUND_NORMALS.T
    for axis in range(3):
        np.multiply(rays[axis], depth, out=points[axis])
        points[axis] += centre[axis]
        np.take(lookup[axis], code, out=normals[axis])
    shape = np.take(table.shape, code)
    for kind, normal in ((SPHERE, _sphere_normals), (BOX, _box_normals), (FRUSTUM, _frustum_normals)):
        pixels = np.flatnonzero(shape == kind)
        if len(pixels):
            normals[:, pixels] = normal(table, code[pixels], np.take(points, pixels, axis=1))
    return Surfels(code, points, normals)


def to_local(table: SurfaceTable, code: int | np.ndarray, points: np.ndarray) -> np.ndarray:
    """World points [3, n] in the axes of their own piece, from the middle of its foot; one code for all or each."""
    cos, sin = table.cos[code], table.sin[code]
    x, y = points[0] - table.x[code], points[1] - table.y[code]
    return np.stack([cos * x + sin * y, cos * y - sin * x, points[2] - table.z0[code]])


def _to_world(table: SurfaceTable, code: np.ndarray, local: np.ndarray) -> np.ndarray:
    cos, sin = table.cos[code], table.sin[code]
    return np.stack([cos * local[0] - sin * local[1], sin * local[0] + cos * local[1], local[2]])


def _sphere_normals(table: SurfaceTable, code: np.ndarray, points: np.ndarray) -> np.ndarray:
    centre = np.stack([table.x, table.y, (table.z0 + table.z1) / 2])
    return (points - np.take(centre, code, axis=1)) / table.rx[code]


def _box_normals(table: SurfaceTable, code: np.ndarray, points: np.ndarray) -> np.ndarray:
    local = to_local(table, code, points)
    half_z = (table.z1 - table.z0)[code] / 2
    # distance of each coordinate from its face; the hit lies on the face where it is zero
    local[2] -= half_z
    gaps = np.stack([table.rx[code], table.ry[code], half_z]) - np.abs(local)
    axis = gaps.argmin(axis=0)
    columns = np.arange(len(code))
    normals = np.zeros_like(local)
    normals[axis, columns] = np.sign(local[axis, columns])
    return _to_world(table, code, normals)


def _frustum_normals(table: SurfaceTable, code: np.ndarray, points: np.ndarray) -> np.ndarray:
    x, y = points[0] - table.x[code], points[1] - table.y[code]
    slope = ((table.ry - table.rx) / np.maximum(table.z1 - table.z0, 1e-9))[code]
    around = np.maximum(np.hypot(x, y), 1e-12)
    length = np.sqrt(1 + slope * slope)
    normals = np.stack([x / around / length, y / around / length, -slope / length])
    on_top = points[2] > table.z1[code] - _ON_DISC
    on_bottom = points[2] < table.z0[code] + _ON_DISC
    normals[:, on_top] = np.array([[0.0], [0.0], [1.0]])
    normals[:, on_bottom] = np.array([[0.0], [0.0], [-1.0]])
    return normals
