"""Images from folders, and images rendered on the fly."""

import hashlib
import os
from pathlib import Path

import numpy as np

from imagery.decode import SUFFIXES, decode_image
from imagery.errors import UserError
from imagery.patterns import expand_braces


class FolderSource:
    """Every image under a folder, at any depth, in the order of the relative path. Hidden files are left out.

    Braces name several folders (data/{kodak,coco}); keys are then relative to what they have in common.
    """

    def __init__(self, pattern: str) -> None:
        self.name = f"imagefolder:{pattern}"
        folders = [Path(name).expanduser() for name in expand_braces(pattern)]
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"no such folder: {folder}")
        self.root = Path(os.path.commonpath(folders))
        self.paths = sorted({path for folder in folders for path in _image_paths(folder, self.root)})
        if not self.paths:
            raise UserError(f"no images in {pattern} (looked for {', '.join(sorted(SUFFIXES))} at any depth)")
        self.fingerprint = hashlib.sha256("\n".join(self.paths).encode(errors="surrogateescape")).hexdigest()
        self.problems: list[str] = []
        self.lost_share = 0.0

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> np.ndarray:
        return decode_image(self.root / self.paths[index])

    def key(self, index: int) -> str:
        return self.paths[index]


def _image_paths(start: Path, root: Path) -> list[str]:
    """What lies under `start` and has a known image suffix, relative to `root`."""
    found = []
    for folder, subfolders, files in os.walk(start):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                found.append((Path(folder) / name).relative_to(root).as_posix())
    return found


class ScenesSource:
    """Procedural scenes, colour only. With `cache` each is rendered once and kept (height * width * 3 bytes each)."""

    def __init__(self, seed: int, count: int, height: int, width: int, *, cache: bool) -> None:
        if min(count, height, width) < 1:
            raise UserError(f"scenes: count and size must be positive, got count={count}, size={height}x{width}")
        self.name = f"scenes:seed={seed},count={count},size={height}x{width}"
        self.fingerprint = self.name
        self.seed, self.height, self.width = seed, height, width
        self.problems: list[str] = []
        self.lost_share = 0.0
        self._count = count
        self._kept: dict[int, np.ndarray] | None = {} if cache else None

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> np.ndarray:
        if self._kept is None:
            return self._render(index)
        if index not in self._kept:  # two threads may both render it; they render the same
            self._kept[index] = self._render(index)
        return self._kept[index]

    def key(self, index: int) -> str:
        return f"scene {self.seed}/{index}"

    def _render(self, index: int) -> np.ndarray:
        from imagery.scenes import render_scene

        return render_scene(self.seed, index, self.height, self.width, labels=False).rgb
