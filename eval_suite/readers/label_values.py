"""From stored numbers to labels: classes, colours, depth, unit vectors, masks.

The scale and the "nothing here" code come from the type of the file or from the recipe, never from the values of one
file. Values that do not fit what the type or the recipe says are refused, with the field that would settle them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from eval_suite.readers.contracts import IGNORE
from eval_suite.readers.rasters import Raster

Where = Path | str
SHORTEST, LONGEST = 0.1, 1.25  #: lengths between which a stored normal still says a direction
UNIT_SHARE = 0.9  #: of the normals of a map that have length 1 to within a tenth


def to_classes(
    raster: Raster, classes: int, where: Where, *, first: int = 0, ignore: Sequence[int] = (IGNORE,)
) -> np.ndarray:
    """Stored numbers [H, W] -> uint8 classes with `IGNORE`; UserError names a value that is no class.

    `first` is the value of class 0; values from 0 up to it and those in `ignore` do not count.
    """
    check_class_range(classes, first, ignore)
    if raster.lossy:
        raise UserError(f"{where} is a JPEG, which changes numbers: it cannot hold classes; save the labels as PNG")
    values = _whole(raster.values, where)
    if values.ndim != 2:
        raise UserError(
            f"{where} has shape {values.shape}; a class map has one channel (for painted masks give colours)"
        )
    void = np.isin(values, list(ignore)) | ((values >= 0) & (values < first))
    wrong = values[~void & ((values < first) | (values - first >= classes))]
    if wrong.size:
        raise UserError(
            f"{where} holds the value {int(wrong[np.abs(wrong).argmax()])}, but the classes are {first} to "
            f"{classes - 1 + first}; set the class count, or list the value under ignore"
        )
    return np.where(void, IGNORE, values - first).astype(np.uint8)


def check_class_range(classes: int, first: int = 0, ignore: Sequence[int] = ()) -> None:
    """UserError where class numbers would meet `IGNORE`, the end of uint8, or a value that is to be left out."""
    if not 2 <= classes <= IGNORE:
        raise UserError(
            f"{classes} classes: a label map has 2 to {IGNORE} (its last number means: does not count); "
            "merge or leave out the rarest and number the rest again"
        )
    if meeting := sorted(value for value in ignore if first <= value < first + classes):
        raise UserError(f"the value {meeting[0]} is a class and listed under ignore; change first, classes or ignore")


def from_colours(
    raster: Raster, colours: Sequence[tuple[int, int, int]], where: Where, *, others: bool = False
) -> np.ndarray:
    """RGB masks [H, W, 3] -> class numbers; other colours do not count where `others`, else they are refused."""
    values = raster.values
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype != np.uint8:
        raise UserError(f"{where} is not painted in RGB; leave colours out to read class numbers")
    if raster.lossy:
        raise UserError(f"{where} is a JPEG, which changes colours: it cannot hold classes; save the labels as PNG")
    out = np.full(values.shape[:2], IGNORE, dtype=np.uint8)
    for number, colour in enumerate(colours):
        out[(values == np.array(colour)).all(-1)] = number
    if not others and (out == IGNORE).any():
        stray = tuple(values[out == IGNORE][0].tolist())
        raise UserError(f"{where} holds the colour {stray}, which is no class; add it, or say other_colours: ignore")
    return out


def to_depth(
    raster: Raster, where: Where, *, scale: float | None, invalid: Sequence[float] = (0.0,), disparity: bool = False
) -> np.ndarray:
    """Stored numbers [H, W] -> float32 metres, 0 where invalid: scale x value, or scale / value for disparity.

    Without a scale floats are metres; integers are refused, for nothing says what one of them is.
    """
    values = raster.values
    if values.ndim != 2 or values.dtype.kind not in "fiu" or raster.palette:
        raise UserError(f"{where} has shape {values.shape} of {values.dtype}; a depth map is one channel of numbers")
    if scale is None and (disparity or values.dtype.kind != "f"):
        raise UserError(f"{where} holds {values.dtype}, and nothing says how many metres one is; set scale")
    values = values.astype(np.float64)
    valid = np.isfinite(values) & (values > 0) & ~np.isin(values, list(invalid))
    safe = np.where(valid, values, 1.0)
    factor = 1.0 if scale is None else scale
    return np.where(valid, factor / safe if disparity else factor * safe, 0.0).astype(np.float32)


def to_normals(
    raster: Raster,
    where: Where,
    *,
    range: tuple[float, float] | None = None,
    ignore: Sequence[Sequence[float]] = (),
) -> np.ndarray:
    """Numbers [H, W, 3] -> unit vectors float32, 0 where there is none.

    `range` are the stored values of -1 and +1; by default all that the type holds for unsigned integers (0 to 255, 0 to
    65535), and -1 to 1 for floats. No normal: the zero vector as the type can write it (127 or 128 in bytes), the
    lowest value in all channels (black), NaN, and the triples in `ignore`. UserError where the others are not nearly
    all of length 1.
    """
    values = raster.values
    if values.ndim != 3 or values.shape[2] != 3:
        raise UserError(f"{where} has shape {values.shape}; normals have three channels")
    low, high = range or ((0.0, float(raster.full)) if raster.full else _normal_range(values.dtype, where))
    stored = values.astype(np.float64)
    vectors = 2.0 * (stored - low) / (high - low) - 1.0
    length = np.linalg.norm(vectors, axis=-1)
    black = (stored == low).all(-1) & (low != -1)
    told = np.isfinite(length) & ~black & (length > SHORTEST)
    for triple in ignore:
        told &= (stored != np.asarray(triple)).any(-1)
    if told.any() and np.mean(np.abs(length[told] - 1.0) < 0.1) < UNIT_SHARE:
        odd = values[told][np.abs(length[told] - 1.0).argmax()].tolist()
        raise UserError(
            f"{where} read with -1 at {low:g} and +1 at {high:g} is not of unit vectors (e.g. {odd}); "
            "set range, or list what means no normal under ignore"
        )
    told &= length < LONGEST
    unit = np.where(told[..., None], vectors, 0.0) / np.where(told, length, 1.0)[..., None]
    return unit.astype(np.float32)


def to_mask(
    raster: Raster,
    where: Where,
    *,
    threshold: float = 0.5,
    full: float | None = None,
    foreground: Sequence[int] | str | None = None,
    ignore: Sequence[int] = (),
    channel: str | None = None,
) -> np.ndarray:
    """Stored numbers -> uint8 [H, W] in {0, 1, `IGNORE`}.

    Graded files: 1 above `threshold` of the full value, which is `full` or the type's own (True, 255, 65535, 1.0).
    Files of numbers without a scale: 1 for those in `foreground`, or for all but 0 ("nonzero").
    """
    values = _one_channel(raster, where, channel)
    void = np.isin(values, list(ignore)) if ignore else np.zeros(values.shape, dtype=bool)
    if foreground is not None:
        numbers = _whole(values, where)
        if raster.lossy:
            raise UserError(f"{where} is a JPEG, which changes numbers; save it as PNG, or say full instead")
        marked = numbers != 0 if isinstance(foreground, str) else np.isin(numbers, list(foreground))
    else:
        marked = _graded(raster, np.where(void, values.dtype.type(0), values), where, threshold, full)
    return np.where(void, IGNORE, marked).astype(np.uint8)


def _graded(raster: Raster, values: np.ndarray, where: Where, threshold: float, full: float | None) -> np.ndarray:
    if raster.palette:
        raise UserError(f"{where} holds palette numbers, which have no scale; say foreground: nonzero, or [numbers]")
    most = full or raster.full or _full_range(values.dtype, where)
    if not np.isfinite(values).all() or (values < 0).any() or (values > most).any():
        raise UserError(
            f"{where} holds values from {values.min():g} to {values.max():g}, outside 0 to {most:g}; set full"
        )
    marked = values.astype(np.float64) > threshold * most
    if full is None and values.dtype.kind == "u" and values.any() and not marked.any():
        raise UserError(
            f"{where} holds nothing above {int(values.max())} of {most:g}: if that is foreground say full: "
            f"{int(values.max())}, or foreground: nonzero; if it is a residue say full: {most:g}"
        )
    return marked


def _one_channel(raster: Raster, where: Where, channel: str | None) -> np.ndarray:
    """[H, W] of a mask: the only channel, three equal ones, or the one that the recipe names."""
    values = raster.values
    if values.ndim == 2:
        if channel == "alpha":
            raise UserError(f"{where} has no alpha channel; leave `channel` out")
        return values
    channels = values.shape[2] if values.ndim == 3 else 0
    if channels in (2, 4):
        if channel is None:
            raise UserError(f"{where} has an alpha channel; say which one is the mask: channel: alpha, or grey")
        values, alpha = values[..., :-1], values[..., -1]
        if channel == "alpha":
            return alpha
    elif channels not in (1, 3) or channel == "alpha":
        raise UserError(f"{where} has shape {values.shape}; a mask has one channel, three equal ones, or alpha")
    if (values != values[..., :1]).any():
        raise UserError(f"{where} is painted in colours; read it with kind: classes and colours")
    return values[..., 0]


def _full_range(dtype: np.dtype, where: Where) -> float:
    if dtype.kind in "bf":
        return 1.0
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return float(np.iinfo(dtype).max)
    raise UserError(f"{where} holds {dtype}, which has no natural range; set full, or foreground")


def _normal_range(dtype: np.dtype, where: Where) -> tuple[float, float]:
    if dtype.kind == "f":
        return -1.0, 1.0
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return 0.0, float(np.iinfo(dtype).max)
    raise UserError(f"{where} holds {dtype}, which has no natural range for normals; set range: [value of -1, of +1]")


def _whole(values: np.ndarray, where: Where) -> np.ndarray:
    """Numbers as int64; UserError for fractions, NaN and what is no number."""
    if values.dtype.kind not in "biuf":
        raise UserError(f"{where} holds {values.dtype}, not numbers")
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise UserError(f"{where} holds fractions or NaN, which are no class numbers; was it interpolated? use nearest")
    if values.size and (float(values.min()) < -(2**53) or float(values.max()) > 2**53):
        raise UserError(f"{where} holds values beyond 2^53, which are no class numbers")
    return values.astype(np.int64)
