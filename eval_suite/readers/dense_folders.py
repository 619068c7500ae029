"""`reader: dense_folders`: photographs beside label maps of any kind, matched by the part of the name they share."""

import glob
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from common.errors import UserError
from common.recipes import Pixels
from eval_suite.readers.contracts import TEST, TRAIN, DenseImages, LabelledData
from eval_suite.readers.fitting import Fit
from eval_suite.readers.image_files import FileImages
from eval_suite.readers.label_files import BY_ANNOTATOR, FILL, BsdsLabels, ClassLabels, LabelNode, MaskLabels
from eval_suite.readers.label_maps import DecodedMaps
from eval_suite.readers.nodes import SkippingNode, rows_of, split_of
from eval_suite.readers.photo_sizes import Orientation
from eval_suite.readers.text_files import read_list
from imagery.decode import is_image_name


@dataclass(frozen=True)
class LabelPlan:
    """How one kind of label is read: from an image's key, at any size."""

    kind: str  #: as in FILL
    decode: Callable[[str], np.ndarray]
    path: Callable[[str], str]
    names: tuple[str, ...] = ()


class DenseFolders(LabelledData):
    """Images and label plans by split."""

    def __init__(
        self,
        name: str,
        fit: Fit,
        label_fit: Fit,
        images: Callable[[str], Mapping[str, Path]],
        plans: Callable[[str], Mapping[str, LabelPlan]],
        orientation: Orientation | None = None,
    ) -> None:
        self.name = name
        self._orientation = orientation
        self._fit = fit
        self._label_fit = label_fit
        self._images = images
        self._plans = plans
        self._open: dict[str, DenseImages] = {}

    def dense(self, split: str) -> DenseImages:
        if split not in self._open:
            self._open[split] = self._build(split)
        return self._open[split]

    def _build(self, split: str) -> DenseImages:
        files = self._images(split)
        if not files:
            raise UserError(f'data "{self.name}" has no images in split {split}')
        images = FileImages(self.name, list(files.values()), self._fit, None, self._orientation)
        keys, plans = list(files), self._plans(split)
        if not plans:
            self._missing("label maps", split)
        maps = {label: self._maps(plan, keys, images) for label, plan in plans.items()}
        names = {label: plan.names for label, plan in plans.items() if plan.names}
        return DenseImages(images, rows_of(len(images)), maps, names, {})

    def _maps(self, plan: LabelPlan, keys: list[str], images: FileImages) -> DecodedMaps:
        return DecodedMaps(
            lambda row: plan.decode(keys[row]),
            self._label_fit,
            FILL[plan.kind],
            lambda row: plan.path(keys[row]),
            images.photo,
        )


class DenseFoldersNode(SkippingNode):
    """Any folders of photographs and labels.

    `images` and each label's `files` are paths under `root` with one `*`, which stands for what an image and its
    labels share, and `{split}`, which stands for the split's folder. A layout without split folders has `every: n`
    (each n-th image is a test image) or `lists` (files with one key a line); as one side of `joined` it needs none.
    """

    reader: Literal["dense_folders"]
    images: str  #: path of the photographs under root, with one `*`
    labels: dict[str, LabelNode] = Field(min_length=1)  #: name -> label maps
    label_size: Pixels | tuple[Pixels, Pixels] | None = None  #: of the label maps the probes see; None: the images'
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: TRAIN, TEST: TEST})
    lists: dict[str, str] | None = None  #: split -> file with one key a line
    every: int | None = Field(default=None, ge=2)  #: each n-th image is a test image

    @model_validator(mode="after")
    def _patterns(self) -> "DenseFoldersNode":
        for pattern in (self.images, *(label.files for label in self.labels.values())):
            if pattern.count("*") != 1:
                raise ValueError(f'a path has exactly one "*", got "{pattern}"')
        told = sum(("{split}" in self.images, self.lists is not None, self.every is not None))
        if told > 1:
            raise ValueError("say only one of these: {split} in images, lists, or every")
        return self

    def open(self, name: str) -> DenseFolders:
        if "{split}" not in self.images and self.lists is None and self.every is None:
            raise UserError(
                f'data "{name}": train and test would be the same images; say one of these: {{split}} in images, '
                "lists, or every (a whole folder can be one side of `reader: joined`)"
            )
        return self.open_side(name)

    def open_side(self, name: str) -> DenseFolders:
        """As `open`; without splits the whole folder is whatever is asked for."""
        self.folder(name)
        fit = self.fitting
        label_fit = fit if self.label_size is None else Fit(*_pair(self.label_size), self.fit)
        return DenseFolders(
            name,
            fit,
            label_fit,
            lambda split: self._files(name, split),
            lambda split: self._plans(name, split),
            self.orientation,
        )

    def _files(self, name: str, split: str) -> dict[str, Path]:
        found = matched(self.folder(name), self._pattern(self.images, split))
        found = {key: path for key, path in found.items() if is_image_name(path.name)}
        if not found:
            raise UserError(
                f'data "{name}": no image fits {self.folder(name) / self._pattern(self.images, split)} '
                f"(split {split}); check root, images and splits"
            )
        keys = self._chosen(name, split, list(found))
        labels = {pattern: matched(self.folder(name), pattern) for pattern in self._label_patterns(split)}
        wanted = self.folder(name) / self._pattern(self.images, split)
        keys = self.there(
            name,
            split,
            keys,
            lambda key: [
                found.get(key, Path(str(wanted).replace("*", key))),
                *(known.get(key, self.folder(name) / pattern.replace("*", key)) for pattern, known in labels.items()),
            ],
        )
        if missing := [key for key in keys if key not in found]:
            raise UserError(f'data "{name}": {len(missing)} listed images are missing, the first is "{missing[0]}"')
        kept = [keys[at] for at in self.kept(len(keys), split)]
        return {key: found[key] for key in kept}

    def _chosen(self, name: str, split: str, keys: list[str]) -> list[str]:
        if self.lists is not None:
            return read_list(self.folder(name) / split_of(split, self.lists), f"the list of {split} images")
        if self.every is None:
            return keys
        return [key for at, key in enumerate(keys) if (at % self.every == self.every - 1) == (split == TEST)]

    def _plans(self, name: str, split: str) -> dict[str, LabelPlan]:
        plans: dict[str, LabelPlan] = {}
        for label, node in self.labels.items():
            path, names = self._label_path(name, split, label, node.files), _names_of(label, node)
            plans[label] = LabelPlan(node.kind, _decoder(node.decode, path), _as_text(path), names)
            if isinstance(node, BsdsLabels):
                each = LabelPlan(node.kind, _decoder(node.decode_each, path), plans[label].path, names)
                plans[f"{label}{BY_ANNOTATOR}"] = each
        return plans

    def _label_path(self, name: str, split: str, label: str, files: str) -> Callable[[str], Path]:
        """From an image's key to the file of its label; UserError where it is missing."""
        folder, pattern = self.folder(name), self._pattern(files, split)
        found = matched(folder, pattern)

        def path(key: str) -> Path:
            if key not in found:
                wanted = folder / pattern.replace("*", key)
                raise UserError(f'data "{name}": image "{key}" has no {label} label: {wanted} is missing')
            return found[key]

        return path

    def _label_patterns(self, split: str) -> list[str]:
        if self.missing == "refuse":
            return []  # each label says by itself that it is missing
        return [self._pattern(label.files, split) for label in self.labels.values()]

    def _pattern(self, pattern: str, split: str) -> str:
        return pattern.replace("{split}", split_of(split, self.splits)) if "{split}" in pattern else pattern


def _decoder(decode: Callable[[Path], np.ndarray], path: Callable[[str], Path]) -> Callable[[str], np.ndarray]:
    return lambda key: decode(path(key))


def _names_of(label: str, node: LabelNode) -> tuple[str, ...]:
    """The class names of a label; () for numbers and vectors."""
    if isinstance(node, ClassLabels):
        return node.names
    return ("background", label) if isinstance(node, MaskLabels | BsdsLabels) else ()


def matched(folder: Path, pattern: str) -> dict[str, Path]:
    """Files that fit a pattern with one `*`, by what the star stood for (subfolders included), in name order."""
    before, after = pattern.split("*")
    where = (
        glob.escape(str(folder)) + "/" + glob.escape(before) + ("**/*" if not before or before.endswith("/") else "*")
    )
    shape = re.compile(re.escape(before) + "(.+)" + re.escape(after).replace(r"\?", ".") + r"\Z")
    out: dict[str, Path] = {}
    for path in sorted(glob.glob(where + glob.escape(after), recursive=True)):
        found = shape.match(Path(path).relative_to(folder).as_posix())
        if found and Path(path).is_file():
            out[found[1]] = Path(path)
    return out


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _as_text(path: Callable[[str], Path]) -> Callable[[str], str]:
    return lambda key: str(path(key))
