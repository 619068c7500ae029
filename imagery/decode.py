"""Untrusted bytes -> RGB pixels. Whatever is wrong with a file, the answer is `BadImage`, never a crash or a guess.

Only raster formats that Pillow decodes in-process are accepted: EPS and friends start an outside program. Colour
profiles are ignored (as every training pipeline in the field does); transparency is laid over white.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

# Pillow's own limit, a quarter of a gigabyte as RGB: beyond it a small file is more likely a bomb than a photograph.
MAX_PIXELS = 89_478_485
MAX_FILE_BYTES = 4 * MAX_PIXELS
# Suffix -> Pillow's name of the format; a phone's .mpo is a JPEG with more pictures behind it. The last two are parts
# that Pillow can be built without.
_KNOWN = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **{".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"},
    **(dict.fromkeys((".avif", ".avifs"), "AVIF") if features.check("avif") else {}),
    **(dict.fromkeys((".jp2", ".j2k", ".jpx", ".jpf"), "JPEG2000") if features.check("jpg_2000") else {}),
}
FORMATS = tuple(sorted(set(_KNOWN.values())))
SUFFIXES = frozenset(_KNOWN)
_NOT_READ = """
    avif avifs jp2 j2k jpx jpf heic heif hif jxl jxr psd psb svg eps ai pdf tga ico icns exr hdr pfm xcf
    dng cr2 cr3 nef arw orf rw2 raf raw dds qoi
"""  # endings of pictures that are said to be pictures when they are left out

# Damaged metadata of an otherwise good image: on a million files from the web that is a flood nobody can act on.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImage(Exception):
    """This image cannot be used; the message says why. Streams replace and count it."""


def decode_image(data: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one image file, first frame, upright -> uint8 RGB [H, W, 3].

    `data` is the file's content or its path. Greyscale, palette, CMYK, 16-bit and transparent images become 8-bit RGB.
    Raises `BadImage` for anything that is not a complete image of at most `max_pixels`.
    """
    content = read_file(data) if isinstance(data, Path) else data
    with as_bad_image(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise BadImage(f"{image.width} x {image.height} is more than {max_pixels} pixels")
        image.load()
        # Asked after loading: Pillow turns a TIFF upright itself, and then says so.
        return np.ascontiguousarray(turned(np.array(to_rgb(image)), orientation_of(image)))


@contextmanager
def as_bad_image() -> Iterator[None]:
    """Whatever decoding raises becomes BadImage: on damaged files that is nearly every exception there is."""
    try:
        yield
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # Pillow's words have a memory address in them, of no use to anyone
        raise BadImage("UnidentifiedImageError: no image of a format that is read") from error
    except Exception as error:  # MemoryError too
        raise BadImage(f"{type(error).__name__}: {error}") from error


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image: a known suffix, and not hidden (as macOS' "._" twins are)."""
    return why_no_image(name) is None


def why_no_image(name: str) -> str | None:
    """Why a file of this name does not count as an image; None if it does."""
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return "hidden files"
    if suffix in SUFFIXES:
        return None
    if suffix[1:] in _NOT_READ.split():
        return f"{suffix} pictures, which are not read: convert them to JPEG or PNG"
    return f"{suffix} files, which are no images" if suffix else "files whose name has no ending"


def read_file(path: Path) -> bytes:
    """The bytes of an image file; BadImage for a missing or oversized one and for what only looks like a file."""
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise BadImage("no such file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadImage(f"larger than {MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise BadImage(str(error) or type(error).__name__) from error


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8; a damaged EXIF block says nothing about the pixels, so it counts as upright."""
    try:
        found = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1
    return found if 1 <= found <= 8 else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, 3] as stored -> upright (CIPA DC-008, 4.6.4)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::down, ::across]


def to_rgb(image: Image.Image) -> Image.Image:
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
