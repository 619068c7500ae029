"""From surfaces to a picture: light, hard shadows, haze and sky."""

import numpy as np

from imagery.scenes.geometry import Surfels
from imagery.scenes.patterns import albedo
from imagery.scenes.surfaces import BOX, FIRST_PIECE, SKY, SurfaceTable
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
    """Those of `pixels` whose way to the light is blocked by an object (walls and ceiling let the light in)."""
    light = world.light
    points = np.take(seen.points, pixels, axis=1)
    points += 1e-4 * np.take(seen.normals, pixels, axis=1)
    across, over = _across(light)
    u, v, w = (_dot(axis, points).astype(np.float32) for axis in (across, over, light))
    dark = np.zeros(len(pixels), dtype=bool)
    table = world.table
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for row in range(FIRST_PIECE, len(table)):
            centre = np.array([table.x[row], table.y[row], (table.z0[row] + table.z1[row]) / 2])
            du, dv, dw = (
                _half_extent(table, row, across),
                _half_extent(table, row, over),
                _half_extent(table, row, light),
            )
            cu, cv, cw = across @ centre, over @ centre, light @ centre
            near = (np.abs(u - np.float32(cu)) < du) & (np.abs(v - np.float32(cv)) < dv) & (w < cw + dw)
            candidates = np.flatnonzero(near)
            candidates = candidates[~dark[candidates]]
            if len(candidates):
                t = hit_piece(table, row, points[:, candidates], light, 1.0)
                dark[candidates[t < np.inf]] = True
    return pixels[dark]


def _dot(axis: np.ndarray, points: np.ndarray) -> np.ndarray:
    return axis[0] * points[0] + axis[1] * points[1] + axis[2] * points[2]


def _across(light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors that span the plane seen from the light; the first one is level."""
    across = np.cross(light, (0.0, 0.0, 1.0))
    across /= np.linalg.norm(across)
    return across, np.cross(across, light)


def _half_extent(table: SurfaceTable, row: int, axis: np.ndarray) -> np.float32:
    """Half the extent of a piece along `axis`, from its turned bounding box."""
    rx, ry = table.rx[row], table.ry[row]
    if table.shape[row] != BOX:
        rx = ry = max(rx, ry)
    cos, sin = table.cos[row], table.sin[row]
    level_x, level_y = cos * axis[0] + sin * axis[1], cos * axis[1] - sin * axis[0]
    tall = (table.z1[row] - table.z0[row]) / 2
    return np.float32(rx * abs(level_x) + ry * abs(level_y) + tall * abs(axis[2]) + 1e-4)


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
