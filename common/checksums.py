"""Folders whose every file has its size and checksum written down, so that damage is found before it is used.

The checksums are XXH3 of 128 bits: against disks, memory and half-written files, not against people who mean harm
(those are what `common.digests` is for). It runs at memory speed, which SHA-256 does not.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from common.errors import UserError

MANIFEST = "manifest.json"
CHECKSUM = "checksum"  #: of the weights, in the description that lies beside them: [bytes, checksum]
_SCHEMA = 1
_CHUNK = 4 << 20

Entries = dict[str, list[Any]]  #: path below the folder -> [bytes, checksum]


class Damaged(Exception):
    """A folder that is not as it was written; the message says in which file."""


class ChecksumFile:
    """A file to write to from front to back, which knows the checksum of what went through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.size = file, xxhash.xxh3_128(), 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _CHUNK):  # small enough to be in the processor's cache the second time
            piece = view[start : start + _CHUNK]
            self._hash.update(piece)
            self._file.write(piece)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        self._file.flush()

    @property
    def entry(self) -> list[Any]:
        """[bytes, checksum] so far."""
        return [self.size, self._hash.hexdigest()]


def write_checked(path: Path, write: Callable[[Any], object]) -> list[Any]:
    """Make a file by `write(file)`; returns [bytes, checksum] of what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        checked = ChecksumFile(file)
        write(checked)
    return checked.entry


def entry_of(path: Path) -> list[Any]:
    """[bytes, checksum] of a file as it is."""
    hasher, size = xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_CHUNK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            hasher.update(view[:count])
            size += count
    return [size, hasher.hexdigest()]


def write_manifest(folder: Path, entries: Mapping[str, list[Any]]) -> None:
    """Write down what the folder must hold, itself guarded."""
    (folder / MANIFEST).write_text(_text(dict(sorted(entries.items()))), encoding="utf-8")


def seal(folder: Path) -> None:
    """Write down what the folder holds, when all that belongs to it is there."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    write_manifest(folder, {str(path.relative_to(folder)): entry_of(path) for path in files})


def read_manifest(folder: Path) -> Entries:
    """What a folder must hold. Damaged where the manifest is missing, or not as it was written."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        content = json.loads(text)
        files, schema = content["files"], content["schema"]
    except FileNotFoundError:
        raise Damaged(f"it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{MANIFEST} is damaged") from None
    if schema != _SCHEMA:
        raise Damaged(f"{MANIFEST} is of another version of this program ({schema}, this one reads {_SCHEMA})")
    if not isinstance(files, dict) or text != _text(files):
        raise Damaged(f"{MANIFEST} is damaged")
    return files


def check_folder(folder: Path, share: tuple[int, int] = (0, 1)) -> None:
    """Damaged unless every file is as it was written. share: (which, of how many) to check this part of the files."""
    files = sorted(read_manifest(folder).items())
    check_files(folder, files[share[0] :: share[1]])


def check_file(path: Path) -> None:
    """Damaged unless a file is as the manifest beside it says; a file without one passes."""
    if (path.parent / MANIFEST).is_file():
        entries = read_manifest(path.parent)
        check_files(path.parent, [(path.name, entries[path.name])] if path.name in entries else [])


def check_weights(path: Path, description: Mapping[str, Any]) -> None:
    """UserError unless a file is as the description beside it says; of an older one, which says nothing, it passes."""
    entry = description.get(CHECKSUM)
    if not path.is_file() or not isinstance(entry, list) or len(entry) != 2:
        return
    try:
        check_files(path.parent, [(path.name, entry)])
    except Damaged as damage:
        raise UserError(
            f"{path.parent} is damaged: {damage}. Take another copy; who changed the file on purpose removes "
            f'"{CHECKSUM}" from the file beside it'
        ) from damage


def check_files(folder: Path, files: Iterable[tuple[str, list[Any]]]) -> None:
    """Damaged unless these files of the folder are as their entries say."""
    for name, (size, checksum) in files:
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != size:
            raise Damaged(f"{name} has {path.stat().st_size} bytes of {size}")
        if entry_of(path)[1] != checksum:
            raise Damaged(f"{name} is not as it was written")


def _text(files: Entries) -> str:
    """A manifest, the one way it is written: whatever differs from this is damage."""
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(files, sort_keys=True).encode())
    return json.dumps({"schema": _SCHEMA, "files": files, "checksum": checksum}, indent=1)
