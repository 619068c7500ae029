"""Images in tar shards (the webdataset layout), by index: headers are read once, pixels where they lie."""

import glob
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common.errors import UserError
from imagery.contracts import Content
from imagery.decode import decode_image
from imagery.identity import content_identity
from imagery.left_out import LeftOut
from imagery.patterns import expand_braces
from imagery.samples import keep, kept_extensions
from imagery.shard_cache import ShardCache
from imagery.shard_files import LocalShard, RemoteShard, Shard, open_url
from imagery.shard_index import ShardIndex
from imagery.shard_indices import THREADS, indices_of

URL = re.compile(r"[a-z0-9+]+://")


class TarSource:
    """Images of tar shards in the order of the shards' names, then of their members.

    pick: the extensions of members that are images (samples.py). cache, max_bytes: see shard_cache.py.
    """

    def __init__(
        self, pattern: str, *, pick: str | None = None, cache: Path | None = None, max_bytes: int | None = None
    ) -> None:
        self.name = f"webdataset:{pattern}"
        self.shards = find_shards(pattern)
        indices = indices_of(self.shards)
        self.left_out = LeftOut()
        for index in indices:
            self.left_out.merge(index.left_out)
        kept = kept_extensions(self.name, [index.extensions for index in indices], pick)
        places = [keep(index.extensions, kept, index.names, self.left_out) for index in indices]
        self._hold(indices, places)
        self.problems = [index.problem for index in indices if index.problem]
        total = sum(shard.size for shard in self.shards)
        self.lost_share = sum(index.lost_bytes for index in indices) / max(total, 1)
        if not len(self):
            reasons = [*self.problems, *self.left_out.lines()]
            found = f"; {reasons[0]}" if reasons else ""
            raise UserError(f"no images in the {len(self.shards)} shards of {self.name}{found}")
        self._cache = (
            None if cache is None else ShardCache(self.shards, cache, max_bytes or sum(s.size for s in self.shards))
        )
        lengths = np.diff(self._name_ends)
        self.fingerprint = content_identity(self._names, lengths, self._sizes, self._part)

    def _hold(self, indices: Sequence[ShardIndex], places: Sequence[np.ndarray]) -> None:
        # Flat arrays and one string: lists of Python objects would take gigabytes for tens of millions of images.
        both = list(zip(indices, places, strict=True))
        self._first = np.cumsum([0, *(len(each) for each in places)])
        self._offsets = np.concatenate([index.offsets[each] for index, each in both])
        self._sizes = np.concatenate([index.sizes[each] for index, each in both])
        names = [
            index.names[place].encode("utf-8", "surrogateescape") for index, each in both for place in each.tolist()
        ]
        self._names = b"".join(names)
        self._name_ends = np.cumsum([0, *map(len, names)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, index: int) -> Content:
        return self._part(index, 0, int(self._sizes[index]))

    def load(self, index: int) -> np.ndarray:
        return decode_image(self._part(index, 0, int(self._sizes[index])))

    def key(self, index: int) -> str:
        start, end = self._name_ends[index], self._name_ends[index + 1]
        return f"{self.shards[self._shard(index)].name}:{self._names[start:end].decode(errors='replace')}"

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def _part(self, index: int, offset: int, size: int) -> bytes:
        number, start = self._shard(index), int(self._offsets[index]) + offset
        return self.shards[number].read(start, size) if self._cache is None else self._cache.read(number, start, size)


def find_shards(pattern: str) -> list[Shard]:
    """A tar file, a folder (every .tar in it), a glob, braces ({000..127}, {a,b}), or a URL -> shards, sorted.

    A URL ending in "/" is a folder; globs and folders need a store that can list (s3, gs, hf; not https).
    """
    if URL.match(pattern):
        urls = [url for name in expand_braces(pattern) for url in _urls(name)]
        with ThreadPoolExecutor(THREADS) as pool:  # each asks the store for its size
            return list(pool.map(RemoteShard, dict.fromkeys(urls)))
    shards: set[Path] = set()
    for name in expand_braces(pattern):
        path = Path(name).expanduser()
        found = sorted(path.rglob("*.tar")) if path.is_dir() else [Path(hit) for hit in glob.glob(str(path))]
        found = found or ([path] if path.is_file() else [])  # a file whose very name holds a glob character
        if not found:
            raise UserError(f"webdataset: no shard at {path}")
        shards.update(found)
    return [LocalShard(path) for path in sorted(shards)]


def _urls(url: str) -> list[str]:
    """What a URL with a glob, or of a folder, names; itself if it is one of neither."""
    web = url.startswith(("http://", "https://"))
    if web or not (url.endswith("/") or "*" in url):
        return [url]
    files, path = open_url(url)
    try:
        found = files.glob(path) if "*" in url else [each for each in files.find(path) if each.endswith(".tar")]
    except Exception as error:  # of the store's library
        raise UserError(f"cannot list {url}: {type(error).__name__} ({str(error)[:200]})") from error
    if not found:
        raise UserError(f"webdataset: no shard at {url}")
    return [files.unstrip_protocol(each) for each in sorted(found)]
