"""Visible keypoints lie on their object in the picture, hidden ones behind something."""

from collections import defaultdict

import numpy as np

from imagery.scenes import Scene, render_scene, vocab


def around(values: np.ndarray, x: float, y: float) -> np.ndarray:
    row, column = int(y), int(x)
    return values[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]


def test_visible_points_touch_their_object(few: list[Scene]) -> None:
    touching = [
        point.instance in around(scene.instance, point.x, point.y)
        for scene in few
        for point in scene.keypoints
        if point.visible
    ]
    assert len(touching) > 200
    assert np.mean(touching) > 0.97  # the tip of a cone is thinner than a pixel


def test_all_visible_points_touch_their_object_in_a_large_picture() -> None:
    for index in range(2):
        scene = render_scene(33, index, 480, 480)
        for point in scene.keypoints:
            assert not point.visible or point.instance in around(scene.instance, point.x, point.y), point


def test_hidden_points_in_the_picture_are_behind_something(few: list[Scene]) -> None:
    """Nothing but an object hides a point, so where one is hidden an object is seen."""
    seen = [
        (around(scene.instance, point.x, point.y) > 0).any()
        for scene in few
        for point in scene.keypoints
        if not point.visible and 1 <= point.x < 159 and 1 <= point.y < 159
    ]
    assert len(seen) > 50
    assert np.mean(seen) > 0.97


def test_every_kind_has_the_same_names_everywhere(many: list[Scene]) -> None:
    names: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for scene in many[:60]:
        by_instance = defaultdict(list)
        for point in scene.keypoints:
            by_instance[point.kind, point.instance].append(point.name)
        for (kind, _), found in by_instance.items():
            names[kind].add(tuple(found))
    assert set(names) == set(vocab.KINDS)
    assert all(len(variants) == 1 for variants in names.values())


def test_left_is_left(many: list[Scene]) -> None:
    for scene in many[:30]:
        points = {(point.instance, point.name): point for point in scene.keypoints}
        for (instance, name), point in points.items():
            other = points.get((instance, name.replace("left", "right")))
            if "left" in name.split() and point.visible and other is not None and other.visible:
                assert point.x < other.x
