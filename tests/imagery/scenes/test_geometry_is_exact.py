"""Depth, normals and instances against the solids' definitions, not against the intersection code."""

import numpy as np
import pytest
from solids import excess

from imagery.scenes import Scene, SceneSettings, render_scene
from imagery.scenes.world import World, build_world

SEED, SIZE, SCENES = 11, 80, 4


@pytest.fixture(scope="module", params=range(SCENES))
def drawn(request: pytest.FixtureRequest) -> tuple[Scene, World]:
    index = request.param
    return render_scene(SEED, index, SIZE, SIZE), build_world(SEED, index, SceneSettings())


def unproject(scene: Scene, depth: np.ndarray) -> np.ndarray:
    """World points [H, W, 3] from depth, intrinsics and pose alone."""
    rows, columns = np.mgrid[: depth.shape[0], : depth.shape[1]] + 0.5
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    camera = (pixels @ np.linalg.inv(scene.intrinsics).T) * depth[..., None]
    return camera @ scene.pose[:3, :3].T + scene.pose[:3, 3]


def test_points_lie_on_the_object_that_the_instance_map_names(drawn: tuple[Scene, World]) -> None:
    scene, world = drawn
    points = unproject(scene, scene.depth.astype(np.float64))
    for index, thing in enumerate(world.things):
        mine = points[scene.instance == index + 1]
        if len(mine):
            gap = np.min([np.abs(excess(piece, mine)) for piece in thing.pieces], axis=0)
            assert gap.max() < 1e-4, thing.kind


def test_nothing_stands_before_a_visible_point(drawn: tuple[Scene, World]) -> None:
    """Twenty-five samples along every ray, up to the point: none may lie inside any solid."""
    scene, world = drawn
    depth = np.where(scene.depth > 0, scene.depth, 40.0).astype(np.float64)
    for share in np.linspace(0.25, 0.998, 25):
        points = unproject(scene, share * depth).reshape(-1, 3)
        for thing in world.things:
            for piece in thing.pieces:
                assert excess(piece, points).min() > -2e-3, (thing.kind, share)


def test_background_is_where_it_should_be(drawn: tuple[Scene, World]) -> None:
    scene, _ = drawn
    points = unproject(scene, scene.depth.astype(np.float64))
    on_ground = np.isin(scene.semantic, (1, 2))
    assert np.abs(points[on_ground][:, 2]).max() < 1e-3
    assert (scene.depth[scene.semantic == 0] == 0).all()
    assert (scene.depth[scene.semantic != 0] > 0).all()


def test_normals_are_unit_face_the_camera_and_fit_the_depth(drawn: tuple[Scene, World]) -> None:
    scene, _ = drawn
    valid = scene.depth > 0
    assert np.allclose(np.linalg.norm(scene.normals[valid], axis=-1), 1, atol=1e-5)
    assert (scene.normals[~valid] == 0).all()
    points = unproject(scene, scene.depth.astype(np.float64))
    toward = scene.pose[:3, 3] - points
    world_normals = scene.normals @ scene.pose[:3, :3].T
    assert ((toward * world_normals).sum(-1)[valid] > -1e-4).all()
    # on one smooth part the step to the next pixel runs along the surface; curvature bends it only a little
    step = points[:, 1:] - points[:, :-1]
    smooth = valid[:, 1:] & valid[:, :-1] & (scene.part[:, 1:] == scene.part[:, :-1])
    smooth &= scene.instance[:, 1:] == scene.instance[:, :-1]
    smooth &= (world_normals[:, 1:] * world_normals[:, :-1]).sum(-1) > 0.98
    middle = world_normals[:, 1:] + world_normals[:, :-1]
    middle /= np.maximum(np.linalg.norm(middle, axis=-1, keepdims=True), 1e-9)
    cosine = (step * middle).sum(-1) / np.maximum(np.linalg.norm(step, axis=-1), 1e-9)
    assert np.percentile(np.abs(cosine[smooth]), 99) < 0.08


def test_shadows_fall_where_the_light_is_blocked() -> None:
    """The picture differs from the one without shadows just where the way to the light meets a solid."""
    bright = render_scene(SEED, 2, SIZE, SIZE, settings=SceneSettings(shadows=False))
    scene, world = render_scene(SEED, 2, SIZE, SIZE), build_world(SEED, 2, SceneSettings())
    darker = (bright.rgb.astype(int) - scene.rgb).max(-1) > 3
    on_ground = np.isin(scene.semantic, (1, 2)) & (scene.depth < 12)
    on_ground[::2] = on_ground[:, ::2] = False  # every fourth pixel is enough
    points = unproject(scene, scene.depth.astype(np.float64))[on_ground]
    blocked = np.zeros(len(points), dtype=bool)
    for distance in np.linspace(0.01, 4, 160):
        for thing in world.things:
            for piece in thing.pieces:
                blocked |= excess(piece, points + distance * world.light) < 0
    assert blocked.any()
    assert (darker[on_ground] == blocked).mean() > 0.99
