"""Untrusted bytes -> RGB pixels. Whatever is wrong with a file, the answer is `BadImage`, never a crash or a guess.

Only raster formats that Pillow decodes in-process are accepted: EPS and friends start an outside program. Colour
profiles are ignored (as every training pipeline in the field does); transparency is laid over white.
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# Pillow's own limit, a quarter of a gigabyte as RGB: beyond it a small file is more likely a bomb than a photograph.
MAX_PIXELS = 89_478_485
MAX_FILE_BYTES = 4 * MAX_PIXELS
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"))

# Damaged metadata of an otherwise good image: on a million files from the web that is a flood nobody can act on.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# EXIF orientation tag (CIPA DC-008, 4.6.4) -> what turns the stored picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """This image cannot be used; the message says why. Streams replace and count it."""


def decode_image(data: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one image file, first frame, upright -> uint8 RGB [H, W, 3].

    `data` is the file's content or its path. Greyscale, palette, CMYK, 16-bit and transparent images become 8-bit RGB.
    Raises `BadImage` for anything that is not a complete image of at most `max_pixels`.
    """
    try:
        content = read_file(data) if isinstance(data, Path) else data
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise BadImage(f"{image.width} x {image.height} is more than {max_pixels} pixels")
            image.load()
            return np.array(_upright(_to_rgb(image), _orientation(image)))
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # Pillow's words have a memory address in them, of no use to anyone
        raise BadImage("UnidentifiedImageError: no image of a format that is read") from error
    except Exception as error:
        # On damaged files Pillow's decoders raise nearly every exception there is (SyntaxError, struct.error, ...).
        raise BadImage(f"{type(error).__name__}: {error}") from error


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image: a known suffix, and not hidden (as macOS' "._" twins are)."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def read_file(path: Path) -> bytes:
    """The bytes of an image file; BadImage for a missing or oversized one and for what only looks like a file."""
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise BadImage("no such file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadImage(f"larger than {MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(str(error)) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; a damaged EXIF block says nothing about the pixels, so it counts as upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode -> RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_wide_grey(image)
    if image.mode == "F":
        raise BadImage("32-bit float pixels have no fixed range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _from_wide_grey(image: Image.Image) -> Image.Image:
    """16-bit greyscale (modes I;16, I;16B, I) -> RGB; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("32-bit integer pixels have no fixed range")
    grey = ((values + 128) // 257).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
