"""Copies of shards on a fast disk, as many as a bound allows, made in the background while training goes on.

An image is read from the copy of its shard once that is whole, before that from the shard itself: what comes out is the
same. Shards that there is no room for are read where they lie. The processes of a machine share the folder; each copy
is made by one of them.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from common.atomic import WRITING, replacing_file
from common.digests import digest_value, short
from common.errors import UserError
from imagery.shard_files import Shard
from imagery.shard_index import LOOKS
from imagery.tar_members import BLOCK

GIB = 1 << 30
_PIECE = 16 << 20
_ABANDONED = 24 * 3600  # seconds after which an unfinished copy is nobody's


class ShardCache:
    """Reads of shards by number. folder: where copies go; max_bytes: what all files there may take together."""

    def __init__(self, shards: Sequence[Shard], folder: Path, max_bytes: int) -> None:
        self._shards, self._folder, self._max_bytes = shards, folder, max_bytes
        self._paths = [folder / f"{short(digest_value([each.where, each.identity]))}.tar" for each in shards]
        self._copied: set[int] = set()
        self._started = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (probe := folder / f"{WRITING}{os.getpid()}").touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"cache={folder}: cannot write there: {error.strerror}") from error

    def read(self, number: int, offset: int, size: int) -> bytes:
        """As the shard's own `read`."""
        if self._started.acquire(blocking=False):  # never given back: the first read starts the copying
            threading.Thread(target=self._copy_all, name="shard cache", daemon=True).start()
        if number in self._copied:
            try:
                with open(self._paths[number], "rb", buffering=0) as file:
                    content = os.pread(file.fileno(), size, offset)
                if len(content) == size:
                    return content
            except OSError:
                self._copied.discard(number)  # another run made room
        return self._shards[number].read(offset, size)

    def _copy_all(self) -> None:
        count = len(self._shards)
        first = count * int(os.environ.get("RANK", "0")) // max(1, int(os.environ.get("WORLD_SIZE", "1")))
        waiting = [(first + place) % count for place in range(count)]
        try:
            while waiting:
                left = [number for number in waiting if not self._copy(number)]
                if len(left) == len(waiting):
                    time.sleep(1)
                waiting = left
        except (OSError, UserError) as error:  # a full disk, a network that stays away: reading goes on without
            print(f"cache={self._folder}: no more shards are copied: {error}", file=sys.stderr, flush=True)

    def _copy(self, number: int) -> bool:
        """Whether this shard is settled: copied, or without room; False while another process copies it."""
        path, shard = self._paths[number], self._shards[number]
        try:
            with FileLock(self._folder / f".{path.name}.lock", timeout=0):
                if not _is_copy(path, shard):
                    if not self._make_room(shard.size):
                        return True
                    with replacing_file(path) as temporary, open(temporary, "wb") as file:
                        for start in range(0, shard.size, _PIECE):
                            file.write(shard.read(start, _PIECE))
                os.utime(path)  # when it was last of use
        except Timeout:
            return False
        self._copied.add(number)
        return True

    def _make_room(self, size: int) -> bool:
        """Remove other data's copies, the longest unused first, until `size` more bytes fit; False if they cannot."""
        for path in self._folder.glob(f"{WRITING}*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
        files = sorted(((path.stat(), path) for path in self._folder.glob("*.tar")), key=lambda each: each[0].st_mtime)
        used = sum(status.st_size for status, _ in files)
        for status, path in files:
            if used + size <= self._max_bytes:
                break
            if path not in self._paths:
                path.unlink(missing_ok=True)
                used -= status.st_size
        return used + size <= self._max_bytes


def _is_copy(path: Path, shard: Shard) -> bool:
    """Whether a file is a copy of the shard as it is, by its size and some blocks: a date may outlive a content."""
    if not path.is_file() or path.stat().st_size != shard.size:
        return False
    with open(path, "rb", buffering=0) as file:
        starts = {shard.size * part // (LOOKS - 1) // BLOCK * BLOCK for part in range(LOOKS - 1)}
        return all(os.pread(file.fileno(), BLOCK, start) == shard.read(start, BLOCK) for start in starts)
