"""Augmentation: the geometry asked for, one antialiased resampling, and nothing but (seed, position) decides."""

import numpy as np
import pytest

from common.errors import UserError
from imagery.augment import PLAIN, Augment


def coordinates(height: int, width: int) -> np.ndarray:
    """Red rises with x, green with y: a crop can be read off its colours."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / (width - 1), y * 255 / (height - 1), 0 * x], axis=2).round().astype(np.uint8)


def boxes(augment: Augment, source: tuple[int, int], output: tuple[int, int], count: int = 400) -> np.ndarray:
    return np.array([augment.box(*source, *output, np.random.default_rng(seed)) for seed in range(count)])


def test_plain_of_the_right_size_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(PLAIN.apply(image, 32, 48, seed=1, position=2), image)


def test_plain_brings_the_smallest_side_to_size_and_takes_the_centre() -> None:
    crop = PLAIN.apply(coordinates(60, 120), 30, 30, seed=0, position=0)
    assert crop.shape == (30, 30, 3)
    assert abs(crop[:, 0, 0].mean() - 255 * 0.25) < 4 and abs(crop[:, -1, 0].mean() - 255 * 0.75) < 4
    assert crop[0, 0, 1] < 8 and crop[-1, 0, 1] > 247


def test_small_and_tall_images_and_other_shapes_fit() -> None:
    for source in ((1, 1), (5, 300), (300, 5), (37, 53)):
        image = coordinates(max(source[0], 2), max(source[1], 2))[: source[0], : source[1]]
        crop = Augment(zoom=(1, 2), aspect=(0.5, 2)).apply(image, 24, 40, seed=3, position=4)
        assert crop.shape == (24, 40, 3)


def test_the_window_stays_inside_and_has_the_asked_range() -> None:
    augment = Augment(zoom=(1.0, 2.0), aspect=(0.75, 4 / 3))
    left, top, right, bottom = boxes(augment, (300, 200), (64, 64)).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 200 and bottom.max() <= 300
    shape = (right - left) / (bottom - top)  # stretched by a -> the window's shape is 1 / a
    assert 0.75 <= shape.min() < 0.78 and 1.28 < shape.max() <= 4 / 3 + 1e-9
    zoom = np.minimum(200, 300 * shape) / (right - left)
    assert 1.0 - 1e-9 <= zoom.min() < 1.02 and 1.98 < zoom.max() <= 2.0 + 1e-9
    assert abs(zoom.mean() - 1.5) < 0.05
    assert left.min() < 5 and right.max() > 195 and top.min() < 10 and bottom.max() > 290


def test_zoom_two_shows_half() -> None:
    crop = Augment(zoom=(2, 2), random_crop=False).apply(coordinates(64, 64), 32, 32, seed=0, position=0)
    assert abs(crop[0, 0, 0] - 255 * 0.25) < 4 and abs(crop[-1, -1, 1] - 255 * 0.75) < 4


def test_mirroring_happens_as_often_as_asked() -> None:
    image = coordinates(16, 16)
    for probability in (0.0, 0.5, 1.0):
        augment = Augment(hflip=probability, random_crop=False)
        crops = [augment.apply(image, 16, 16, seed=5, position=position) for position in range(300)]
        mirrored = np.mean([crop[0, 0, 0] > crop[0, -1, 0] for crop in crops])
        assert abs(mirrored - probability) < 0.1 * (probability == 0.5) + 1e-9


def test_shrinking_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8)[None, :, None], (128, 64, 3))  # alternating columns
    crop = PLAIN.apply(stripes, 16, 16, seed=0, position=0)
    np.testing.assert_allclose(crop[:, 2:-2], 127, atol=6)


def test_the_same_position_is_the_same_and_others_are_not() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    augment = Augment(zoom=(1, 2), hflip=0.5)
    first = augment.apply(image, 16, 16, seed=1, position=2)
    np.testing.assert_array_equal(first, augment.apply(image, 16, 16, seed=1, position=2))
    assert not np.array_equal(first, augment.apply(image, 16, 16, seed=1, position=3))
    assert not np.array_equal(first, augment.apply(image, 16, 16, seed=2, position=2))


@pytest.mark.parametrize("field", [{"zoom": (0.5, 1)}, {"zoom": (2, 1)}, {"aspect": (0, 1)}, {"hflip": 1.5}])
def test_impossible_ranges_are_user_errors(field: dict) -> None:
    with pytest.raises(UserError, match=next(iter(field))):
        Augment(**field)
