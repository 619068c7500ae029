"""From surfaces to a picture: light, hard shadows, haze and sky."""

import numpy as np

from imagery.scenes.geometry import Surfels
from imagery.scenes.patterns import albedo
from imagery.scenes.surfaces import BOX, SKY, SurfaceTable
from imagery.scenes.visibility import Hits, hit_piece
from imagery.scenes.world import World

_HAZE_DISTANCE = 38.0  # metres until haze has taken 63 %
_DIRECT = 0.62
_INDOOR_AMBIENT = 0.14  # light that the walls throw back


def shade(world: World, hits: Hits, seen: Surfels, pixel: float, shadows: bool) -> np.ndarray:
    """The picture [H, W, 3] uint8; `pixel` is the angle of one pixel in radians."""
    height, width = hits.code.shape
    depth = hits.depth.ravel().astype(np.float32)
    solid = seen.code != SKY
    facing = sum(seen.normals[axis] * world.light[axis] for axis in range(3))
    slant = _slant(hits, seen)
    colours = albedo(world.table, seen, np.where(solid, depth, 0) * pixel / slant)
    direct = np.maximum(facing, 0).astype(np.float32)
    if shadows:
        direct[shadowed(world, seen, np.flatnonzero(solid & (facing > 0)))] = 0
    ambient = world.ambient + (_INDOOR_AMBIENT if world.room is not None else 0.0)
    light = ambient * (0.86 + 0.14 * seen.normals[2].astype(np.float32))
    sky = np.flatnonzero(~solid)
    haze = None if world.room is not None else np.exp(-np.where(solid, depth, 0) / _HAZE_DISTANCE)
    for channel in range(3):
        colours[channel] *= light + (_DIRECT * float(world.light_rgb[channel])) * direct
        if haze is not None:
            horizon = _horizon(world, channel)
            colours[channel] = horizon + haze * (colours[channel] - horizon)
    if len(sky):
        colours[:, sky] = _sky(world, hits.rays.reshape(3, -1)[:, sky])
    picture = np.empty((height * width, 3), dtype=np.uint8)
    np.clip(colours, 0, 1, out=colours)
    colours *= 255
    colours += 0.5
    picture[:] = colours.T
    return picture.reshape(height, width, 3)


def _slant(hits: Hits, seen: Surfels) -> np.ndarray:
    """Root of the cosine between ray and normal: the size of a pixel on the surface, a compromise of both axes."""
    rays = hits.rays.reshape(3, -1)
    cosine = sum(rays[axis] * seen.normals[axis] for axis in range(3))
    return np.sqrt(np.clip(np.abs(cosine), 0.01, 1)).astype(np.float32)


def shadowed(world: World, seen: Surfels, pixels: np.ndarray) -> np.ndarray:
    """Those of `pixels` whose way to the light is blocked by an object (walls and ceiling let the light in).

    Only points behind an object's bounding box, as seen from the light, are tested against its pieces.
    """
    light, table = world.light, world.table
    points = np.take(seen.points, pixels, axis=1)
    points += 1e-4 * np.take(seen.normals, pixels, axis=1)
    frame = (*_across(light), light)
    u, v, w = (_dot(axis, points).astype(np.float32) for axis in frame)
    dark = np.zeros(len(pixels), dtype=bool)
    lows, highs = _light_boxes(table, frame)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for owner in range(1, len(world.things) + 1):
            rows = np.flatnonzero(table.owner == owner)
            low, high = lows[:, rows].min(axis=1), highs[:, rows].max(axis=1)
            near = (u > low[0]) & (u < high[0])
            near &= (v > low[1]) & (v < high[1])
            near &= w < high[2]
            candidates = np.flatnonzero(near)
            for row in rows:
                candidates = candidates[~dark[candidates]]
                if len(candidates):
                    t = hit_piece(table, int(row), np.take(points, candidates, axis=1), light, 1.0)
                    dark[candidates[t < np.inf]] = True
    return pixels[dark]


def _dot(axis: np.ndarray, points: np.ndarray) -> np.ndarray:
    return axis[0] * points[0] + axis[1] * points[1] + axis[2] * points[2]


def _across(light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors that span the plane seen from the light; the first one is level."""
    across = np.cross(light, (0.0, 0.0, 1.0))
    across /= np.linalg.norm(across)
    return across, np.cross(across, light)


def _light_boxes(table: SurfaceTable, frame: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest coordinate of every surface code along the three axes of `frame`: [3, N] float32 each."""
    wide = np.maximum(table.rx, table.ry)
    is_box = table.shape == BOX
    rx, ry = np.where(is_box, table.rx, wide), np.where(is_box, table.ry, wide)
    middle, tall = (table.z0 + table.z1) / 2, (table.z1 - table.z0) / 2
    lows, highs = [], []
    for axis in frame:
        level_x, level_y = table.cos * axis[0] + table.sin * axis[1], table.cos * axis[1] - table.sin * axis[0]
        half = rx * np.abs(level_x) + ry * np.abs(level_y) + tall * abs(axis[2]) + 1e-4
        centre = axis[0] * table.x + axis[1] * table.y + axis[2] * middle
        lows.append(centre - half)
        highs.append(centre + half)
    return np.asarray(lows, dtype=np.float32), np.asarray(highs, dtype=np.float32)


def _horizon(world: World, channel: int) -> float:
    return float(0.35 * world.sky[channel] + 0.62)


def _sky(world: World, rays: np.ndarray) -> np.ndarray:
    """Sky colours [3, n]: from the horizon's haze to the zenith's blue, with soft clouds."""
    length = np.sqrt(_dot(rays, rays))
    up = np.maximum(rays[2] / length, 0)
    rise = np.sqrt(np.clip(2.2 * up, 0, 1))
    turn = np.arctan2(rays[1], rays[0])
    wave = np.sin(5 * turn + 3 * np.sin(3 * turn + 9 * up)) + np.sin(26 * up + 4 * np.sin(4 * turn))
    cloud = 0.55 * np.clip(wave, 0, 1.4) / 1.4 * rise
    out = np.empty((3, rays.shape[1]), dtype=np.float32)
    for channel in range(3):
        blue = _horizon(world, channel) + rise * (world.sky[channel] - _horizon(world, channel))
        out[channel] = blue + cloud * (0.97 - blue)
    return out
