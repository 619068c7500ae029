"""An encoded image -> a window of it at the size asked for, doing no more work than that window needs.

    JPEG, shrunk to less than half    libjpeg decodes to 1/2, 1/4 or 1/8 ("draft"), never below twice the size asked for
    JPEG, else                        torchvision decodes, torch resizes: vectorised, and without the interpreter's lock
    all else                          Pillow

All resize with the same antialiased bicubic kernel (a = -0.5). Windows start and end on whole pixels of the stored
picture. The slow twin is a full decode by Pillow and one resize of the same window; `benchmarks/decoding.py` and the
tests state how far the fast ways are from it.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from imagery.decode import FORMATS, MAX_PIXELS, BadImage, as_bad_image, orientation_of, to_rgb, turned

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels."""
DRAFT_KEEPS = 2  # a draft is at least this many times larger than what is asked for
_JPEG_MODES = ("RGB", "L")  # CMYK needs Pillow's colours
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def decode_crop(
    content: bytes, choose: Callable[[int, int], Box], height: int, width: int, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The window that `choose(source height, source width)` gives, upright -> uint8 RGB [height, width, 3].

    Raises `BadImage` for what `decode_image` does.
    """
    with as_bad_image(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise BadImage(f"{image.width} x {image.height} is more than {max_pixels} pixels")
        jpeg = image.format == "JPEG" and image.mode in _JPEG_MODES
        if not jpeg:
            image.load()  # before asking: Pillow turns a TIFF upright itself, and then says so
        orientation = orientation_of(image)
        upright = image.size if orientation not in _SWAPPED else image.size[::-1]
        box = stored_box(choose(upright[1], upright[0]), image.width, image.height, orientation)
        size = (height, width) if orientation not in _SWAPPED else (width, height)
        whole = _whole_pixels(box, image.width, image.height)
        pixels = _crop_jpeg(image, content, whole, size) if jpeg else np.asarray(_resized(to_rgb(image), whole, size))
        return turned(pixels, orientation)


def stored_box(box: Box, width: int, height: int, orientation: int) -> Box:
    """A window of the upright picture as a window of the stored one, which is width x height."""
    left, top, right, bottom = box
    if orientation in _SWAPPED:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def _whole_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The nearest whole pixels, at least one either way."""
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    return left, top, min(max(round(box[2]), left + 1), width), min(max(round(box[3]), top + 1), height)


def _crop_jpeg(image: Image.Image, content: bytes, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    shrink = min((bottom - top) / size[0], (right - left) / size[1]) / DRAFT_KEEPS
    if shrink >= 2:
        full = image.size
        image.draft(None, (int(full[0] / shrink), int(full[1] / shrink)))
        image.load()
        # 1/2, 1/4 or 1/8 of the picture, its last pixel reaching over the edge: 1203 become 301, which are 1204.
        by = round(max(full) / max(image.size))
        return np.asarray(_resized(to_rgb(image), (left / by, top / by, right / by, bottom / by), size))
    # Not `frombuffer` of the bytes themselves: torch wants memory it may write to.
    decoded = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    if decoded.shape[1:] != (image.height, image.width):
        raise BadImage(f"{image.height} x {image.width} by its header, but {tuple(decoded.shape[1:])} decoded")
    window = decoded[None, :, top:bottom, left:right]
    if window.shape[2:] != size:
        window = torch.nn.functional.interpolate(window, size, mode="bicubic", antialias=True)
    return window[0].permute(1, 2, 0).numpy()


def _resized(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    # BICUBIC in Pillow widens its kernel when it shrinks: antialiased, unlike a plain interpolation.
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
