"""Photographs on disk, brought to one size when they are read."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from eval_suite.readers.contracts import ImageSource
from eval_suite.readers.fitting import Fit
from eval_suite.readers.photo_sizes import Orientation, PhotoSize, as_stored, photo_size
from imagery.decode import BadImage, decode_image

READERS = min(8, os.cpu_count() or 1)  #: photographs decoded at a time
Crop = tuple[float, float, float, float]  #: x0, y0, x1, y1 in pixels


class FileImages(ImageSource):
    """Image files by path, turned as their orientation tags say unless `orientation` is "stored".

    The key hangs on paths, sizes, dates, orientation and the fit, so changed files make new features.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        fit: Fit,
        crops: Sequence[Crop] | None = None,
        orientation: Orientation | None = None,
    ) -> None:
        if not files:
            raise UserError(f'data "{name}" has no images')
        self.files = list(files)
        self.fit = fit
        self.crops = None if crops is None else list(crops)  #: cut out before fitting
        self.orientation = orientation
        also = (fit, self.crops) if orientation != "stored" else (fit, self.crops, orientation)
        self.key = f"{name}-{files_digest(self.files, repr(also))}"

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Tensor) -> Tensor:
        """Several at a time: Pillow decodes and resizes without holding the interpreter."""
        with ThreadPoolExecutor(min(READERS, max(1, len(rows)))) as pool:
            return torch.stack(list(pool.map(lambda row: self.fit.image(self._pixels(row)), rows.tolist())))

    def original(self, row: int) -> Tensor:
        """The photograph at its own size, uint8 [3, H, W]."""
        return torch.from_numpy(self._pixels(row)).movedim(-1, 0)

    def photo(self, row: int) -> PhotoSize:
        """What labels of the photograph are held against: its whole size, from the file's header, and its tag."""
        return size_of_file(self.files[row], self.orientation)

    def name_of(self, row: int) -> str:
        return str(self.files[row])

    def _pixels(self, row: int) -> np.ndarray:
        pixels = read_image(self.files[row])
        if self.orientation == "stored":
            pixels = as_stored(pixels, self.files[row])
        if self.crops is None:
            return pixels
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = (round(side) for side in self.crops[row])
        cut = pixels[max(0, y0) : min(height, y1), max(0, x0) : min(width, x1)]
        if not cut.size:
            raise UserError(f"{self.files[row]}: the box {self.crops[row]} lies outside its {width}x{height} pixels")
        return cut


class MadeImages(ImageSource):
    """Images that are not files: `make(row)` gives RGB uint8 [H, W, 3]; `key` must say all they hang on."""

    def __init__(
        self,
        key: str,
        count: int,
        make: Callable[[int], np.ndarray],
        fit: Fit,
        members: Sequence[str] | None = None,
    ) -> None:
        self.key = f"{key}-{fit.height}x{fit.width}-{fit.mode}"
        self.fit = fit
        self._members = members
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    def read(self, rows: Tensor) -> Tensor:
        return torch.stack([self.fit.image(self._make(row)) for row in rows.tolist()])

    def members(self) -> Sequence[str]:
        return super().members() if self._members is None else self._members

    def original(self, row: int) -> Tensor:
        """The image at its own size, uint8 [3, H, W]."""
        return torch.from_numpy(self._make(row)).movedim(-1, 0)


def read_image(path: Path) -> np.ndarray:
    """An image file as RGB uint8 [H, W, 3]; UserError names the file and what to do."""
    try:
        return decode_image(path)
    except BadImage as error:
        raise UserError(f"{path} cannot be read as an image ({error}); fetch it again or take it out") from error


def size_of_file(path: Path, orientation: Orientation | None = None) -> PhotoSize:
    """The size of a photograph from its header; UserError where the file is no image."""
    try:
        return photo_size(path, orientation)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise UserError(f"{path} cannot be read as an image ({error}); fetch it again or take it out") from error


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of a photograph as `read_image` gives it, from its header; UserError where it is no image."""
    return size_of_file(path).size


def files_digest(files: Sequence[Path], also: str) -> str:
    """16 hex digits over paths, sizes and dates of the files, and `also`; UserError for one that is missing."""
    digest = hashlib.sha256(also.encode())
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(
                f"{path} is missing ({error.strerror}); fetch it again or take it out of the list"
            ) from error
        digest.update(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
