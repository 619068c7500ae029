"""Arrays and texts of a rendered data set, kept on disk and mapped into memory."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

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
    """What is in `folder`, made and written first if it is not there; only complete folders are ever seen."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_of(folder)):  # of several processes one renders, the others wait
            if not folder.is_dir():
                _make(folder, make)
    arrays = {path.stem: np.load(path, mmap_mode="c") for path in sorted(folder.glob("*.npy"))}
    return Stored(arrays, json.loads((folder / "texts.json").read_text(encoding="utf-8")))


def lock_of(folder: Path) -> Path:
    """Outside the cache, so that nothing but complete folders is ever in there."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"agglomerate-{name}.lock"


def _make(folder: Path, make: Callable[[], tuple[Mapping[str, np.ndarray], Any]]) -> None:
    arrays, texts = make()
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        (partial / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
