"""What a place that images come from has to offer: images by index or, where that is impossible, in sequence."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from imagery.left_out import LeftOut

Content = bytes | np.ndarray
"""An image as it is found: an encoded file, or uint8 RGB pixels [H, W, 3] where images are made."""


@dataclass(frozen=True)
class Item:
    """One image that has been found but not read. `read` gives its content, or raises BadImage."""

    key: str
    read: Callable[[], Content]


@runtime_checkable
class Source(Protocol):
    """Images by index. Must be safe to use from several threads."""

    name: str
    fingerprint: str  # of content (identity.py); changes whenever an index would mean another image
    problems: list[str]  # parts that could not be read at all, in words
    lost_share: float  # share of the data those problems took away
    left_out: LeftOut  # what lies there and is not shown

    def __len__(self) -> int: ...

    def read(self, index: int) -> Content:
        """What `load` decodes; raises BadImage."""
        ...

    def load(self, index: int) -> np.ndarray:
        """uint8 RGB [H, W, 3]; raises BadImage."""
        ...

    def key(self, index: int) -> str:
        """A name for messages that lets a person find the image."""
        ...


class Reader(Protocol):
    """One pass over a sequential source."""

    def read(self, count: int) -> list[Item]:
        """The next `count` items, undecoded; fewer only at the end of the epoch."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able; `open_epoch` with it gives a reader whose next item is the one this reader would give next."""
        ...


@runtime_checkable
class SequentialSource(Protocol):
    """Images in the order in which they arrive."""

    name: str
    fingerprint: str
    problems: list[str]
    lost_share: float
    left_out: LeftOut
    window: int  # how many undecoded items are held at once, and shuffled among each other

    def open_epoch(self, epoch: int, seed: int, *, shuffle: bool, state: dict[str, Any] | None) -> Reader:
        """Start epoch number `epoch`, or go on from a reader's state."""
        ...
