"""`reader: captions` (a table of file and caption), Flickr30k, and Karpathy's JSON splits."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from common.errors import UserError
from eval_suite.readers.contracts import TEST, TRAIN, CaptionedImages, LabelledData
from eval_suite.readers.fitting import Fit
from eval_suite.readers.image_files import FileImages
from eval_suite.readers.nodes import FileReaderNode, existing_file, read_lines, rows_of, split_of

FLICKR_ENDINGS = (".jpg,", ".jpeg,", ".png,")


class CaptionsNode(FileReaderNode):
    """Images with captions from a file under `root`:

    `format: csv` / `jsonl` with the columns `image` and `caption` (one caption a line, or a list of them in jsonl);
    `format: flickr`, lines "file.jpg,caption" after one header line; `format: karpathy`, dataset_*.json.
    """

    reader: Literal["captions"]
    fit: Literal["stretch", "crop", "pad"] = "crop"
    images: str = "."  #: folder under root
    file: str  #: may hold {split}
    format: Literal["csv", "jsonl", "flickr", "karpathy"]
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: TRAIN, TEST: TEST})
    image: str = "image"
    caption: str = "caption"

    @model_validator(mode="after")
    def _columns(self) -> "CaptionsNode":
        if self.format in ("flickr", "karpathy") and (self.image, self.caption) != ("image", "caption"):
            raise ValueError(f"image and caption name columns of csv and jsonl files; {self.format} has none")
        return self

    def open(self, name: str) -> "CaptionFiles":
        self.folder(name)
        return CaptionFiles(name, self)


class CaptionFiles(LabelledData):
    """Captions by image file."""

    def __init__(self, name: str, node: CaptionsNode) -> None:
        self.name = name
        self.node = node

    def captions(self, split: str) -> CaptionedImages:
        own = split_of(split, self.node.splits)
        path = self.node.folder(self.name) / self.node.file.replace("{split}", own)
        found = self._texts(path, own)
        if not found:
            raise UserError(f'data "{self.name}": {path} has no captions for split {split}')
        names = list(found)
        kept = [names[at] for at in self.node.kept(len(names), split)]
        folder = self.node.folder(self.name) / self.node.images
        return captioned(self.name, [folder / n for n in kept], [found[n] for n in kept], self.node.fitting)

    def _texts(self, path: Path, split: str) -> dict[str, list[str]]:
        if self.node.format == "karpathy":
            return read_karpathy(path, split)
        if self.node.format == "flickr":
            return read_flickr(path)
        read = _read_csv if self.node.format == "csv" else _read_jsonl
        return read(path, self.node.image, self.node.caption)


def captioned(name: str, files: Sequence[Path], texts: Sequence[Sequence[str]], fit: Fit) -> CaptionedImages:
    """Images and the captions of each; UserError for an image without one."""
    for path, some in zip(files, texts, strict=True):
        if not some:
            raise UserError(f'data "{name}": {path} has no caption')
    images = FileImages(name, files, fit)
    return CaptionedImages(images, rows_of(len(images)), [list(some) for some in texts])


def read_flickr(path: Path) -> dict[str, list[str]]:
    """Lines "file.jpg,caption" after a header; a caption may hold commas."""
    out: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(path, "the captions")[1:], 2):
        ends = [line.lower().find(ending) for ending in FLICKR_ENDINGS]
        at = min((end for end in ends if end >= 0), default=-1)
        if at < 0:
            raise UserError(f'{path} line {number}: expected "file.jpg,caption", got "{line[:60]}"')
        end = line.index(",", at)
        out.setdefault(line[:end], []).append(line[end + 1 :].strip().strip('"').strip())
    return out


def read_karpathy(path: Path, split: str) -> dict[str, list[str]]:
    """Karpathy's dataset_{coco,flickr30k}.json: images of one split; COCO's lie in their `filepath` folder.

    `restval` belongs to train, as everyone uses it.
    """
    try:
        data = json.loads(existing_file(path, "Karpathy's split file").read_text(encoding="utf-8"))
        images = [image for image in data["images"] if image["split"] in _karpathy_splits(split)]
        return {
            "/".join(part for part in (image.get("filepath", ""), image["filename"]) if part): [
                sentence["raw"].strip() for sentence in image["sentences"]
            ]
            for image in images
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not Karpathy's JSON (images with split, filename and sentences): {error!r}; fetch it again"
        ) from error


def _karpathy_splits(split: str) -> set[str]:
    return {split, "restval"} if split == "train" else {split}


def _read_csv(path: Path, image: str, caption: str) -> dict[str, list[str]]:
    with existing_file(path, "the captions").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    out: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 2):
        for column in (image, caption):
            if not row.get(column):
                raise UserError(f'{path} line {number} has no "{column}"; it has: {", ".join(k for k in row if k)}')
        out.setdefault(row[image], []).append(row[caption].strip())
    return out


def _read_jsonl(path: Path, image: str, caption: str) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(path, "the captions"), 1):
        try:
            row = json.loads(line)
            said = row[caption]
            out.setdefault(row[image], []).extend([said] if isinstance(said, str) else said)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path} line {number}: expected an object with "{image}" and "{caption}"') from error
    return out
