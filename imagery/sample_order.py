"""From a position in the endless order of samples to the image that stands there, for both kinds of source.

`pick(position)` answers with a function attempt -> Item: attempt 0 is the image itself, attempt 1, 2, ... are its
replacements should it turn out bad. Replacements too are a pure function of (seed, position, attempt).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from common.errors import UserError
from common.keyed_random import index_at, mix, permute
from imagery.contracts import Item, Reader, SequentialSource, Source
from imagery.mixture import BLOCK, Mixture

Candidates = Callable[[int], Item]

_FALLBACK = 0xFA11  # keeps these random numbers apart from the other uses of (seed, position)


class SampleOrder(Protocol):
    def pick(self, position: int) -> Candidates:
        """Positions come in rising order between two `restore`s."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """JSON-able; after `restore` with it any position not before the last one picked can be picked."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


def open_order(source: Source | SequentialSource | Mixture, seed: int, *, shuffle: bool) -> SampleOrder:
    if isinstance(source, Mixture):
        return MixtureOrder(source, seed, shuffle=shuffle)
    if isinstance(source, SequentialSource):
        return WindowOrder(source, seed, shuffle=shuffle)
    return IndexOrder(source, seed, shuffle=shuffle)


class IndexOrder:
    """Over a source that can be read at any index: it has nothing to remember."""

    def __init__(self, source: Source, seed: int, *, shuffle: bool) -> None:
        self.source, self.seed, self.shuffle = source, seed, shuffle

    def pick(self, position: int) -> Candidates:
        def candidate(attempt: int) -> Item:
            length = len(self.source)
            if attempt == 0:
                index = index_at(position, length, self.seed, shuffle=self.shuffle)
            else:
                index = mix(self.seed, position, attempt, _FALLBACK) % length
            return Item(self.source.key(index), partial(self.source.read, index))

        return candidate

    def snapshot(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class WindowOrder:
    """Over a source that can only be read in sequence.

    Items are taken `window` at a time, undecoded, and shuffled among each other; a window never crosses the end of an
    epoch. Every rank reads every window and decodes only its own positions, which is what makes the union over ranks
    equal to one process, and a state good for any number of ranks. What is remembered is where the window starts.
    """

    def __init__(self, source: SequentialSource, seed: int, *, shuffle: bool) -> None:
        self.source, self.seed, self.shuffle = source, seed, shuffle
        self._reader: Reader | None = None
        self._items: list[Item] = []
        self._epoch, self._start = 0, 0
        self._state_at_start: dict[str, Any] | None = None

    def pick(self, position: int) -> Candidates:
        if position < self._start:
            raise ValueError(f"position {position} lies before the window, which starts at {self._start}")
        while position >= self._start + len(self._items):
            self._advance()
        items, start = self._items, self._start
        key = mix(self.seed, self._epoch, start)

        def candidate(attempt: int) -> Item:
            if attempt > 0:
                return items[mix(self.seed, position, attempt, _FALLBACK) % len(items)]
            place = position - start
            return items[permute(place, len(items), key) if self.shuffle else place]

        return candidate

    def snapshot(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "start": self._start, "reader": self._state_at_start}

    def restore(self, state: dict[str, Any]) -> None:
        self._reader, self._items = None, []
        self._epoch, self._start = state["epoch"], state["start"]
        self._state_at_start = state["reader"]

    def _advance(self) -> None:
        """Replace the window by the next one, of the next epoch if this one is over."""
        self._start += len(self._items)
        if self._reader is None:
            self._reader = self._open(self._epoch, self._state_at_start)
        self._state_at_start = self._reader.state()
        self._items = self._reader.read(self.source.window)
        if self._items:
            return
        self._epoch += 1
        self._reader = self._open(self._epoch, None)
        self._state_at_start = self._reader.state()
        self._items = self._reader.read(self.source.window)
        if not self._items:
            raise UserError(f"{self.source.name} holds no images")

    def _open(self, epoch: int, state: dict[str, Any] | None) -> Reader:
        return self.source.open_epoch(epoch, self.seed, shuffle=self.shuffle, state=state)


class MixtureOrder:
    """Over several sources: it asks the order of the one that stands at a position."""

    def __init__(self, mixture: Mixture, seed: int, *, shuffle: bool) -> None:
        self.mixture, self.seed = mixture, seed
        self._orders = [
            open_order(source, mixture.seed_of(index, seed), shuffle=shuffle)
            for index, source in enumerate(mixture.sources)
        ]
        self._block, self._plan = -1, [(0, 0)]

    def pick(self, position: int) -> Candidates:
        block, place = divmod(position, BLOCK)
        if block != self._block:
            self._block, self._plan = block, self.mixture.plan(block, self.seed)
        source, inside = self._plan[place]
        return self._orders[source].pick(inside)

    def snapshot(self) -> dict[str, Any]:
        return {"sources": [order.snapshot() for order in self._orders]}

    def restore(self, state: dict[str, Any]) -> None:
        for order, each in zip(self._orders, state["sources"], strict=True):
            order.restore(each)
