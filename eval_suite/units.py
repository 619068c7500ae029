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
from pydantic import Field, field_validator
from torch import Tensor

from common.errors import UserError
from common.recipes import Node


class UnitRule(Node):
    """How a reader of files tells the unit of an image: what the group of `pattern` matches in its path under root."""

    name: str = Field(min_length=1)  #: scene, sequence, object, ...
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
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
    of = []
    for path in files:
        text = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
        found = re.search(rule.pattern, text)
        if found is None or found[1] is None:
            raise UserError(f"unit {rule.name}: the pattern {rule.pattern!r} does not fit {text}")
        of.append(numbers.setdefault(found[1], len(numbers)))
    return Units(rule.name, torch.tensor(of))


def units_of(images: Any, rule: UnitRule | None, root: Path | None) -> Units | None:
    """The units of a source of images: its own, else by the rule where it is of files, else None: each its own."""
    own = getattr(images, "units", None)
    if own is not None or rule is None or root is None or not hasattr(images, "files"):
        return own
    return units_of_files(rule, images.files, root)
