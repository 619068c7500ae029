"""Which surface every pixel sees, and how far away: background first, then each piece inside its own bounding box."""

from dataclasses import dataclass

import numpy as np

from imagery.scenes.camera import Camera
from imagery.scenes.primitives import hit_box, hit_frustum, hit_sphere
from imagery.scenes.surfaces import (
    BOX,
    CEILING,
    FIRST_PIECE,
    FLOOR,
    GROUND,
    SPHERE,
    WALL_BACK,
    WALL_FRONT,
    WALL_LEFT,
    WALL_RIGHT,
    SurfaceTable,
)  # fmt: skip
from imagery.scenes.world import GROUND_RADIUS, Room, World


@dataclass(frozen=True)
class Hits:
    """`code` [H, W] surface codes, `depth` [H, W] metres (inf: sky), `rays` [3, H, W], and per code the number of
    pixels it would cover alone (`covered`) and the share of its bounding box inside the picture (`inside`)."""

    code: np.ndarray
    depth: np.ndarray
    rays: np.ndarray
    covered: np.ndarray
    inside: np.ndarray


def trace(world: World, camera: Camera, height: int, width: int) -> Hits:
    """First hit of every pixel's ray."""
    rays, squares = camera.rays(height, width)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        code, depth = _background(world.room, camera.centre, rays)
        boxes, inside = pixel_boxes(world.table, camera, height, width)
        covered = np.zeros(len(world.table), dtype=np.int64)
        for row in range(FIRST_PIECE, len(world.table)):
            y0, y1, x0, x1 = boxes[row]
            if y0 >= y1 or x0 >= x1:
                continue
            window = (slice(y0, y1), slice(x0, x1))
            t = hit_piece(world.table, row, camera.centre, rays[:, y0:y1, x0:x1], squares[window])
            covered[row] = np.count_nonzero(t < np.inf)
            near = t < depth[window]
            np.copyto(depth[window], t, where=near)
            code[window][near] = row
    return Hits(code.astype(np.intp), depth, rays, covered, inside)


def hit_piece(table: SurfaceTable, row: int, o: np.ndarray, d: np.ndarray, square: np.ndarray | float) -> np.ndarray:
    """Ray parameter of the nearest hit of piece `row`; `o`, `d` are [3] or [3, ...]."""
    x, y, z0, z1, rx, ry = (column[row] for column in (table.x, table.y, table.z0, table.z1, table.rx, table.ry))
    if table.shape[row] == SPHERE:
        return hit_sphere((x, y, (z0 + z1) / 2), rx, o, d, square)
    if table.shape[row] == BOX:
        return hit_box((x, y), (z0, z1), (rx, ry), (table.cos[row], table.sin[row]), o, d)
    return hit_frustum((x, y), (z0, z1), (rx, ry), o, d)


def pixel_boxes(table: SurfaceTable, camera: Camera, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Per surface code the pixels it can cover [N, 4] (y0, y1, x0, x1), and the share of that in the picture."""
    corners = _corners(table)
    x, y, z = camera.project(corners, height, width)
    raw = np.stack([y.min(1), y.max(1), x.min(1), x.max(1)], axis=1)
    behind = z.min(1) < 0.05
    raw[behind] = (0, height, 0, width)
    whole = (raw[:, 1] - raw[:, 0]) * (raw[:, 3] - raw[:, 2])
    limits = np.array([height, height, width, width])
    cut = np.clip(raw, 0, limits)
    inside = (cut[:, 1] - cut[:, 0]) * (cut[:, 3] - cut[:, 2]) / np.maximum(whole, 1e-9)
    boxes = np.empty((len(table), 4), dtype=np.int64)
    boxes[:, 0::2] = np.clip(np.floor(raw[:, 0::2] - 0.5), 0, limits[0::2])
    boxes[:, 1::2] = np.clip(np.ceil(raw[:, 1::2] + 0.5), 0, limits[1::2])
    return boxes, inside


def _corners(table: SurfaceTable) -> np.ndarray:
    """The eight corners of every row's bounding box: [3, N, 8]."""
    wide = np.maximum(table.rx, table.ry)
    is_box = table.shape == BOX
    rx, ry = np.where(is_box, table.rx, wide), np.where(is_box, table.ry, wide)
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (0, 1)], dtype=np.float64)
    lx, ly = rx[:, None] * signs[:, 0], ry[:, None] * signs[:, 1]
    cos, sin = table.cos[:, None], table.sin[:, None]
    x = table.x[:, None] + cos * lx - sin * ly
    y = table.y[:, None] + sin * lx + cos * ly
    z = table.z0[:, None] + (table.z1 - table.z0)[:, None] * signs[:, 2]
    return np.stack([x, y, z])


def _background(room: Room | None, centre: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shape = rays.shape[1:]
    if room is None:
        depth = -centre[2] / rays[2]
        flat = np.hypot(rays[0], rays[1]) * depth
        seen = (depth > 0) & (flat < GROUND_RADIUS)
        return np.where(seen, np.int16(GROUND), np.int16(0)), np.where(seen, depth, np.inf)
    code = np.empty(shape, dtype=np.int16)
    depth = np.full(shape, np.inf)
    walls = ((0, room.left, room.right, WALL_LEFT, WALL_RIGHT), (1, room.back, room.front, WALL_BACK, WALL_FRONT),
             (2, 0.0, room.height, FLOOR, CEILING))  # fmt: skip
    for axis, low, high, low_code, high_code in walls:
        up = rays[axis] > 0
        t = (np.where(up, high, low) - centre[axis]) / rays[axis]
        near = t < depth
        np.copyto(depth, t, where=near)
        np.copyto(code, np.where(up, np.int16(high_code), np.int16(low_code)), where=near)
    return code, depth
