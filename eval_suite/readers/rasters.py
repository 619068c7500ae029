"""Label files as numbers: what is stored, and what the file's type says of it; png, npy, npz or mat."""

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import UserError
from imagery.decode import MAX_PIXELS

#: magic number, then width, height and the largest value, with comments between them
PGM_HEADER = re.compile(rb"P[25](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)\s")
RASTER_FORMATS = ("PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG")


@dataclass(frozen=True)
class Raster:
    """Numbers [H, W] or [H, W, C] as they are stored. No reading of them may hang on the values of one file."""

    values: np.ndarray
    palette: bool = False  #: the numbers are places in a palette, so they have no scale
    lossy: bool = False  #: JPEG: a number may be off by a few
    full: int | None = None  #: the largest number that the file can hold, where it is not that of the array's type


def read_raster(path: Path, key: str | None = None) -> Raster:
    """A label file: palette and 16-bit PNG untouched, .npy, .npz, .mat by variable; UserError where it cannot be."""
    try:
        suffix = path.suffix.lower()
        if suffix == ".npy":
            return Raster(np.load(path, allow_pickle=False))
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return Raster(arrays[_variable(list(arrays.files), key, path)])
        if suffix == ".mat":
            variables = read_mat(path)
            return Raster(np.asarray(variables[_variable(list(variables), key, path)]))
        return read_picture(path, str(path))
    except UserError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise UserError(f"{path} cannot be read as a label map ({error}); fetch it again") from error


def read_picture(file: Path | bytes, where: str) -> Raster:
    """A picture of labels, turned as its own orientation tag says; UserError names `where`."""
    try:
        # From memory: Pillow maps an uncompressed grey file, and one with an orientation tag then comes out garbled.
        content = file if isinstance(file, bytes) else file.read_bytes()
        with Image.open(BytesIO(content), formats=RASTER_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(f"{where} has {picture.width}x{picture.height} pixels, more than a label map should")
            if (frames := int(getattr(picture, "n_frames", 1))) > 1:
                raise UserError(f"{where} holds {frames} pictures, and a label map is one; split it up")
            full, form = stored_full(picture, content, where), picture.format
            turned = upright(picture)
            # no convert: a palette index is the class
            values = np.asarray(turned)
            if full is not None:
                values = unstretched(values, full)
            return Raster(values, turned.mode.startswith("P"), form == "JPEG", full)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{where} is no {', '.join(RASTER_FORMATS)} file that can be read; save it as PNG") from error
    except Exception as error:
        raise UserError(f"{where} cannot be read as a label map ({error}); fetch it again") from error


def stored_full(picture: Image.Image, content: bytes, where: str) -> int | None:
    """The largest number that a grey file can hold where Pillow stretches it to 255 or 65535: PNG and TIFF of 2 or 4
    bits, PGM with a largest value of its own; else None. UserError for a TIFF that stores white as 0: it is inverted.
    """
    most: int | None = None
    if picture.format == "PNG" and content[25] == 0 and content[24] in (2, 4):  # the header: bit depth, colour type
        most = 2 ** content[24] - 1
    elif picture.format == "TIFF":
        tags: Any = picture.tag_v2  # type: ignore[attr-defined]
        if tags.get(262) == 0 and tags.get(258, (1,))[0] > 1:
            raise UserError(f"{where} is a TIFF that stores white as 0, which turns its numbers around; save it as PNG")
        bits = tags.get(258, (1,))[0]
        most = 2**bits - 1 if tags.get(262) == 1 and bits in (2, 4) else None
    elif picture.format == "PPM" and picture.mode in ("L", "I", "I;16"):
        found = PGM_HEADER.match(content)
        if found is None:
            raise UserError(f"{where} has a PGM header that cannot be read; save it as PNG")
        most = int(found[1])
    return None if most in (None, 255, 65535) else most


def unstretched(values: np.ndarray, full: int) -> np.ndarray:
    """The stored numbers of an array that was stretched from 0 .. `full` to 0 .. 255 or 65535."""
    top = 255 if full < 256 else 65535
    return np.rint(values.astype(np.float64) * full / top).astype(np.uint8 if full < 256 else np.uint16)


def upright(picture: Image.Image) -> Image.Image:
    """A picture as its orientation tag wants it seen. Pillow turns a TIFF by itself and then drops the tag."""
    picture.load()
    return ImageOps.exif_transpose(picture) or picture


def read_mat(path: Path) -> dict[str, Any]:
    """Variables of a MATLAB file (level 5), structs as objects; UserError where it is not one."""
    from scipy.io import loadmat

    try:
        found = loadmat(path, squeeze_me=True, struct_as_record=False)
    except Exception as error:
        raise UserError(f"{path} is no MATLAB file this can read ({error})") from error
    return {name: value for name, value in found.items() if not name.startswith("__")}


def _variable(names: list[str], key: str | None, path: Path) -> str:
    if key is not None and key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    raise UserError(f"{path} holds {', '.join(names) or 'nothing'}; name the right one with `key`")
