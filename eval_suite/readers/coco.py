"""COCO JSON: instances, captions, keypoints and panoptic maps, as downloaded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from common.errors import UserError
from eval_suite.readers.captions import caption_text, captioned
from eval_suite.readers.coco_json import CocoFile, Entry, read_coco
from eval_suite.readers.coco_masks import instance_mask, paint_instances, paint_panoptic
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
from eval_suite.readers.label_maps import DecodedMaps
from eval_suite.readers.nodes import SkippingNode, rows_of, split_of
from eval_suite.readers.photo_sizes import PhotoSize, check_box, check_coordinates, check_label, check_points
from eval_suite.readers.rasters import read_raster


class CocoNode(SkippingNode):
    """COCO-format JSON beside a folder of images; each file is optional and may hold `{split}`.

    With instances the label `instances` says which of the categories covers a pixel (0 is background, smaller objects
    lie over larger ones, crowds do not count, an image without annotations is all background); with panoptic the label
    `panoptic` says which of all categories. Objects with boxes and masks (`instances`) are at the photographs' own
    size, which must be the one that the JSON states.
    """

    reader: Literal["coco"]
    images: str = "{split}"  #: folder under root
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "train2017", TEST: "val2017"})
    instances: str | None = None  #: e.g. annotations/instances_{split}.json
    captions: str | None = None  #: e.g. annotations/captions_{split}.json
    keypoints: str | None = None  #: e.g. annotations/person_keypoints_{split}.json
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
    """What the JSON files of one data set say, held against the photographs."""

    def __init__(self, name: str, node: CocoNode) -> None:
        self.name = name
        self.node = node
        self._read: dict[Path, CocoFile] = {}
        self._served: dict[tuple[Path, Path], str] = {}  #: annotations and photographs -> the split they are

    def captions(self, split: str) -> CaptionedImages:
        if self.node.captions is None:
            self._missing("captions", split)
        file = self._file(self.node.captions, split)
        images = [image for image in self._images(file, split) if file.notes[image["id"]]]
        texts = [
            [caption_text(note.get("caption"), file.where(note)) for note in file.notes[image["id"]]]
            for image in images
        ]
        return captioned(self.name, self._paths(images, split), texts, self.node)

    def dense(self, split: str) -> DenseImages:
        if self.node.panoptic is not None:
            return self._panoptic(split)
        if self.node.instances is None:
            self._missing("label maps", split)
        file = self._file(self.node.instances, split)
        images = self._images(file, split)
        source = self.node.photographs(self.name, self._paths(images, split))

        def decode(row: int) -> np.ndarray:
            return paint_instances(file, images[row], self._photo(file, images[row], source, row))

        maps = DecodedMaps(decode, self.node.fitting, IGNORE, source.name_of, source.photo)
        names = ("background", *file.names())
        return DenseImages(source, rows_of(len(source)), {"instances": maps}, {"instances": names}, {})

    def instances(self, split: str) -> InstanceImages:
        """Boxes and masks of every annotation, crowds marked; an image without any has an empty list."""
        if self.node.instances is None:
            self._missing("objects with masks", split)
        file = self._file(self.node.instances, split)
        images = self._images(file, split)
        source = self.node.photographs(self.name, self._paths(images, split))
        objects = []
        for row, image in enumerate(images):
            photo = self._photo(file, image, source, row)
            objects.append([_instance(file, note, photo) for note in file.notes[image["id"]]])
        return InstanceImages(source, objects, file.names())

    def keypoints(self, split: str) -> KeypointImages:
        if self.node.keypoints is None:
            self._missing("keypoints", split)
        file = self._file(self.node.keypoints, split)
        file.names()
        images = self._images(file, split)
        source = self.node.photographs(self.name, self._paths(images, split))
        objects = []
        for row, image in enumerate(images):
            photo = self._photo(file, image, source, row)
            for note in file.notes[image["id"]]:
                if not file.crowd(note):
                    objects += self._object(file, note, row, photo)
        return KeypointImages(source, objects, self.node.fitting.size)

    def _object(self, file: CocoFile, note: Entry, row: int, photo: PhotoSize) -> list[KeypointObject]:
        """An annotation with at least one visible point (v = 2), in pixels of the fitted image."""
        category, where = file.category(note), file.where(note)
        points = _named_points(file, note, category.get("keypoints"))
        if not points:
            return []
        x0, y0, x1, y1 = _box(file, note, photo)
        check_points(list(points.values()), photo, f"{where}: a keypoint")
        move = self.node.fitting.affine(*photo.size)
        corners = move.points(torch.tensor([[x0, y0], [x1, y1]], dtype=torch.float64)).flatten().tolist()
        moved = {
            name: (x * move.scale_x + move.shift_x, y * move.scale_y + move.shift_y) for name, (x, y) in points.items()
        }
        return [KeypointObject(row, category["name"], moved, (corners[0], corners[1], corners[2], corners[3]))]

    def _panoptic(self, split: str) -> DenseImages:
        file = self._file(str(self.node.panoptic), split)
        images, notes = self._images(file, split), []
        if self.node.missing == "skip":
            images = [image for image in images if file.notes[image["id"]]]
        for image in images:
            own = file.notes[image["id"]]
            if len(own) != 1:
                raise UserError(f"{file.path}: image {image['id']!r} has {len(own)} panoptic annotations; it needs one")
            file.need(own[0], "file_name")
            notes.append(own[0])
        source = self.node.photographs(self.name, self._paths(images, split))
        folder = self._path(self.node.panoptic_maps or str(self.node.panoptic).removesuffix(".json"), split)

        def decode(row: int) -> np.ndarray:
            path = folder / notes[row]["file_name"]
            return paint_panoptic(file, notes[row], read_raster(path), str(path))

        def photo(row: int) -> PhotoSize:
            self._photo(file, images[row], source, row)
            return replace(source.photo(row), exact=True)

        maps = DecodedMaps(decode, self.node.fitting, IGNORE, lambda row: str(folder / notes[row]["file_name"]), photo)
        return DenseImages(source, rows_of(len(source)), {"panoptic": maps}, {"panoptic": file.names()}, {})

    def _photo(self, file: CocoFile, image: Entry, source: FileImages, row: int) -> PhotoSize:
        """The photograph that an image's annotations lie on; UserError where it is not the one they were made for."""
        photo, what = source.photo(row), f"{source.name_of(row)}: the image that {file.path.name} annotates"
        if image.get("height") is None or image.get("width") is None:
            check_coordinates(photo, what)
            return photo
        try:
            size = int(image["height"]), int(image["width"])
        except (TypeError, ValueError) as error:
            raise UserError(f"{file.path}: image {image['id']!r} has a size that is no number") from error
        check_label(size, replace(photo, exact=True), what)
        return photo

    def _images(self, file: CocoFile, split: str) -> list[Entry]:
        images = list(file.images)
        if self.node.every is not None:
            last = self.node.every - 1
            images = [image for at, image in enumerate(images) if (at % self.node.every == last) == (split == TEST)]
        folder = self._path(self.node.images, split)
        first = self._served.setdefault((file.path, folder), split)
        if first != split and self.node.every is None:
            raise UserError(
                f'data "{self.name}": {file.path} and {folder} are the {first} images already; say every: n (each n-th '
                f"is a test image), or write {{split}} in the file names and name both in splits"
            )
        images = self.node.there(self.name, split, images, lambda image: [folder / image["file_name"]])
        return [images[at] for at in self.node.kept(len(images), split)]

    def _paths(self, images: Sequence[Entry], split: str) -> list[Path]:
        folder = self._path(self.node.images, split)
        return [folder / image["file_name"] for image in images]

    def _file(self, pattern: str, split: str) -> CocoFile:
        path = self._path(pattern, split)
        if path not in self._read:
            self._read[path] = read_coco(path, orphans=self.node.missing == "skip")
        return self._read[path]

    def _path(self, pattern: str, split: str) -> Path:
        return self.node.folder(self.name) / pattern.replace("{split}", split_of(split, self.node.splits))


def _instance(file: CocoFile, note: Entry, photo: PhotoSize) -> InstanceObject:
    file.need(note, "bbox", "area")
    area = file.number_in(note, "area", note["area"])

    def mask() -> torch.Tensor:
        file.need(note, "segmentation")
        return torch.from_numpy(instance_mask(note["segmentation"], photo, file.where(note)))

    return InstanceObject(file.number(note), _box(file, note, photo), area, file.crowd(note), mask)


def _box(file: CocoFile, note: Entry, photo: PhotoSize) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of an annotation's bbox (x, y, width, height)."""
    file.need(note, "bbox")
    if not isinstance(note["bbox"], list) or len(note["bbox"]) != 4:
        raise UserError(f"{file.where(note)} has the bbox {note['bbox']!r}; it is x, y, width, height")
    x, y, across, down = (file.number_in(note, "bbox", side) for side in note["bbox"])
    box = (x, y, x + across, y + down)
    check_box(box, photo, file.where(note), " (a bbox is x, y, width, height)")
    return box


def _named_points(file: CocoFile, note: Entry, names: Any) -> dict[str, tuple[float, float]]:
    """The visible ones (v = 2) of an annotation's points by name; UserError where they are not its category's."""
    if names is None and not note.get("keypoints"):
        return {}  # a category without points
    file.need(note, "keypoints")
    told, where = note["keypoints"], file.where(note)
    if not isinstance(names, list) or not isinstance(told, list) or len(told) != 3 * len(names):
        count = len(names) if isinstance(names, list) else 0
        raise UserError(
            f"{where} has {len(told)} numbers in keypoints; its category names {count} points of three each"
        )
    numbers = [file.number_in(note, "keypoints", value) for value in told]
    points = {}
    for name, x, y, seen in zip(names, numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        if seen not in (0, 1, 2):
            raise UserError(f"{where} has the visibility {seen:g}; it is 0, 1 or 2")
        if seen == 2:
            points[str(name)] = (x, y)
    return points
