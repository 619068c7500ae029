"""What was drawn independently: scenes rather than frames of a video, objects rather than the pairs they are in.

Readers say of each image which unit it belongs to. The results of a probe come with a score for each image;
`sample_scores.by_unit` adds up those of one unit, so that the error, and the comparison of two rows, leave out whole
units.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from common.errors import UserError
from common.recipes import Node


class UnitRule(Node):
    """How a reader of files tells the unit of an image: what the group of `pattern` matches in its path under root, or
    what a list says that stands under root.

    Where files are only numbered, as NYUv2's labelled images are, a list names their scenes: one line an image, its
    file's name without folder and ending, a tab, the unit.
    """

    name: str = Field(min_length=1)  #: scene, sequence, object, ...
    pattern: str | None = None  #: regular expression with one group
    list: str | None = None  #: file under root, one line an image: its name, a tab, the unit

    @model_validator(mode="after")
    def _one_way(self) -> "UnitRule":
        if (self.pattern is None) == (self.list is None):
            raise ValueError("a unit is told by a pattern or by a list, one of them")
        return self

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
        if groups != 1:
            raise ValueError(f"{pattern!r} needs one group in brackets, which is the unit; it has {groups}")
        return pattern


@dataclass(frozen=True)
class Units:
    """The unit of every image of a source: int64 [N], numbered from 0, and what the units are."""

    name: str
    of: Tensor


def units_of_files(rule: UnitRule, files: Sequence[Path], root: Path) -> Units:
    """UserError for a file that the pattern does not fit."""
    numbers: dict[str, int] = {}
    listed = None if rule.list is None else read_units(root / rule.list)
    of = []
    for path in files:
        text = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
        if listed is not None:
            if path.stem not in listed:
                raise UserError(f"unit {rule.name}: {root / str(rule.list)} does not name {path.stem} ({text})")
            unit = listed[path.stem]
        else:
            found = re.search(rule.pattern or "", text)
            if found is None or found[1] is None:
                raise UserError(f"unit {rule.name}: the pattern {rule.pattern!r} does not fit {text}")
            unit = found[1]
        of.append(numbers.setdefault(unit, len(numbers)))
    return Units(rule.name, torch.tensor(of))


def read_units(path: Path) -> dict[str, str]:
    """Image -> unit of a list with a tab in every line; UserError for another line and for an image named twice."""
    out: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list of units {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, unit = (part.strip() for part in line.partition("\t"))
        if not name or not unit or "\t" in unit:
            raise UserError(f"{path}, line {number}: an image, a tab and its unit, not {line[:60]!r}")
        if name in out:
            raise UserError(f"{path}, line {number}: {name} stands there twice")
        out[name] = unit
    return out


def units_of(images: Any, rule: UnitRule | None, root: Path | None) -> Units | None:
    """The units of a source of images: its own, else by the rule where it is of files, else None: each its own."""
    own = getattr(images, "units", None)
    if own is not None or rule is None or root is None or not hasattr(images, "files"):
        return own
    return units_of_files(rule, images.files, root)
