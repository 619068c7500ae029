"""COCO's outlines and segment pictures as masks and class maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from common.errors import UserError
from eval_suite.readers.coco_json import CocoFile, Entry
from eval_suite.readers.contracts import IGNORE
from eval_suite.readers.label_values import check_class_range
from eval_suite.readers.photo_sizes import PhotoSize, check_points
from eval_suite.readers.rasters import Raster
from eval_suite.readers.rle import decode_rle


def paint_instances(file: CocoFile, image: Entry, photo: PhotoSize) -> np.ndarray:
    """Class of every pixel, uint8 [H, W]: the smallest object over it, 0 for none, `IGNORE` for crowds."""
    check_class_range(1 + len(file.names()))  # the background is one
    notes = file.notes[image["id"]]
    areas = []
    for note in notes:
        file.need(note, "area", "segmentation")
        areas.append(file.number_in(note, "area", note["area"]))
        if areas[-1] < 0:
            raise UserError(f"{file.where(note)} has the area {areas[-1]:g}; smaller objects lie over larger ones")
    out = np.zeros(photo.size, dtype=np.uint8)
    for at in sorted(range(len(notes)), key=lambda at: -areas[at]):
        note = notes[at]
        number = 1 + file.number(note)
        out[instance_mask(note["segmentation"], photo, file.where(note))] = IGNORE if file.crowd(note) else number
    return out


def instance_mask(segmentation: Any, photo: PhotoSize, where: str) -> np.ndarray:
    """Polygons (filled by COCO's own tool), or a run-length code (plain or packed), as bool [height, width].

    UserError for an object without an outline, which would be background, and for one that is not the photograph's.
    """
    if isinstance(segmentation, Mapping):
        return _run_lengths(segmentation, photo, where)
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        raise UserError(f"{where} has a segmentation that is neither a list of polygons nor run lengths")
    if not segmentation:
        raise UserError(
            f"{where} has a box but no outline, so there is no label map; use it for boxes, or add outlines"
        )
    polygons = [_polygon(part, photo, where) for part in segmentation]
    closed = [polygon for polygon in polygons if len(polygon) >= 6]
    if not closed:
        raise UserError(f"{where} has an outline of fewer than three points; correct it, or take it out")
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(closed, *photo.size))).astype(bool)


def _polygon(part: Sequence[Any], photo: PhotoSize, where: str) -> list[float]:
    try:
        sides = [float(side) for side in part]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} has an outline with {error}") from error
    if len(sides) % 2:
        raise UserError(f"{where} has an outline of {len(sides)} numbers, which are no pairs of x and y")
    check_points(np.reshape(sides, (-1, 2)).tolist(), photo, f"the outline of {where}")
    return sides


def _run_lengths(segmentation: Entry, photo: PhotoSize, where: str) -> np.ndarray:
    try:
        height, width = (int(side) for side in segmentation["size"])
        counts = segmentation["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} has run lengths without size or counts") from error
    if (height, width) != photo.size:
        raise UserError(
            f"{where} has a mask of {width}x{height} on an image of {photo.width}x{photo.height}; "
            "they do not belong together, or one was rotated or resized"
        )
    try:
        return decode_rle(counts, height, width)
    except (UserError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{where}: {error}") from error


def paint_panoptic(file: CocoFile, note: Entry, raster: Raster, where: str) -> np.ndarray:
    """RGB-coded segment ids (R + 256 G + 65536 B) -> class uint8 [H, W]; crowds and id 0 are `IGNORE`."""
    check_class_range(len(file.names()))
    values = raster.values
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype != np.uint8 or raster.lossy:
        raise UserError(f"{where} is no picture of segment ids in RGB (PNG, 8 bits a channel)")
    ids = values.astype(np.int64) @ np.array([1, 256, 65536])
    file.need(note, "segments_info")
    out, left = np.full(ids.shape, IGNORE, dtype=np.uint8), set(np.unique(ids).tolist()) - {0}
    for segment in note["segments_info"]:
        number = file.number(segment)
        if segment.get("id") not in left:
            raise UserError(
                f"{where} does not show segment {segment.get('id')!r} that the JSON names, or names it twice"
            )
        left.remove(segment["id"])
        if not file.crowd(segment):
            out[ids == segment["id"]] = number
    if left:
        raise UserError(f"{where} shows segment {min(left)}, of which the JSON says nothing")
    return out
