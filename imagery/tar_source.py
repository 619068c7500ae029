"""Images in local tar shards (the webdataset layout), by index: headers are read once, pixels where they lie.

Nothing is ever extracted: a member is a byte range of its shard, so names with "..", links and devices have no effect.
A damaged shard gives what lies before the damage; a truncated member is left out; both are listed in `problems`.
"""

import glob
import hashlib
import itertools
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.errors import UserError
from imagery.decode import BadImage, decode_image, is_image_name
from imagery.patterns import expand_braces


@dataclass
class ShardIndex:
    """The images of one shard: names, and where their bytes lie."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost_bytes: int = 0


class TarSource:
    """Images of tar shards in the order of the shards' names, then of their members."""

    def __init__(self, pattern: str) -> None:
        self.name = f"webdataset:{pattern}"
        self.shards = find_shards(pattern)
        indices = [index_shard(path) for path in self.shards]
        counts = [len(index.names) for index in indices]
        # Flat arrays and one string: lists of Python objects would take gigabytes for tens of millions of images.
        self._first = np.cumsum([0, *counts])
        self._offsets = np.fromiter(itertools.chain.from_iterable(index.offsets for index in indices), np.int64)
        self._sizes = np.fromiter(itertools.chain.from_iterable(index.sizes for index in indices), np.int64)
        names = [name.encode(errors="surrogateescape") for index in indices for name in index.names]
        self._names = b"".join(names)
        self._name_ends = np.cumsum([0, *map(len, names)])
        self.problems = [problem for index in indices for problem in index.problems]
        total = sum(path.stat().st_size for path in self.shards)
        self.lost_share = sum(index.lost_bytes for index in indices) / max(total, 1)
        self.fingerprint = hashlib.sha256(self._names + self._sizes.tobytes() + self._first.tobytes()).hexdigest()
        if not len(self):
            found = f", e.g. {self.problems[0]}" if self.problems else ""
            raise UserError(f"no images in the {len(self.shards)} shards of {self.name}{found}")

    def __len__(self) -> int:
        return int(self._first[-1])

    def load(self, index: int) -> np.ndarray:
        return decode_image(self._bytes(index))

    def key(self, index: int) -> str:
        start, end = self._name_ends[index], self._name_ends[index + 1]
        return f"{self._shard(index).name}:{self._names[start:end].decode(errors='replace')}"

    def _shard(self, index: int) -> Path:
        return self.shards[int(np.searchsorted(self._first, index, side="right")) - 1]

    def _bytes(self, index: int) -> bytes:
        try:
            with open(self._shard(index), "rb") as shard:
                shard.seek(int(self._offsets[index]))
                return shard.read(int(self._sizes[index]))
        except OSError as error:
            raise BadImage(str(error)) from error


def find_shards(pattern: str) -> list[Path]:
    """A tar file, a folder (every .tar in it), a glob, or braces ({000..127}, {a,b}) -> existing files, sorted."""
    if "://" in pattern or pattern.startswith("pipe:"):
        raise UserError(f'webdataset reads local shards, got "{pattern}": download them, or use hf:NAME?streaming=true')
    shards: set[Path] = set()
    for name in expand_braces(pattern):
        path = Path(name).expanduser()
        found = sorted(path.rglob("*.tar")) if path.is_dir() else [Path(hit) for hit in glob.glob(str(path))]
        found = found or ([path] if path.is_file() else [])  # a file whose very name holds a glob character
        if not found:
            raise UserError(f"webdataset: no shard at {path}")
        shards.update(found)
    return sorted(shards)


def index_shard(path: Path) -> ShardIndex:
    """Read the headers of one tar file, no data. Damage ends up in the index, not in an exception."""
    index = ShardIndex()
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise UserError(f"{path} is compressed, so its images cannot be read by index: gunzip it")
            sound_until = _index_members(file, size, index)
            file.seek(sound_until)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # a sound archive ends in zeros, or just ends
                index.problems.append(f"{path.name}: damaged at byte {sound_until}, the rest is lost")
                index.lost_bytes = size - sound_until
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return index


def _index_members(file: BinaryIO, size: int, index: ShardIndex) -> int:
    """Add the images of an open tar file of `size` bytes to `index` -> the byte up to which it could be read."""
    file.seek(0)
    sound_until = 0
    try:
        # Opening reads the first header already, and so may fail like every later one.
        with tarfile.TarFile(fileobj=file) as archive:
            for member in archive:
                if member.size < 0 or member.offset_data + member.size > size:
                    return sound_until
                if member.isreg() and not member.issparse() and is_image_name(os.path.basename(member.name)):
                    index.names.append(member.name)
                    index.offsets.append(member.offset_data)
                    index.sizes.append(member.size)
                sound_until = archive.offset
            return sound_until
    except Exception:
        # Damaged headers make tarfile raise much more than its own errors. What was found before stands.
        return sound_until
