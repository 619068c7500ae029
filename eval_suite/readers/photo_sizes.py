"""The one place where a label meets its photograph: sizes, what an orientation tag does to them, and coordinates.

A label made on the stored pixels of a photograph that its tag turns lies over the wrong pixels. Sizes tell it where the
sides differ; where they cannot tell (square, or turned by 180 degrees, or mirrored) the recipe has to:
`orientation: upright` (labels belong to the photograph as viewers show it) or `stored`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from common.errors import UserError
from imagery.decode import FORMATS

Orientation = Literal["upright", "stored"]
QUARTER_TURNS = (5, 6, 7, 8)  #: EXIF orientations that swap width and height
#: EXIF orientation -> what brings the upright picture back to how it is stored
_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class PhotoSize:
    """(height, width) of a photograph as it is read, and what its orientation tag and the recipe say."""

    height: int
    width: int
    tag: int = 1  #: EXIF orientation, 1 where it stands upright
    told: Orientation | None = None  #: what the recipe says labels belong to
    exact: bool = False  #: whether a label of the same aspect in another size is refused too
    slack: float = 0.0  #: share by which the aspects may differ, beside the pixel that rounding costs

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def photo_size(file: Path | bytes, told: Orientation | None = None) -> PhotoSize:
    """From the header alone; raises what Pillow raises where the file is no image."""
    with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as picture:
        width, height = picture.size
        tag = _tag(picture)
        turned = tag in QUARTER_TURNS
        upright = picture.format == "TIFF"  # Pillow reports a TIFF's size as it will be once turned
    if turned and upright == (told == "stored"):
        return PhotoSize(width, height, tag, told)
    return PhotoSize(height, width, tag, told)


def as_stored(pixels: np.ndarray, file: Path | bytes) -> np.ndarray:
    """Upright pixels [H, W, 3] -> as the file stores them, its orientation tag undone."""
    with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as picture:
        back = _BACK.get(_tag(picture))
    return pixels if back is None else np.array(Image.fromarray(pixels).transpose(back))


def check_label(shape: Sequence[int], photo: PhotoSize, what: str) -> None:
    """UserError unless a label map [H, W, ...] has the photograph's aspect to within a pixel, or its size if exact."""
    size = (int(shape[0]), int(shape[1]))
    seen, turned = photo.size, photo.tag in QUARTER_TURNS and photo.told is None
    if not _fits(size, photo):
        swapped = replace(photo, height=photo.width, width=photo.height)
        if turned and _fits(size, swapped):
            raise UserError(
                f"{what} is {_shown(size)} and its image {_shown(seen)} once turned as its orientation tag {photo.tag} "
                "says: the label was made on the stored pixels; set orientation: stored, or turn the label"
            )
        raise UserError(
            f"{what} is {_shown(size)} but its image {_shown(seen)}; "
            "they do not belong together, or one was rotated or resized"
        )
    ambiguous = photo.tag != 1 and (not turned or _fits(size, replace(photo, height=photo.width, width=photo.height)))
    if ambiguous and photo.told is None:
        raise UserError(
            f"the image of {what} has the orientation tag {photo.tag}, and its size does not tell whether the label "
            "was made before or after turning; set orientation: upright or stored"
        )


def check_coordinates(photo: PhotoSize, what: str) -> None:
    """UserError where an orientation tag turns the photograph and nothing says whether places in it knew of that."""
    if photo.tag != 1 and photo.told is None:
        raise UserError(
            f"the image of {what} has the orientation tag {photo.tag}, and nothing tells whether the places in it are "
            "those before or after turning; set orientation: upright or stored"
        )


def check_box(box: Sequence[float], photo: PhotoSize, what: str, hint: str = "") -> None:
    """UserError unless a box x0, y0, x1, y1 is finite, not inside out, and within the photograph."""
    x0, y0, x1, y1 = box
    if not np.isfinite(box).all() or x1 < x0 or y1 < y0:
        raise UserError(f"{what}: the box {_numbers(box)} is not one{hint}")
    check_points([(x0, y0), (x1, y1)], photo, f"{what}: the box {_numbers(box)}", hint)


def check_points(points: Sequence[Sequence[float]], photo: PhotoSize, what: str, hint: str = "") -> None:
    """UserError for a point (x, y) that is not finite or lies outside the photograph by more than annotators' slips."""
    places = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    limit = np.array([photo.width, photo.height])
    slack = np.maximum(2.0, 0.01 * limit)  # outlines along the border are often drawn a little over it
    inside = np.isfinite(places).all(-1) & (places >= -slack).all(-1) & (places <= limit + slack).all(-1)
    if not inside.all():
        x, y = places[~inside][0].tolist()
        raise UserError(
            f"{what} has ({x:g}, {y:g}), outside its image of {_shown(photo.size)}{hint}; correct or clip it"
        )


def _fits(size: tuple[int, int], photo: PhotoSize) -> bool:
    if photo.exact or size == photo.size:
        return size == photo.size
    first, second = size[0] * photo.width, size[1] * photo.height
    return abs(first - second) <= max(*size, *photo.size, photo.slack * max(first, second)) and min(size) > 0


def _tag(picture: Image.Image) -> int:
    """EXIF orientation 1..8; a damaged block says nothing of the pixels, so it counts as upright."""
    try:
        found = int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1
    return found if found in _BACK else 1


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
