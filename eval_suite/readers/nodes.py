"""What all readers of files have in common: where the data lies, at which size the probes see it, how much of it."""

import os
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from common.errors import UserError
from common.recipes import Node, Pixels
from eval_suite.readers.contracts import TEST, TRAIN, LabelledData
from eval_suite.readers.fitting import Fit, Mode
from eval_suite.readers.image_files import Crop, FileImages
from eval_suite.readers.photo_sizes import Orientation
from eval_suite.units import UnitRule

T = TypeVar("T")


class ReaderNode(Node):
    """A data set of a suite file.

    A field `reader` says which kind it is: a Literal in this package, `reader: str` in a class of a user's.
    """

    @abstractmethod
    def open(self, name: str) -> LabelledData:
        """The data set under its name in the suite; UserError where it is not there or not as it should be."""

    def open_side(self, name: str) -> LabelledData:
        """The data set as one side of `joined`, where it may be a folder without splits."""
        return self.open(name)


class FileReaderNode(ReaderNode):
    """A reader of files on disk. `root` may hold ~ and ${VARIABLES} and is relative to the working directory."""

    layout_unit: ClassVar[UnitRule | None] = None  #: what is one draw in this layout, where it is not the image

    root: str  #: folder of the data set
    size: Pixels | tuple[Pixels, Pixels] = 224  #: of the images the probes see: one side, or height and width
    fit: Mode = "stretch"  #: how photographs come to that size
    #: whether labels belong to photographs as their orientation tags turn them or as stored; asked for where sizes
    #: cannot tell
    orientation: Orientation | None = None
    #: which images are one draw; by default what the layout says, else each image
    unit: UnitRule | Literal["image"] | None = None
    limit: dict[str, int] = Field(default_factory=dict)  #: split -> at most so many images, evenly spread

    @field_validator("limit")
    @classmethod
    def _splits(cls, limit: dict[str, int]) -> dict[str, int]:
        for split, count in limit.items():
            if split not in (TRAIN, TEST):
                raise ValueError(f'a limit is for train or test, not "{split}"')
            if count < 1:
                raise ValueError(f"the limit of {split} is positive")
        return limit

    @property
    def unit_rule(self) -> UnitRule | None:
        """How to tell the unit of an image file; None: each image is its own."""
        return None if self.unit == "image" else self.unit or self.layout_unit

    @property
    def fitting(self) -> Fit:
        """The size as the fitting of images wants it."""
        return Fit(self.size, self.size, self.fit) if isinstance(self.size, int) else Fit(*self.size, self.fit)

    def photographs(self, name: str, files: Sequence[Path], crops: Sequence[Crop] | None = None) -> FileImages:
        """Image files as this recipe reads them."""
        return FileImages(name, files, self.fitting, crops, self.orientation)

    def folder(self, name: str) -> Path:
        """The root folder; UserError where there is none."""
        return existing_folder(self.root, name)

    def kept(self, count: int, split: str) -> list[int]:
        """Positions that stay under the limit of the split, evenly spread over `count`."""
        most = self.limit.get(split, count)
        return list(range(count)) if most >= count else [step * count // most for step in range(most)]


class SkippingNode(FileReaderNode):
    """Files that a list names and that are not there: refused, or left out and counted aloud."""

    missing: Literal["refuse", "skip"] = "refuse"  #: what happens to files that a list names and that are not there

    def there(self, name: str, split: str, items: Sequence[T], files: Callable[[T], Sequence[Path]]) -> list[T]:
        """The items whose files are all there, with a warning that counts the others; all of them with `refuse`."""
        if self.missing == "refuse":
            return list(items)
        gone = [path for item in items for path in files(item) if not path.is_file()]
        kept = [item for item in items if all(path.is_file() for path in files(item))]
        if not kept:
            raise UserError(f'data "{name}": all {len(items)} of split {split} miss files, e.g. {gone[0]}; set root')
        if gone:
            left = len(items) - len(kept)
            warnings.warn(f'data "{name}": {left} of {len(items)} of split {split} left out, e.g. {gone[0]} is missing',
                          stacklevel=2)  # fmt: skip
        return kept


def existing_folder(path: str, name: str) -> Path:
    """`path` with ~ and ${VARIABLES} filled in; UserError unless it is a folder."""
    folder = expanded(path)
    if not folder.is_dir():
        raise UserError(f'data "{name}": there is no folder {folder}; set data.{name}.root to where it lies')
    return folder


def expanded(path: str) -> Path:
    """~ and ${VARIABLES} filled in; UserError for a variable that is not set."""
    full = os.path.expanduser(os.path.expandvars(path))
    if left := re.search(r"\$\{?(\w+)\}?", full):
        raise UserError(f"{path}: the environment variable {left[1]} is not set; set it or write the path out")
    return Path(full)


def split_of(split: str, names: dict[str, str]) -> str:
    """The layout's own name of train or test."""
    if split not in names:
        raise UserError(f"the data names no {split} split, only {', '.join(names) or 'none'}; add {split} to `splits`")
    return names[split]


def rows_of(count: int) -> Tensor:
    """0 .. count - 1, int64 [count]."""
    return torch.arange(count)
