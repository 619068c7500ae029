"""Label files as numbers: what is stored, and what the file's type says of it; png, npy, npz or mat."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError
from imagery.decode import MAX_PIXELS

RASTER_FORMATS = ("PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG")


@dataclass(frozen=True)
class Raster:
    """Numbers [H, W] or [H, W, C] as they are stored. No reading of them may hang on the values of one file."""

    values: np.ndarray
    palette: bool = False  #: the numbers are places in a palette, so they have no scale
    lossy: bool = False  #: JPEG: a number may be off by a few


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
            turned = upright(picture)
            # no convert: a palette index is the class
            return Raster(np.asarray(turned), turned.mode.startswith("P"), picture.format == "JPEG")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} cannot be read as a label map ({error}); fetch it again") from error


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
