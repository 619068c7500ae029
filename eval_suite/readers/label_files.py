"""Label maps on disk: class numbers, colours, depth, disparity, normals, masks; png, npy, npz or mat."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from common.errors import UserError
from common.recipes import Node
from eval_suite.readers.contracts import IGNORE
from eval_suite.readers.fitting import Fit
from imagery.decode import MAX_PIXELS

KEEP_BYTES = 1 << 30  #: label maps held in memory once decoded
RASTER_FORMATS = ("PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG")


class FileLabels(Node):
    """Where the files of a label lie: a path with `*` for what image and label names share and `{split}`."""

    files: str
    key: str | None = None  #: variable of a .mat or .npz file; needed where there are several


class ClassLabels(FileLabels):
    """Class numbers. `first` is the value of class 0; values below it and those in `ignore` do not count."""

    kind: Literal["classes"]
    classes: int | tuple[str, ...]  #: how many, or their names
    first: int = 0
    ignore: tuple[int, ...] = (IGNORE,)
    colours: dict[str, tuple[int, int, int]] | None = None  #: masks painted in RGB: class name -> colour

    @model_validator(mode="after")
    def _consistent(self) -> "ClassLabels":
        if self.colours is not None and set(self.colours) != set(self.names):
            raise ValueError("colours gives one colour for each of the class names")
        if not 2 <= len(self.names) < IGNORE:
            raise ValueError("a label has 2 to 254 classes")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(str(n) for n in range(self.classes)) if isinstance(self.classes, int) else self.classes

    def decode(self, path: Path) -> np.ndarray:
        """uint8 [H, W] with `IGNORE`; UserError for a value that is no class."""
        raw = read_raster(path, self.key)
        if self.colours is not None:
            return from_colours(raw, tuple(self.colours[name] for name in self.names), path)
        return to_classes(raw, len(self.names), path, first=self.first, ignore=self.ignore)


class DepthLabels(FileLabels):
    """Metres = scale x value, or scale / value for disparity; `invalid` values and everything not above 0 count out."""

    kind: Literal["depth", "disparity"]
    scale: float = Field(default=1.0, gt=0)
    invalid: tuple[float, ...] = (0.0,)

    def decode(self, path: Path) -> np.ndarray:
        """float32 metres [H, W], 0 where invalid."""
        raw = read_raster(path, self.key)
        if raw.ndim != 2:
            raise UserError(f"{path} has shape {raw.shape}; a depth map has one channel")
        values = raw.astype(np.float64)
        valid = np.isfinite(values) & (values > 0) & ~np.isin(values, self.invalid)
        safe = np.where(valid, values, 1.0)
        metres = self.scale / safe if self.kind == "disparity" else self.scale * safe
        return np.where(valid, metres, 0.0).astype(np.float32)


class NormalLabels(FileLabels):
    """Unit vectors: RGB bytes n = 2 v / 255 - 1, or floats as they are; the zero vector does not count."""

    kind: Literal["normals"]

    def decode(self, path: Path) -> np.ndarray:
        """float32 [H, W, 3], 0 where invalid."""
        return to_normals(read_raster(path, self.key), path)


class MaskLabels(FileLabels):
    """Salient, boundary, foreground or not: above `threshold` of the full range (255, or 1 for floats)."""

    kind: Literal["mask"]
    threshold: float = Field(default=0.5, ge=0, lt=1)

    def decode(self, path: Path) -> np.ndarray:
        """uint8 [H, W] in {0, 1}."""
        raw = read_raster(path, self.key)
        values = raw.mean(-1) if raw.ndim == 3 else raw
        full = 255.0 if np.issubdtype(raw.dtype, np.integer) and raw.max() > 1 else 1.0
        return (values > self.threshold * full).astype(np.uint8)


class BsdsLabels(FileLabels):
    """BSDS500's .mat files: a pixel is a boundary where at least `annotators` of the people who drew it say so."""

    kind: Literal["bsds"]
    annotators: int = Field(default=1, ge=1)

    def decode(self, path: Path) -> np.ndarray:
        """uint8 [H, W] in {0, 1}; UserError for a file of another kind."""
        drawn = read_mat(path).get("groundTruth")
        if drawn is None:
            raise UserError(f"{path} has no groundTruth; it is not of BSDS500")
        people = [np.asarray(one.Boundaries) for one in np.atleast_1d(drawn).ravel()]
        return (np.stack(people).astype(np.int64).sum(0) >= self.annotators).astype(np.uint8)


LabelNode = Annotated[ClassLabels | DepthLabels | NormalLabels | MaskLabels | BsdsLabels, Field(discriminator="kind")]
FILL: Mapping[str, float] = {
    "classes": IGNORE,
    "depth": 0,
    "disparity": 0,
    "normals": 0,
    "mask": IGNORE,
    "bsds": IGNORE,
}


@dataclass
class DecodedMaps:
    """Label maps by row, decoded when asked for and kept: `maps[rows]` [b, h, w] or [b, 3, h, w].

    `decode(row)` gives [H, W] or [H, W, 3] at any size; `same_size(row)` is the photograph's own (height, width), which
    a label must have or be an exact reduction of in aspect.
    """

    decode: Callable[[int], np.ndarray]
    fit: Fit
    fill: float
    names: Callable[[int], str]
    _kept: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _bytes: int = 0

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack([self._fitted(row) for row in rows.tolist()])

    def original(self, row: int) -> Tensor:
        """The label at its own size, [H, W] or [3, H, W]."""
        return _channels_first(self.decode(row))

    def _fitted(self, row: int) -> Tensor:
        if row in self._kept:
            return self._kept[row]
        out = _channels_first(self.fit.labels(self.decode(row), self.fill))
        if self._bytes < KEEP_BYTES:
            self._kept[row] = out
            self._bytes += out.numel() * out.element_size()
        return out


def check_aspect(label: np.ndarray, image: tuple[int, int], path: str) -> None:
    """UserError unless a label map could be the image's: the same size, or the same aspect to within a pixel."""
    height, width = label.shape[:2]
    if abs(height * image[1] - width * image[0]) > max(height, width, *image):
        raise UserError(
            f"{path} is {width}x{height} but its image {image[1]}x{image[0]}; "
            "they do not belong together, or one was rotated"
        )


def read_raster(path: Path, key: str | None = None) -> np.ndarray:
    """Numbers of a label file as they are stored: palette and 16-bit PNG untouched, .npy, .npz, .mat by variable."""
    try:
        suffix = path.suffix.lower()
        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[_variable(list(arrays.files), key, path)]
        if suffix == ".mat":
            variables = read_mat(path)
            return np.asarray(variables[_variable(list(variables), key, path)])
        return _read_picture(path)
    except UserError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise UserError(f"{path} cannot be read as a label map ({error}); fetch it again") from error


def read_mat(path: Path) -> dict[str, Any]:
    """Variables of a MATLAB file (level 5), structs as objects; UserError where it is not one."""
    from scipy.io import loadmat

    try:
        found = loadmat(path, squeeze_me=True, struct_as_record=False)
    except Exception as error:
        raise UserError(f"{path} is no MATLAB file this can read ({error})") from error
    return {name: value for name, value in found.items() if not name.startswith("__")}


def to_classes(
    raw: np.ndarray, classes: int, path: Path | str, *, first: int = 0, ignore: tuple[int, ...] = (IGNORE,)
) -> np.ndarray:
    """Stored values [H, W] -> uint8 classes with `IGNORE`; UserError names a value that is none."""
    if raw.ndim != 2:
        raise UserError(f"{path} has shape {raw.shape}; a class map has one channel (for painted masks give colours)")
    values = raw.astype(np.int64)
    out = values - first
    void = np.isin(values, ignore) | (out < 0)
    if (wrong := out[~void & (out >= classes)]).size:
        raise UserError(
            f"{path} holds the value {int(wrong.max()) + first}, but the last of {classes} classes is "
            f"{classes - 1 + first}; set the class count, or list the value under ignore"
        )
    return np.where(void, IGNORE, out).astype(np.uint8)


def from_colours(raw: np.ndarray, colours: tuple[tuple[int, int, int], ...], path: Path | str) -> np.ndarray:
    """RGB masks [H, W, 3] -> class numbers; colours that are no class do not count."""
    if raw.ndim != 3 or raw.shape[2] < 3:
        raise UserError(f"{path} is not painted in RGB; leave colours out to read class numbers")
    out = np.full(raw.shape[:2], IGNORE, dtype=np.uint8)
    for number, colour in enumerate(colours):
        out[(raw[..., :3] == np.array(colour)).all(-1)] = number
    return out


def to_normals(raw: np.ndarray, path: Path | str) -> np.ndarray:
    """Bytes or floats [H, W, 3] -> unit vectors float32, 0 where there is none."""
    if raw.ndim != 3 or raw.shape[2] < 3:
        raise UserError(f"{path} has shape {raw.shape}; normals have three channels")
    vectors = raw[..., :3].astype(np.float32)
    if np.issubdtype(raw.dtype, np.integer):
        valid = (raw[..., :3] > 0).any(-1, keepdims=True)  # black is "no normal", not (-1, -1, -1)
        vectors = np.where(valid, 2.0 * vectors / 255.0 - 1.0, 0.0)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 1e-3, vectors / np.maximum(length, 1e-3), 0.0).astype(np.float32)


def _read_picture(path: Path) -> np.ndarray:
    with Image.open(path, formats=RASTER_FORMATS) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise UserError(f"{path} has {picture.width}x{picture.height} pixels, more than a label map should")
        return np.asarray(picture)  # no convert: a palette index is the class


def _variable(names: list[str], key: str | None, path: Path) -> str:
    if key is not None and key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    raise UserError(f"{path} holds {', '.join(names) or 'nothing'}; name the right one with `key`")


def _channels_first(values: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor
