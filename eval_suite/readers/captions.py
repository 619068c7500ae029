"""`reader: captions` (a table of file and caption), Flickr30k, and Karpathy's JSON splits."""

import csv
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from common.errors import UserError
from eval_suite.readers.contracts import TEST, TRAIN, CaptionedImages, LabelledData
from eval_suite.readers.nodes import FileReaderNode, SkippingNode, rows_of, split_of
from eval_suite.readers.text_files import lines_of, read_json, read_json_lines, read_table

#: how programs write that there is none
NOTHING = ("", "nan", "none", "null", "n/a", "<na>")
IMAGE_NAME = re.compile(r"\.(?:jpg|jpeg|png)\b", re.IGNORECASE)
FLICKR_LINE = re.compile(r"(.+?\.(?:jpg|jpeg|png)),(.*)", re.IGNORECASE)


class CaptionsNode(SkippingNode):
    """Images with captions from a file under `root`:

    `format: csv` / `jsonl` with the columns `image` and `caption` (one caption a line, or a list of them in jsonl);
    `format: flickr`, lines "file.jpg,caption" (a first line without a file name is a header); `format: karpathy`,
    dataset_*.json. Several entries of one image add up; an image without a caption and an empty caption are refused.
    """

    reader: Literal["captions"]
    fit: Literal["stretch", "crop", "pad"] = "crop"
    images: str = "."  #: folder under root
    file: str  #: may hold {split}
    format: Literal["csv", "jsonl", "flickr", "karpathy"]  #: of `file`
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: TRAIN, TEST: TEST})
    image: str = "image"  #: column of the image's file name
    caption: str = "caption"  #: column of the caption

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
        folder = self.node.folder(self.name) / self.node.images
        names = self.node.there(self.name, split, list(found), lambda image: [folder / image])
        kept = [names[at] for at in self.node.kept(len(names), split)]
        return captioned(self.name, [folder / n for n in kept], [found[n] for n in kept], self.node)

    def _texts(self, path: Path, split: str) -> dict[str, list[str]]:
        if self.node.format == "karpathy":
            return read_karpathy(path, split)
        if self.node.format == "flickr":
            return read_flickr(path)
        if self.node.format == "csv":
            table = read_table(path, (self.node.image, self.node.caption), "the captions")
            return _collected((f"{path} line {n}", row[self.node.image], row[self.node.caption]) for n, row in table)
        return read_jsonl(path, self.node.image, self.node.caption)


def captioned(
    name: str, files: Sequence[Path], texts: Sequence[Sequence[str]], node: FileReaderNode
) -> CaptionedImages:
    """Images and the captions of each."""
    images = node.photographs(name, files)
    return CaptionedImages(images, rows_of(len(images)), [list(some) for some in texts])


def read_flickr(path: Path) -> dict[str, list[str]]:
    """Lines "file.jpg,caption"; a caption may hold commas, and stands in quotes where its file was written as CSV."""
    entries = []
    for at, (number, line) in enumerate(lines_of(path, "the captions")):
        found = FLICKR_LINE.fullmatch(line)
        if found is None and (at or IMAGE_NAME.search(line)):
            raise UserError(f'{path} line {number}: expected "file.jpg,caption", got "{line[:60]}"')
        if found is not None:
            entries.append((f"{path} line {number}", found[1].strip().strip('"'), unquoted(found[2].strip())))
    return _collected(entries)


def unquoted(text: str) -> str:
    """A cell without its quotes, doubled ones single; the text itself where it is no quoted cell as a whole."""
    if not text.startswith('"'):
        return text
    try:
        cells = next(csv.reader([text], strict=True))
    except csv.Error:
        return text
    return cells[0] if len(cells) == 1 else text


def read_karpathy(path: Path, split: str) -> dict[str, list[str]]:
    """Karpathy's dataset_{coco,flickr30k}.json: images of one split; COCO's lie in their `filepath` folder.

    `restval` belongs to train, as everyone uses it. UserError for an image that is of two splits.
    """
    data = read_json(path, "Karpathy's split file")
    entries: list[tuple[str, str, Any]] = []
    of: dict[str, str] = {}
    try:
        for image in data["images"]:
            name = "/".join(part for part in (image.get("filepath", ""), image["filename"]) if part)
            own = "train" if image["split"] == "restval" else image["split"]
            if of.setdefault(name, own) != own:
                raise UserError(f"{path}: {name} is of the split {of[name]} and of {own}; it can only be of one")
            if own == split:
                said = [sentence["raw"] for sentence in image["sentences"]]
                if not said:
                    raise UserError(f"{path}: {name} has no sentences")
                entries += [(f"{path}: {name}", name, one) for one in said]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not Karpathy's JSON (images with split, filename and sentences): {error!r}; fetch it again"
        ) from error
    return _collected(entries)


def read_jsonl(path: Path, image: str, caption: str) -> dict[str, list[str]]:
    """JSON lines with an image and a caption, or a list of captions."""
    entries = []
    for number, row in read_json_lines(path, "the captions"):
        where = f"{path} line {number}"
        if not isinstance(row, dict) or image not in row or caption not in row:
            raise UserError(f'{where}: expected an object with "{image}" and "{caption}"')
        said = row[caption] if isinstance(row[caption], list) else [row[caption]]
        if not said:
            raise UserError(f'{where} has an empty list in "{caption}"')
        entries += [(where, row[image], one) for one in said]
    return _collected(entries)


def caption_text(said: Any, where: str) -> str:
    """A caption, stripped; UserError for what is no text, or empty."""
    if not isinstance(said, str) or said.strip().lower() in NOTHING:
        raise UserError(f"{where} has the caption {said!r}, which says nothing; take it out or write one")
    return said.strip()


def _collected(entries: Iterable[tuple[str, Any, Any]]) -> dict[str, list[str]]:
    """(where, image, caption) -> captions by image, in the order of the file."""
    out: dict[str, list[str]] = {}
    for where, image, said in entries:
        if not isinstance(image, str) or not image.strip():
            raise UserError(f"{where} names no image but {image!r}")
        out.setdefault(posixpath.normpath(image.strip()), []).append(caption_text(said, where))
    return out
