"""COCO JSON: instances, captions, keypoints and panoptic maps, as downloaded."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as coco_masks
from pydantic import Field, model_validator

from common.errors import UserError
from eval_suite.readers.captions import captioned
from eval_suite.readers.contracts import (
    IGNORE,
    TEST,
    TRAIN,
    CaptionedImages,
    DenseImages,
    InstanceImages,
    InstanceObject,
    KeypointImages,
    KeypointObject,
    LabelledData,
)
from eval_suite.readers.image_files import FileImages
from eval_suite.readers.label_files import FILL, DecodedMaps, read_raster
from eval_suite.readers.nodes import FileReaderNode, existing_file, rows_of, split_of
from eval_suite.readers.rle import decode_rle


class CocoNode(FileReaderNode):
    """COCO-format JSON beside a folder of images; each file is optional and may hold `{split}`.

    With instances the label `instances` says which of the categories covers a pixel (0 is background, smaller objects
    lie over larger ones, crowds do not count); with panoptic the label `panoptic` says which of all categories. Objects
    with boxes and masks (`instances`) are at the photographs' own size.
    """

    reader: Literal["coco"]
    images: str = "{split}"  #: folder under root
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "train2017", TEST: "val2017"})
    instances: str | None = None  #: e.g. annotations/instances_{split}.json
    captions: str | None = None
    keypoints: str | None = None
    panoptic: str | None = None  #: the JSON; its PNGs lie in the folder of the same name
    panoptic_maps: str | None = None  #: folder of the PNGs, where it is another
    every: int | None = Field(default=None, ge=2)  #: one file for both splits: each n-th image is a test image

    @model_validator(mode="after")
    def _something(self) -> "CocoNode":
        if not any((self.instances, self.captions, self.keypoints, self.panoptic)):
            raise ValueError("name at least one of instances, captions, keypoints, panoptic")
        return self

    def open(self, name: str) -> "CocoData":
        self.folder(name)
        return CocoData(name, self)


class CocoData(LabelledData):
    """What the JSON files of one data set say."""

    def __init__(self, name: str, node: CocoNode) -> None:
        self.name = name
        self.node = node
        self._read: dict[Path, dict[str, Any]] = {}

    def captions(self, split: str) -> CaptionedImages:
        if self.node.captions is None:
            self._missing("captions", split)
        data = self._json(self.node.captions, split)
        texts: dict[int, list[str]] = {}
        for note in data["annotations"]:
            texts.setdefault(note["image_id"], []).append(note["caption"].strip())
        images = [image for image in self._images(data, split) if image["id"] in texts]
        files = self._files(images, split)
        return captioned(self.name, files, [texts[image["id"]] for image in images], self.node.fitting)

    def dense(self, split: str) -> DenseImages:
        if self.node.panoptic is not None:
            return self._panoptic(split)
        if self.node.instances is None:
            self._missing("label maps", split)
        data = self._json(self.node.instances, split)
        images = self._images(data, split)
        notes = _by_image(data["annotations"])
        number = {category["id"]: at for at, category in enumerate(data["categories"], 1)}
        source = FileImages(self.name, self._files(images, split), self.node.fitting)

        def decode(row: int) -> np.ndarray:
            return paint_instances(images[row], notes.get(images[row]["id"], []), number)

        maps = DecodedMaps(decode, self.node.fitting, IGNORE, source.name_of)
        names = ("background", *(category["name"] for category in data["categories"]))
        return DenseImages(source, rows_of(len(source)), {"instances": maps}, {"instances": names}, {})

    def instances(self, split: str) -> InstanceImages:
        """Boxes and masks of every annotation, crowds marked; an image without any has an empty list."""
        if self.node.instances is None:
            self._missing("objects with masks", split)
        data = self._json(self.node.instances, split)
        images = self._images(data, split)
        notes = _by_image(data["annotations"])
        number = {category["id"]: at for at, category in enumerate(data["categories"])}
        source = FileImages(self.name, self._files(images, split), self.node.fitting)
        objects = [
            [_instance(note, number, *_size(image, source, row)) for note in notes.get(image["id"], [])]
            for row, image in enumerate(images)
        ]
        return InstanceImages(source, objects, tuple(category["name"] for category in data["categories"]))

    def keypoints(self, split: str) -> KeypointImages:
        if self.node.keypoints is None:
            self._missing("keypoints", split)
        data = self._json(self.node.keypoints, split)
        images = self._images(data, split)
        source = FileImages(self.name, self._files(images, split), self.node.fitting)
        row_of = {image["id"]: row for row, image in enumerate(images)}
        categories = {category["id"]: category for category in data["categories"]}
        objects = []
        for note in data["annotations"]:
            if note["image_id"] in row_of and not note.get("iscrowd") and note.get("keypoints"):
                row = row_of[note["image_id"]]
                objects += self._object(note, categories[note["category_id"]], row, images[row], source)
        return KeypointImages(source, objects, self.node.fitting.size)

    def _object(
        self,
        note: Mapping[str, Any],
        category: Mapping[str, Any],
        row: int,
        image: Mapping[str, Any],
        source: FileImages,
    ) -> list[KeypointObject]:
        """An annotation with at least one visible point (v = 2), in pixels of the fitted image."""
        move = self.node.fitting.affine(*_size(image, source, row))
        triples = np.asarray(note["keypoints"], dtype=np.float64).reshape(-1, 3)
        points = {}
        for name, (x, y, seen) in zip(category["keypoints"], triples.tolist(), strict=False):
            if seen >= 2:
                points[name] = (x * move.scale_x + move.shift_x, y * move.scale_y + move.shift_y)
        if not points:
            return []
        x, y, width, height = (float(side) for side in note["bbox"])
        box = (
            x * move.scale_x + move.shift_x,
            y * move.scale_y + move.shift_y,
            (x + width) * move.scale_x + move.shift_x,
            (y + height) * move.scale_y + move.shift_y,
        )
        return [KeypointObject(row, category["name"], points, box)]

    def _panoptic(self, split: str) -> DenseImages:
        data = self._json(str(self.node.panoptic), split)
        notes = {note["image_id"]: note for note in data["annotations"]}
        images = [image for image in self._images(data, split) if image["id"] in notes]
        source = FileImages(self.name, self._files(images, split), self.node.fitting)
        number = {category["id"]: at for at, category in enumerate(data["categories"])}
        folder = self._path(self.node.panoptic_maps or str(self.node.panoptic).removesuffix(".json"), split)

        def path(row: int) -> Path:
            return folder / notes[images[row]["id"]]["file_name"]

        def decode(row: int) -> np.ndarray:
            return paint_panoptic(read_raster(path(row)), notes[images[row]["id"]]["segments_info"], number)

        maps = DecodedMaps(decode, self.node.fitting, FILL["classes"], lambda row: str(path(row)))
        names = tuple(category["name"] for category in data["categories"])
        return DenseImages(source, rows_of(len(source)), {"panoptic": maps}, {"panoptic": names}, {})

    def _images(self, data: Mapping[str, Any], split: str) -> list[dict[str, Any]]:
        images = sorted(data["images"], key=lambda image: image["id"])
        if self.node.every is not None:
            last = self.node.every - 1
            images = [image for at, image in enumerate(images) if (at % self.node.every == last) == (split == TEST)]
        return [images[at] for at in self.node.kept(len(images), split)]

    def _files(self, images: Sequence[Mapping[str, Any]], split: str) -> list[Path]:
        folder = self._path(self.node.images, split)
        return [folder / image["file_name"] for image in images]

    def _json(self, pattern: str, split: str) -> dict[str, Any]:
        path = self._path(pattern, split)
        if path not in self._read:
            self._read[path] = read_coco(path)
        return self._read[path]

    def _path(self, pattern: str, split: str) -> Path:
        return self.node.folder(self.name) / pattern.replace("{split}", split_of(split, self.node.splits))


def read_coco(path: Path) -> dict[str, Any]:
    """A COCO-format JSON; UserError where it lacks images or annotations."""
    try:
        data = json.loads(existing_file(path, "the COCO annotations").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise UserError(f"{path} is not COCO annotations: it lacks images or annotations")
    return data


def paint_instances(
    image: Mapping[str, Any], notes: Sequence[Mapping[str, Any]], number: Mapping[int, int]
) -> np.ndarray:
    """Class of every pixel, uint8 [H, W]: the smallest object over it, 0 for none, `IGNORE` for crowds."""
    out = np.zeros((image["height"], image["width"]), dtype=np.uint8)
    for note in sorted(notes, key=lambda note: -note["area"]):
        mask = instance_mask(note["segmentation"], image["height"], image["width"])
        out[mask] = IGNORE if note.get("iscrowd") else number[note["category_id"]]
    return out


def instance_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons (filled by COCO's own tool), or a run-length code (plain or packed), as bool [height, width]."""
    if isinstance(segmentation, Mapping):
        return decode_rle(segmentation["counts"], *segmentation["size"])
    polygons = [[float(side) for side in polygon] for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(polygons, height, width))).astype(bool)


def _instance(note: Mapping[str, Any], number: Mapping[int, int], height: int, width: int) -> InstanceObject:
    if missing := {"bbox", "area", "segmentation", "category_id"} - note.keys():
        raise UserError(f"an annotation of image {note['image_id']} has no {', '.join(sorted(missing))}")
    if note["category_id"] not in number:
        raise UserError(
            f"an annotation of image {note['image_id']} is of category {note['category_id']}, which is not listed"
        )
    x, y, across, down = (float(side) for side in note["bbox"])

    def mask() -> torch.Tensor:
        found = instance_mask(note["segmentation"], height, width)
        if found.shape != (height, width):
            raise UserError(
                f"image {note['image_id']} is {width}x{height} and a mask of it {found.shape[1]}x{found.shape[0]}; "
                "they do not belong together"
            )
        return torch.from_numpy(found)

    box = (x, y, x + across, y + down)
    return InstanceObject(number[note["category_id"]], box, float(note["area"]), bool(note.get("iscrowd")), mask)


def paint_panoptic(raw: np.ndarray, segments: Sequence[Mapping[str, Any]], number: Mapping[int, int]) -> np.ndarray:
    """RGB-coded segment ids (R + 256 G + 65536 B) -> class uint8 [H, W]; crowds and id 0 are `IGNORE`."""
    ids = raw[..., :3].astype(np.int64) @ np.array([1, 256, 65536])
    out = np.full(ids.shape, IGNORE, dtype=np.uint8)
    for segment in segments:
        if not segment.get("iscrowd"):
            out[ids == segment["id"]] = number[segment["category_id"]]
    return out


def _by_image(notes: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    out: dict[int, list[Mapping[str, Any]]] = {}
    for note in notes:
        out.setdefault(note["image_id"], []).append(note)
    return out


def _size(image: Mapping[str, Any], source: FileImages, row: int) -> tuple[int, int]:
    """(height, width), from the JSON where it says."""
    if "height" in image and "width" in image:
        return int(image["height"]), int(image["width"])
    return source.size_of(row)
