"""Decoding of untrusted files: every kind becomes upright 8-bit RGB, everything damaged becomes BadImage."""

import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, flat
from PIL import ExifTags, Image

from imagery.decode import BadImage, decode_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow comments on damage


def noise(height: int = 24, width: int = 40, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_very_pixels(kind: str) -> None:
    np.testing.assert_array_equal(decode_image(encode(noise(), kind)), noise())


def test_a_path_and_its_bytes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(noise()))
    np.testing.assert_array_equal(decode_image(path), decode_image(path.read_bytes()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    # A picture whose upright form has a dark top left corner, stored turned, with the tag that says how.
    upright = np.full((32, 48, 3), 200, np.uint8)
    upright[:16, :16] = 20
    # The standard tells which side of the scene the stored first row and first column are.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),  # first row = right side
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),  # first row = left side
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    decoded = decode_image(encode(np.ascontiguousarray(stored), kind, exif=exif))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 6


def test_a_damaged_exif_block_does_not_cost_the_image() -> None:
    data = encode(flat(90, 16, 16), "JPEG", exif=b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" * 3)
    assert decode_image(data).shape == (16, 16, 3)


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode_image(encode(red, "JPEG", quality=95))
    assert decoded.shape == (16, 16, 3)
    assert decoded[..., 0].min() > 240 and decoded[..., 1:].max() < 15


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_range(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = decode_image(encode(Image.fromarray(ramp), kind))
    np.testing.assert_array_equal(decoded, np.round(ramp / 257)[..., None].repeat(3, axis=2))


def test_16_bit_colour_png_keeps_its_range() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 0) * 4 for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    assert decode_image(png_of(chunks))[0, 0].tolist() == [255, 128, 0]


def test_grey_bilevel_and_palette() -> None:
    assert decode_image(encode(Image.new("L", (4, 4), 77)))[0, 0].tolist() == [77, 77, 77]
    assert decode_image(encode(Image.new("1", (4, 4), 1)))[0, 0].tolist() == [255, 255, 255]
    palette = Image.fromarray(flat(0) + np.array([10, 200, 30], np.uint8)).quantize(4)
    assert decode_image(encode(palette))[0, 0].tolist() == [10, 200, 30]


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[:2, :, 3] = 255, 255  # red above, nothing (a hidden red) below
    decoded = decode_image(encode(Image.fromarray(pixels)))
    assert decoded[0, 0].tolist() == [255, 0, 0] and decoded[3, 0].tolist() == [255, 255, 255]
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert decode_image(encode(palette, transparency=0))[0, 0].tolist() == [255, 255, 255]
    grey = Image.merge("LA", (Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 0)))
    assert decode_image(encode(grey))[0, 0].tolist() == [255, 255, 255]
    keyed = encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    assert decode_image(keyed)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.fromarray(flat(value, 16, 16)) for value in (30, 130, 230)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_allclose(decode_image(data), 30, atol=2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_file_is_bad(kind: str) -> None:
    data = encode(noise(64, 64), kind)
    for share in (0.0, 0.01, 0.1, 0.5, 0.9):
        with pytest.raises(BadImage):
            decode_image(data[: int(share * len(data))])


def test_a_bomb_is_refused_before_its_pixels_exist() -> None:
    # 60000 x 60000 grey would need 10 GB; the file says so in its header and is 100 bytes long.
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    bomb = png_of([(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 60001)), (b"IEND", b"")])
    with pytest.raises(BadImage, match="pixels"):
        decode_image(bomb)
    with pytest.raises(BadImage, match="40 x 24 is more than 959 pixels"):
        decode_image(encode(noise()), max_pixels=959)
    assert decode_image(encode(noise()), max_pixels=960).shape == (24, 40, 3)


def test_formats_that_run_programs_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    postscript = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n({trace}) (w) file closefile\nshowpage\n"
    with pytest.raises(BadImage):
        decode_image(postscript.encode())
    assert not trace.exists()


def test_float_pixels_are_refused_in_words() -> None:
    with pytest.raises(BadImage, match="float"):
        decode_image(encode(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_what_is_no_file_is_bad(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    for path in (tmp_path / "missing.png", tmp_path, tmp_path / "pipe.png"):
        with pytest.raises(BadImage, match="no such file"):
            decode_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_random_damage_never_crashes(kind: str) -> None:
    data = encode(noise(), kind)
    chance = random.Random(kind)
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 20)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            decoded = decode_image(bytes(damaged), max_pixels=1_000_000)
        except BadImage:
            continue
        assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)
