"""Where shards lie: files of this machine, or objects behind a URL. Both give bytes at an offset.

A connection that breaks, also in the middle of a member, is tried again from the start of the range; only a range that
came whole is used. When it stays broken the run stops in words: taking another image instead would change what is
trained on without anybody's knowledge.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from common.errors import UserError
from imagery.decode import BadImage

ATTEMPTS = 6
FIRST_WAIT = 0.2  # seconds; doubled after every attempt
#: URL scheme -> what has to be installed for it.
SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub"}
#: What stores call the version of an object, or its date; the best first.
VERSIONS = ("ETag", "etag", "Content-MD5", "Digest", "LastModified", "Last-Modified", "updated", "mtime")


class Shard(Protocol):
    """One tar file. `identity` changes when its content does: size, and date or entity tag."""

    name: str
    where: str
    size: int
    identity: dict[str, Any]

    def read(self, offset: int, size: int) -> bytes:
        """The bytes there, fewer at the end alone. BadImage where the disk fails, UserError where the network does."""
        ...

    def opened(self) -> AbstractContextManager[Callable[[int, int], bytes]]:
        """`read` for many small reads from front to back."""
        ...


class LocalShard:
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.where = path, path.name, str(path)
        try:
            found = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        self.size = found.st_size
        self.identity: dict[str, Any] = {"size": found.st_size, "mtime_ns": found.st_mtime_ns}

    def read(self, offset: int, size: int) -> bytes:
        try:
            with open(self.path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), min(size, max(0, self.size - offset)), offset)
        except (OSError, MemoryError) as error:
            raise BadImage(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def opened(self) -> Iterator[Callable[[int, int], bytes]]:
        try:
            with open(self.path, "rb", buffering=0) as file:
                yield lambda offset, size: os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error


class RemoteShard:
    """An object, read in ranges through fsspec."""

    def __init__(self, url: str) -> None:
        self.where, self.name = url, url.partition("?")[0].rpartition("/")[2]
        self._files, self._path = open_url(url)
        facts = self._patiently("size", lambda: self._files.info(self._path))
        if not facts.get("size"):
            raise UserError(f"{url}: the server does not say how large it is, so it cannot be read in ranges")
        self.size = int(facts["size"])
        version = next((facts[name] for name in VERSIONS if facts.get(name)), "")
        self.identity = {"size": self.size, "etag": str(version)}

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        return self._patiently(f"bytes {offset} to {offset + size}", lambda: self._range(offset, size))

    @contextmanager
    def opened(self) -> Iterator[Callable[[int, int], bytes]]:
        yield _Pieces(self.read).read

    def beside(self, suffix: str) -> bytes | None:
        """The object of this name and a suffix, if there is one."""
        try:
            return self._files.cat_file(self._path + suffix)
        except Exception:  # absent, forbidden, a list of another kind: then there is none for us
            return None

    def _range(self, offset: int, size: int) -> bytes:
        content = self._files.cat_file(self._path, start=offset, end=offset + size)
        if len(content) == self.size > size:
            raise UserError(f"{self.where}: the server ignores ranges and sends the whole file; copy it to a disk")
        if len(content) != size:  # cut off, or the page of somebody in between
            raise OSError(f"{len(content)} bytes came where {size} were asked for")
        return content

    def _patiently(self, what: str, action: Callable[[], Any]) -> Any:
        wait = FIRST_WAIT
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except (UserError, FileNotFoundError, PermissionError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"cannot read {self.where}: {type(error).__name__} ({error})") from error
            except Exception as error:  # every library has its own; what is broken may be whole a second later
                if attempt == ATTEMPTS:
                    raise UserError(
                        f"cannot read {what} of {self.where} in {ATTEMPTS} attempts: {type(error).__name__} "
                        f"({str(error)[:200]}); start again to go on from the last checkpoint"
                    ) from error
                time.sleep(wait)
                wait *= 2


def open_url(url: str) -> tuple[Any, str]:
    """(file system, path on it); UserError for a scheme that is not read or whose package is missing."""
    import fsspec

    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise UserError(f'"{scheme}://" is not read; known: {", ".join(f"{name}://" for name in SCHEMES)}')
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{scheme}:// needs the package {SCHEMES[scheme]}: pip install {SCHEMES[scheme]}") from error


class _Pieces:
    """Reads large pieces, and answers small requests from the one it holds."""

    def __init__(self, read: Callable[[int, int], bytes], piece: int = 4 << 20) -> None:
        self._read, self._piece = read, piece
        self._start, self._held = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        begin = offset - self._start
        if not 0 <= begin <= begin + size <= len(self._held):
            self._start, self._held, begin = offset, self._read(offset, max(size, self._piece)), 0
        return self._held[begin : begin + size]
