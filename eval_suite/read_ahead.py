"""The next batch of images is read while the backbone looks at the last one."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar, cast

from torch import Tensor

from eval_suite.readers.contracts import ImageSource

T = TypeVar("T")
_END = object()


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items in the same order, the next one made in a thread while the last one is used."""
    source = iter(items)
    with ThreadPoolExecutor(1, "ahead") as pool:
        coming = pool.submit(next, source, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, source, _END)
            yield cast(T, item)


class ReadAhead:
    """Batches of a source in a known order, one of them in the making; a context, so that no thread is left over."""

    def __init__(self, images: ImageSource, batches: Sequence[Tensor]) -> None:
        self._images = images
        self._batches = list(batches)
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._next: tuple[int, Future[Tensor]] | None = None  #: first row, and the images from there on

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, rows: Tensor) -> Tensor:
        """uint8 [b, 3, H, W]; rows that are not the next ones (a damaged cache file) are read on the spot."""
        if self._next is None or self._next[0] != int(rows[0]):
            return self._images.read(rows)
        found = self._next[1].result()
        self._start()
        return found

    def _start(self) -> None:
        self._next = None
        if self._batches:
            rows = self._batches.pop(0)
            self._next = int(rows[0]), self._pool.submit(self._images.read, rows)
