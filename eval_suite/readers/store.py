"""Arrays and texts of a rendered data set, kept on disk and mapped into memory."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.store import Store, packed, unpacked

TEXTS = "texts"
CACHE_VARIABLE = "AGGLOMERATE_CACHE"


@dataclass(frozen=True)
class Stored:
    """Named arrays (memory-mapped) and one JSON value."""

    arrays: Mapping[str, np.ndarray]
    texts: Any


def cache_folder() -> Path:
    """Where derived data is kept: $AGGLOMERATE_CACHE, else ~/.cache/agglomerate."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "agglomerate")


def stored(folder: Path, make: Callable[[], tuple[Mapping[str, np.ndarray], Any]]) -> Stored:
    """What is kept below `folder` under its name, made and written first if it is not there, or is damaged."""

    def tensors() -> dict[str, Tensor]:
        arrays, texts = make()
        return {TEXTS: packed(texts)} | {name: torch.from_numpy(array) for name, array in arrays.items()}

    found = Store(folder.parent, {"data": folder.name}).get({}, tensors)
    return Stored({name: found[name].numpy() for name in found if name != TEXTS}, unpacked(found[TEXTS]))
