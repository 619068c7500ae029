"""Fast decoding of a window, held to its slow twin: a full decode by Pillow and one resize of the same window.

Tolerances, in levels of 255: Pillow's way gives the very pixels (0.2 in the mean for a picture stored on its side);
torchvision and torch are at most 2 away, 0.6 in the mean; scaled decoding is at most 1.5 away in the mean.
"""

from pathlib import Path

import numpy as np
import pytest
from image_files import encode
from PIL import ExifTags, Image

from imagery.augment import Augment
from imagery.crop import Box, decode_crop
from imagery.decode import BadImage, decode_image


def photograph(height: int, width: int) -> Image.Image:
    """Smooth and sharp structure at every scale, as photographs have."""
    chance = np.random.default_rng(0)
    layers = [
        np.asarray(
            Image.fromarray(chance.integers(0, 256, (height // cell + 1, width // cell + 1, 3), dtype=np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            float,
        )
        for cell in (4, 16, 64)
    ]
    return Image.fromarray(np.clip(0.15 * layers[0] + 0.25 * layers[1] + 0.6 * layers[2], 0, 255).astype(np.uint8))


def twin(data: bytes, box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    whole = Image.fromarray(decode_image(data))
    return np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC, box=box)).astype(int)


def crop(data: bytes, box: Box, height: int, width: int) -> np.ndarray:
    return decode_crop(data, lambda h, w: box, height, width).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
def test_what_pillow_decodes_is_the_very_pixels(kind: str) -> None:
    data, box = encode(photograph(300, 400), kind, lossless=True), (30, 20, 330, 270)
    np.testing.assert_array_equal(crop(data, box, 100, 120), twin(data, box, 100, 120))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 95}])
def test_a_jpeg_that_shrinks_a_little(options: dict) -> None:
    data = encode(photograph(600, 800), "JPEG", **options)
    for box, size in (
        ((0, 0, 800, 600), (400, 500)),
        ((101, 33, 701, 533), (300, 300)),
        ((5, 5, 205, 205), (256, 256)),
    ):
        difference = np.abs(crop(data, box, *size) - twin(data, box, *size))
        assert difference.max() <= 2 and difference.mean() < 0.6


def test_a_jpeg_that_shrinks_a_lot() -> None:
    data = encode(photograph(1600, 2000), "JPEG")
    for box, size in (((0, 0, 2000, 1600), 256), ((101, 33, 1701, 1533), 224), ((5, 5, 805, 805), 96)):
        difference = np.abs(crop(data, box, size, size) - twin(data, box, size, size))
        assert difference.mean() < 1.5


@pytest.mark.parametrize("width", [2001, 2003, 2007])
def test_a_draft_of_a_picture_whose_sides_no_eight_divides_lies_where_the_picture_lies(width: int) -> None:
    """Smooth, so that what is left of a difference is a shift: the far end is where a wrong scale shows."""
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    data = encode(Image.fromarray(small).resize((width, 1501), Image.Resampling.BICUBIC), "JPEG", quality=95)
    box = (width - 1400, 101, width, 1501)
    difference = np.abs(crop(data, box, 64, 64) - twin(data, box, 64, 64))
    assert difference.mean() < 0.5


def test_a_draft_is_never_below_twice_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *options: object, box: Box) -> Image.Image:
        sizes.append((image.width, (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]))
        return resize(image, size, *options, box=box)

    data = encode(photograph(1000, 1600), "JPEG")
    monkeypatch.setattr(Image.Image, "resize", watched)
    for side in range(20, 260, 13):
        crop(data, (100, 50, 1000, 950), side, side)
    assert {width for width, _, _ in sizes} == {200, 400, 800}
    assert min(min(across, down) for _, across, down in sizes) >= 2


@pytest.mark.parametrize("side", [64, 300])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_are_of_the_upright_picture(orientation: int, side: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = photograph(600, 900)
    rounding = 0.0 if orientation < 5 else 0.2  # rows and columns are resized in the other order
    for kind, most in (("JPEG", 2.0), ("PNG", rounding), ("TIFF", 0.0)):
        data = encode(picture, kind, exif=exif)
        shape = decode_image(data).shape[:2]
        box = (100, 40, 100 + shape[1] // 2, 40 + shape[0] // 2)
        seen: list[tuple[int, int]] = []

        def choose(height: int, width: int, box: Box = box, seen: list = seen) -> Box:
            seen.append((height, width))
            return box

        found = decode_crop(data, choose, side, side + 20).astype(int)
        assert seen == [shape]
        assert np.abs(found - twin(data, box, side, side + 20)).mean() <= most


def test_grey_cmyk_and_damage() -> None:
    picture = photograph(300, 300)
    for mode in ("L", "CMYK"):
        data = encode(picture.convert(mode), "JPEG")
        assert np.abs(crop(data, (0, 0, 300, 300), 200, 200) - twin(data, (0, 0, 300, 300), 200, 200)).mean() < 0.6
    data = encode(picture, "JPEG")
    for size in (30, 290):
        for share in (0.0, 0.01, 0.3, 0.9):
            with pytest.raises(BadImage):
                crop(data[: int(share * len(data))], (0, 0, 300, 300), size, size)
    with pytest.raises(BadImage, match="more than 100 pixels"):
        decode_crop(data, lambda h, w: (0, 0, w, h), 8, 8, max_pixels=100)


def test_random_damage_of_a_jpeg_never_crashes(tmp_path: Path) -> None:
    data, chance = encode(photograph(60, 80), "JPEG"), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in chance.integers(0, len(data), chance.integers(1, 20)):
            damaged[place] = chance.integers(0, 256)
        try:
            found = decode_crop(bytes(damaged), lambda h, w: (0, 0, w, h), 40, 40, max_pixels=1_000_000)
        except BadImage:
            continue
        assert found.shape == (40, 40, 3) and found.dtype == np.uint8


def test_the_augmentation_of_a_file_is_that_of_its_pixels() -> None:
    data = encode(photograph(256, 256), "PNG")
    augment = Augment(random_crop=False, hflip=0.5)  # a window on whole pixels
    for position in range(8):
        options = {"seed": 3, "position": position}
        one, other = augment.apply(data, 64, 64, **options), augment.apply(decode_image(data), 64, 64, **options)
        np.testing.assert_array_equal(one, other)
