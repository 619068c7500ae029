"""The same world at any size; numbers and maps that only depend on (seed, index)."""

import time

import numpy as np
import pytest

from common.errors import UserError
from imagery.scenes import Scene, SceneSet, SceneSettings, render_scene
from imagery.scenes.cache import render_many

MAPS = ("rgb", "semantic", "kind", "instance", "part", "material", "saliency", "boundary", "depth", "normals")
# maps that look at one pixel at a time; boundaries look at neighbours and rgb at the size of a pixel
POINTWISE = ("semantic", "kind", "instance", "part", "material", "depth", "normals")


def assert_same(one: Scene, other: Scene) -> None:
    for name in MAPS:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.captions == other.captions
    assert one.questions == other.questions
    assert one.keypoints == other.keypoints


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    first = render_scene(4, 7, 48, 48)
    render_scene(4, 8, 48, 48)
    assert_same(first, render_scene(4, 7, 48, 48, second_view=True))
    assert not np.array_equal(first.rgb, render_scene(4, 8, 48, 48).rgb)
    assert not np.array_equal(first.rgb, render_scene(5, 7, 48, 48).rgb)


def test_leaving_labels_out_draws_the_same_picture() -> None:
    bare = render_scene(4, 7, 48, 48, labels=False)
    assert np.array_equal(bare.rgb, render_scene(4, 7, 48, 48).rgb)
    assert bare.semantic is None
    assert bare.captions == []


@pytest.mark.parametrize("index", range(4))
def test_a_larger_picture_shows_the_same_world(index: int) -> None:
    """At three times the size every third pixel centre is a pixel centre of the small picture."""
    small, large = render_scene(2, index, 48, 48), render_scene(2, index, 144, 144)
    for name in POINTWISE:
        fine = getattr(large, name)[1::3, 1::3]
        assert np.allclose(getattr(small, name), fine, atol=1e-5), name
    assert small.scene_class == large.scene_class


def test_a_wider_picture_adds_at_the_sides() -> None:
    square, wide = render_scene(2, 1, 48, 48), render_scene(2, 1, 48, 96)
    for name in POINTWISE:
        assert np.allclose(getattr(square, name), getattr(wide, name)[:, 24:72], atol=1e-5), name
    assert np.array_equal(render_scene(2, 1, 64, 40).rgb.shape, (64, 40, 3))


def test_types_and_shapes() -> None:
    scene = render_scene(0, 0, 32, 40)
    assert scene.rgb.dtype == np.uint8 and scene.rgb.shape == (32, 40, 3)
    assert scene.normals.dtype == np.float32 and scene.normals.shape == (32, 40, 3)
    assert scene.depth.dtype == np.float32 and scene.instance.dtype == np.uint16
    for name in ("semantic", "kind", "part", "material", "saliency", "boundary"):
        assert getattr(scene, name).dtype == np.uint8 and getattr(scene, name).shape == (32, 40), name
    assert scene.intrinsics.shape == (3, 3) and scene.pose.shape == (4, 4)


def test_a_pool_draws_what_one_process_draws() -> None:
    scenes = SceneSet(3, 10, 32, 32)
    for one, other in zip(render_many(scenes, workers=2), render_many(scenes, workers=0), strict=True):
        assert_same(one, other)


def test_a_set_is_a_stretch_of_its_stream() -> None:
    scenes = SceneSet(3, 5, 32, 32, start=10)
    assert len(scenes) == 5
    assert_same(scenes[2], render_scene(3, 12, 32, 32))
    assert_same(scenes[-1], scenes[4])
    with pytest.raises(IndexError):
        scenes[5]


def test_bad_requests_are_told_in_words() -> None:
    with pytest.raises(UserError, match="too small"):
        render_scene(0, 0, 8, 64)
    with pytest.raises(UserError, match="count"):
        SceneSet(0, 0, 32, 32)
    with pytest.raises(UserError, match="low <= high"):
        SceneSettings(objects=(5, 2))
    with pytest.raises(UserError, match="between 0 and 1"):
        SceneSettings(indoor_share=1.5)


def test_settings_reach_the_world() -> None:
    inside = [render_scene(1, k, 32, 32, settings=SceneSettings(indoor_share=1.0)) for k in range(6)]
    assert all(scene.attributes["indoor"] and scene.depth.min() > 0 for scene in inside)
    sparse = [render_scene(1, k, 32, 32, settings=SceneSettings(objects=(1, 1))) for k in range(6)]
    assert all(scene.instance.max() == 1 for scene in sparse)


def test_drawing_is_not_slow() -> None:
    """A loose bound in processor seconds: a quiet core of 2023 draws four times as many."""
    start = time.process_time()
    for index in range(12):
        render_scene(8, index, 224, 224)
    assert 12 / (time.process_time() - start) > 9
