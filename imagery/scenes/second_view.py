"""The same world seen from a step aside, and where every point of the first view went."""

from dataclasses import replace

import numpy as np

from imagery.scenes.camera import Camera, look
from imagery.scenes.geometry import Surfels, surfels
from imagery.scenes.labels import depth_map
from imagery.scenes.scene import SecondView
from imagery.scenes.settings import SceneSettings
from imagery.scenes.shading import shade
from imagery.scenes.visibility import Hits, trace
from imagery.scenes.world import World

_LOWEST = 0.9  # metres, of the second camera


def second_view(
    world: World, seed: int, index: int, first: Surfels, size: tuple[int, int], settings: SceneSettings
) -> SecondView:
    """Render the second view and the correspondence from the first one's surfels."""
    height, width = size
    camera = move_camera(world.camera, np.random.default_rng((seed, index, 2)), settings)
    hits = trace(world, camera, height, width)
    seen = surfels(world.table, hits, camera.centre)
    rgb = shade(replace(world, camera=camera), hits, seen, 1 / (camera.focal * min(size)), settings.shadows)
    flow, visible = correspondence(first, camera, hits)
    return SecondView(rgb, depth_map(hits), camera.intrinsics(height, width), camera.pose(), flow, visible)


def move_camera(camera: Camera, rng: np.random.Generator, settings: SceneSettings) -> Camera:
    """A camera `settings.baseline` metres away that looks at nearly the same place, turned a little about its axis."""
    right, _, forward = camera.axes
    distance, side = rng.uniform(*settings.baseline), rng.choice((-1.0, 1.0))
    step = side * right + rng.uniform(-0.35, 0.35) * np.array([0, 0, 1.0]) + rng.uniform(-0.3, 0.5) * forward
    centre = camera.centre + distance * step / np.linalg.norm(step)
    centre[2] = max(centre[2], _LOWEST)
    target = camera.centre + rng.uniform(4.0, 6.0) * forward + rng.uniform(-0.35, 0.35, 3)
    return look(centre, target, camera.focal, roll=rng.uniform(-0.12, 0.12))


def correspondence(first: Surfels, camera: Camera, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    """Where each first-view point lies in the second view [H, W, 2], and whether that view sees it [H, W].

    Exact up to half a pixel: the pixel there must show the same primitive (all are convex, and walls flat), on a side
    that faces this camera.
    """
    height, width = hits.code.shape
    x, y, z = camera.project(first.points, height, width)
    known = first.code > 0
    inside = known & (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    facing = sum(first.normals[axis] * (camera.centre[axis] - first.points[axis]) for axis in range(3)) > 0
    columns = np.clip(np.where(inside, x, 0).astype(np.int64), 0, width - 1)
    rows = np.clip(np.where(inside, y, 0).astype(np.int64), 0, height - 1)
    same = hits.code[rows, columns] == first.code
    in_front = known & (z > 0)
    flow = np.stack([np.where(in_front, x, -1), np.where(in_front, y, -1)], axis=1).astype(np.float32)
    return flow.reshape(height, width, 2), (inside & facing & same).reshape(height, width)
