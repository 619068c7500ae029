"""Images from folders, and images rendered on the fly."""

import hashlib
import os
from pathlib import Path

import numpy as np

from common.errors import UserError
from imagery.decode import SUFFIXES, decode_image, is_image_name
from imagery.patterns import expand_braces
from imagery.scenes import render_scene
from imagery.scenes.settings import PRESETS


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
        place = Path(folder).relative_to(root)  # once a folder: slow, and data sets have millions of files
        prefix = "" if place == Path(".") else f"{place.as_posix()}/"
        found += [prefix + name for name in files if is_image_name(name)]
    return found


class ScenesSource:
    """Procedural scenes, colour only. With `cache` each is rendered once and kept (height * width * 3 bytes each)."""

    def __init__(
        self, seed: int, count: int, height: int, width: int, *, preset: str = "default", cache: bool = False
    ) -> None:
        if seed < 0 or min(count, height, width) < 1:
            raise UserError(
                f"scenes: seed >= 0, count and size > 0; got seed={seed},count={count},size={height}x{width}"
            )
        if preset not in PRESETS:
            raise UserError(f'scenes has no preset "{preset}"; known: {", ".join(PRESETS)}')
        self.name = f"scenes:seed={seed},count={count},size={height}x{width},preset={preset}"
        self.fingerprint = f"{self.name} {PRESETS[preset]}"
        self._settings = PRESETS[preset]
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
        return render_scene(self.seed, index, self.height, self.width, settings=self._settings, labels=False).rgb
