"""The indices of many shards: each is made once, kept beside its shard or in the cache folder, and shared by all ranks.

A kept index counts for the shard of the very size and date (or entity tag) alone. Whoever makes one holds its lock;
others make other shards' meanwhile, and wait only when nothing else is left to do.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from common.atomic import write_bytes
from common.digests import digest_bytes, short
from common.errors import UserError
from imagery.decode import BadImage
from imagery.shard_files import LocalShard, RemoteShard, Shard
from imagery.shard_index import ShardIndex, agrees, from_bytes, index_shard, to_bytes

SUFFIX = ".index"
THREADS = 16
_LOOK_AGAIN = 0.1  # seconds


def cache_folder() -> Path:
    """Where indices of shards go that lie where nobody can write: $AGGLOMERATE_CACHE, else the user's cache folder."""
    if named := os.environ.get("AGGLOMERATE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agglomerate"


def indices_of(shards: Sequence[Shard]) -> list[ShardIndex]:
    """The index of every shard, in order; what is not kept is made now."""
    found: dict[int, ShardIndex] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for place, index in enumerate(pool.map(kept, shards)):
            if index is not None:
                found[place] = index
        missing = [place for place in range(len(shards)) if place not in found]
        # Ranks begin at different places, so that they rarely meet at a lock.
        first = len(missing) * int(os.environ.get("RANK", "0")) // max(1, int(os.environ.get("WORLD_SIZE", "1")))
        missing = missing[first:] + missing[:first]
        while missing:
            made = dict(zip(missing, pool.map(lambda place: make(shards[place]), missing), strict=True))
            found |= {place: index for place, index in made.items() if index is not None}
            others = [place for place in missing if place not in found]
            if len(others) == len(missing):
                time.sleep(_LOOK_AGAIN)
            missing = others
    return [found[place] for place in range(len(shards))]


def kept(shard: Shard) -> ShardIndex | None:
    """The index that was kept of a shard as it is now, if any."""
    for path in _places(shard):
        with suppress(OSError):
            if index := _true(from_bytes(path.read_bytes(), shard.identity), shard):
                return index
    if isinstance(shard, RemoteShard) and (content := shard.beside(SUFFIX)):
        return _true(from_bytes(content, {"size": shard.size}), shard, known=False)
    return None


def _true(index: ShardIndex | None, shard: Shard, *, known: bool = True) -> ShardIndex | None:
    """The index, if it is of this very shard. known: it is of a shard of the same identity."""
    if index is None or (known and shard.identity.get("etag")):  # an entity tag changes with the content
        return index
    try:
        return index if agrees(index, shard.read) else None
    except BadImage:  # a disk that fails: whoever reads on says so
        return None


def make(shard: Shard) -> ShardIndex | None:
    """Make and keep the index of a shard; None while somebody else is at it."""
    for path in _places(shard):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
            with lock:
                index = kept(shard) or _made(shard)
                write_bytes(path, to_bytes(index, shard.identity))
            with suppress(OSError):
                Path(lock.lock_file).unlink()
            return index
        except Timeout:
            return None
        except OSError:
            continue  # a place where nobody can write
    return _made(shard)


def _made(shard: Shard) -> ShardIndex:
    with shard.opened() as read:
        if read(0, 2) == b"\x1f\x8b":
            raise UserError(f"{shard.where} is compressed, so its images cannot be read by index: gunzip it")
        index = index_shard(read, shard.size)
    if index.problem:
        index.problem = f"{shard.name}: {index.problem}"
    return index


def _places(shard: Shard) -> list[Path]:
    """Where the index may be kept, the best place first."""
    cached = cache_folder() / "shards" / f"{short(digest_bytes(_place_of(shard).encode()))}{SUFFIX}"
    return [Path(shard.where + SUFFIX), cached] if isinstance(shard, LocalShard) else [cached]


def _place_of(shard: Shard) -> str:
    return str(Path(shard.where).resolve()) if isinstance(shard, LocalShard) else shard.where
