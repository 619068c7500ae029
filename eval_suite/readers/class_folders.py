"""`reader: class_folders` and `reader: imagenet`: a folder of images for each class."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from common.errors import UserError
from eval_suite.readers.contracts import TEST, TRAIN, ClassifiedImages, LabelledData
from eval_suite.readers.nodes import FileReaderNode, rows_of, split_of
from imagery.decode import is_image_name

IMAGENET_CLASSES = 1000


class ClassFolders(LabelledData):
    """Images by class folder; class numbers are those of the folder names of all splits in sorted order."""

    def __init__(self, name: str, node: "ClassFoldersNode", words: Mapping[str, str] | None) -> None:
        self.name = name
        self.node = node
        self.words = words
        self._open: dict[str, ClassifiedImages] = {}

    def classes(self, split: str) -> ClassifiedImages:
        if split not in self._open:
            self._open[split] = self._build(split)
        return self._open[split]

    def _build(self, split: str) -> ClassifiedImages:
        folders = class_folders(self._folder(split), self.name)
        known = sorted({*folders, *self._other(split)})
        words = [self._word(cls) for cls in known]
        if self.words is None:  # of the curated names of ImageNet two are the same
            check_distinct(known, words, self.name)
        files = [(path, known.index(cls)) for cls in sorted(folders) for path in images_in(folders[cls])]
        kept = [files[at] for at in self.node.kept(len(files), split)]
        images = self.node.photographs(self.name, [path for path, _ in kept])
        labels = torch.tensor([label for _, label in kept])
        return ClassifiedImages(images, rows_of(len(images)), labels, tuple(words))

    def _folder(self, split: str) -> Path:
        return self.node.folder(self.name) / split_of(split, self.node.splits)

    def _other(self, split: str) -> list[str]:
        """Classes that only another split has, so that both number them alike."""
        others = [self._folder(other) for other in self.node.splits if other != split]
        return [cls for folder in others if folder.is_dir() for cls in class_folders(folder, self.name)]

    def _word(self, cls: str) -> str:
        if self.words is None:
            return cls.replace("_", " ").replace("-", " ") if self.node.tidy_names else cls
        if cls not in self.words:
            raise UserError(f'data "{self.name}": no class name is known for the folder "{cls}"')
        return self.words[cls]


class ClassFoldersNode(FileReaderNode):
    """`root/SPLIT/CLASS/image`, as torchvision's ImageFolder reads it."""

    reader: Literal["class_folders"]
    fit: Literal["stretch", "crop", "pad"] = "crop"
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: TRAIN, TEST: TEST})
    names: dict[str, str] | None = None  #: folder -> words for prompts; None: the folder's own name
    tidy_names: bool = True  #: underscores and hyphens of folder names are spaces

    def open(self, name: str) -> ClassFolders:
        self.folder(name)
        return ClassFolders(name, self, self.names)


class ImageNetNode(FileReaderNode):
    """ImageNet-1k as folders of wnids, `train/` and `val/`; class names are the ones OpenAI curated (open_clip's)."""

    reader: Literal["imagenet"]
    fit: Literal["stretch", "crop", "pad"] = "crop"
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "train", TEST: "val"})
    partial: bool = False  #: accept fewer than 1000 class folders; the names are then the wnids

    def open(self, name: str) -> ClassFolders:
        from open_clip import IMAGENET_CLASSNAMES  # the curated list in wnid order

        node = ClassFoldersNode.model_validate(
            {"reader": "class_folders", **self.model_dump(exclude={"reader", "partial"}), "tidy_names": False}
        )
        folders = [self.folder(name) / own for own in self.splits.values()]
        if not any(folder.is_dir() for folder in folders):
            raise UserError(
                f'data "{name}": {self.folder(name)} has none of {", ".join(self.splits.values())}; set root'
            )
        for folder in filter(Path.is_dir, folders):
            wnids = sorted(class_folders(folder, name))
            if not self.partial and len(wnids) != IMAGENET_CLASSES:
                raise UserError(
                    f'data "{name}": {folder} has {len(wnids)} class folders, ImageNet-1k has 1000; '
                    "set partial: true for a part of it"
                )
        words = None if self.partial else dict(zip(wnids, IMAGENET_CLASSNAMES, strict=True))
        return ClassFolders(name, node, words)


def check_distinct(folders: Sequence[str], words: Sequence[str], name: str) -> None:
    """UserError for two class folders that are one class to a reader: equal words, or equal but for case or accents'
    spelling (a disk that tells "é" from "e" and an accent makes two folders of one)."""
    seen: dict[str, str] = {}
    for folder, word in zip(folders, words, strict=True):
        plain = unicodedata.normalize("NFC", word).casefold().strip()
        other = seen.setdefault(plain, folder)
        if other != folder:
            raise UserError(
                f'data "{name}": the class folders "{other}" and "{folder}" have one name ("{word}"); merge them, or '
                "give them different names with `names` (tidy_names: false keeps underscores and hyphens)"
            )


def class_folders(folder: Path, name: str) -> dict[str, Path]:
    """Class name -> folder; UserError where there is none, with a word on a flat folder of images."""
    if not folder.is_dir():
        raise UserError(f'data "{name}": there is no folder {folder}; set root and splits')
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if found:
        return found
    flat = next((path for path in folder.iterdir() if is_image_name(path.name)), None)
    hint = (
        f"its images lie flat ({flat.name}, ...): sort them into class folders first (the ImageNet validation archive "
        "is flat; its labels are in the devkit)"
        if flat
        else "it is empty"
    )
    raise UserError(f'data "{name}": {folder} has no class folders; {hint}')


def images_in(folder: Path) -> list[Path]:
    """Image files of a class folder and its subfolders, in name order; UserError where there is none."""
    found = sorted(path for path in folder.rglob("*") if is_image_name(path.name) and path.is_file())
    if not found:
        raise UserError(f"{folder} holds no images; remove the empty class folder or fill it")
    return found
