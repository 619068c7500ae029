"""Both views show the same points: colours, depth and visibility agree."""

import numpy as np

from imagery.scenes import Scene, SceneSettings
from imagery.scenes.keypoints import unblocked
from imagery.scenes.world import build_world


def sample(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Nearest pixel of view 2 at positions [n, 2]."""
    columns, rows = np.floor(flow).astype(int).T
    return values[rows, columns]


def first_points(scene: Scene) -> np.ndarray:
    rows, columns = np.mgrid[: scene.depth.shape[0], : scene.depth.shape[1]] + 0.5
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    camera = (pixels @ np.linalg.inv(scene.intrinsics).T) * scene.depth[..., None].astype(np.float64)
    return camera @ scene.pose[:3, :3].T + scene.pose[:3, 3]


def in_second(scene: Scene, points: np.ndarray) -> np.ndarray:
    """World points [..., 3] in the axes of the second camera."""
    turn, centre = scene.second.pose[:3, :3], scene.second.pose[:3, 3]
    return (points - centre) @ turn


def test_flow_is_the_projection_of_depth(few: list[Scene]) -> None:
    for scene in few:
        local = in_second(scene, first_points(scene))
        projected = local @ scene.second.intrinsics.T
        visible = scene.second.visible
        expected = projected[..., :2] / projected[..., 2:]
        assert np.abs(expected - scene.second.flow_xy)[visible].max() < 0.01
        assert not visible[scene.depth == 0].any()


def test_colours_agree_where_both_views_see(few: list[Scene]) -> None:
    for scene in few:
        visible = scene.second.visible
        assert 0.15 < visible.mean() < 0.98
        there = sample(scene.second.rgb, scene.second.flow_xy[visible]).astype(float)
        assert np.abs(there - scene.rgb[visible]).mean() < 6


def test_depth_agrees_where_both_views_see(few: list[Scene]) -> None:
    for scene in few:
        visible = scene.second.visible
        expected = in_second(scene, first_points(scene))[visible][:, 2]
        there = sample(scene.second.depth, scene.second.flow_xy[visible])
        gap = np.abs(there - expected) / expected
        assert np.median(gap) < 0.004
        assert np.percentile(gap, 97) < 0.06


def test_visibility_is_what_rays_say(few: list[Scene]) -> None:
    """Exact occlusion by casting a ray to every point; they may differ by half a pixel along outlines only."""
    for index, scene in enumerate(few[:4]):
        world = build_world(33, index, SceneSettings())
        flow, size = scene.second.flow_xy, scene.depth.shape[0]
        inside = (scene.depth > 0) & (flow >= 0).all(-1) & (flow < size).all(-1)
        free = unblocked(world, scene.second.pose[:3, 3], first_points(scene)[inside].T)
        assert (free == scene.second.visible[inside]).mean() > 0.97
