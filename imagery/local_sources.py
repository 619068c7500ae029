"""Images from folders, and images rendered on the fly."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import UserError
from imagery.contracts import Content
from imagery.decode import SUFFIXES, decode_image, read_file, why_no_image
from imagery.identity import content_identity
from imagery.left_out import LeftOut
from imagery.patterns import expand_braces
from imagery.samples import extensions_of, keep, kept_extensions
from imagery.scenes import render_scene
from imagery.scenes.settings import PRESETS


class FolderSource:
    """Every image under a folder, at any depth, in the order of the relative path.

    Braces name several folders (data/{kodak,coco}); keys are then relative to what they have in common. pick: the
    extensions that are images (samples.py). Links to files are followed. A link to a folder is not: inside the root its
    files are met under their own names; those outside are counted, and the message says what to write instead.
    """

    def __init__(self, pattern: str, *, pick: str | None = None) -> None:
        self.name = f"imagefolder:{pattern}"
        folders = [Path(name).expanduser() for name in expand_braces(pattern)]
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"no such folder: {folder}")
        self.root = Path(os.path.commonpath(folders))
        self.left_out = LeftOut()
        sizes = {path: size for folder in folders for path, size in _pictures(folder, self.root, self.left_out)}
        paths = sorted(sizes)
        extensions = extensions_of(paths, dots_in_names=True)
        kept = kept_extensions(self.name, [extensions], pick)
        self.paths = [paths[place] for place in keep(extensions, kept, paths, self.left_out)]
        if not self.paths:
            reasons = "".join(f"; {line}" for line in self.left_out.lines()[:2])
            raise UserError(f"no images in {pattern} (looked for {', '.join(sorted(SUFFIXES))} at any depth){reasons}")
        names = [path.encode("utf-8", "surrogateescape") for path in self.paths]
        lengths, own = np.array([len(name) for name in names]), np.array([sizes[path] for path in self.paths])
        self.fingerprint = content_identity(b"".join(names), lengths, own, self._part)
        self.problems: list[str] = []
        self.lost_share = 0.0

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Content:
        return read_file(self.root / self.paths[index])

    def load(self, index: int) -> np.ndarray:
        return decode_image(self.root / self.paths[index])

    def key(self, index: int) -> str:
        return self.paths[index]

    def _part(self, index: int, offset: int, size: int) -> bytes:
        with open(self.root / self.paths[index], "rb") as file:
            file.seek(offset)
            return file.read(size)


def _pictures(start: Path, root: Path, left_out: LeftOut) -> Iterator[tuple[str, int]]:
    """(path relative to `root`, bytes) of what lies under `start` and has an image's name; all else is counted."""
    real = os.path.realpath(root)
    place = start.relative_to(root).as_posix()
    waiting = [("" if place == "." else f"{place}/")]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            left_out.add(f"folders that cannot be read ({error.strerror})", folder)
            continue
        for entry in found:
            path = folder + entry.name
            if entry.is_dir():
                if entry.name.startswith("."):
                    left_out.add("hidden folders", path)
                elif not entry.is_symlink():
                    waiting.append(f"{path}/")
                elif not _inside(real, os.path.realpath(entry.path)):
                    left_out.add("links to folders elsewhere: name those folders, imagefolder:{A,B}", path)
            elif reason := why_no_image(entry.name):
                left_out.add(reason, path)
            elif not entry.is_file():
                left_out.add("links that lead nowhere" if entry.is_symlink() else "pipes and devices", path)
            else:
                yield path, entry.stat().st_size


def _inside(root: str, path: str) -> bool:
    return os.path.commonpath([root, path]) == root


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
        self.left_out = LeftOut()
        self._count = count
        self._kept: dict[int, np.ndarray] | None = {} if cache else None

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> Content:
        return self.load(index)

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
