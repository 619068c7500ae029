"""How much memory tensors take at once, on any device: every operation's results are counted while they live.

The C library's allocator and the working buffers inside an operation are not seen; the tensors are what grows with
the size of an image.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from common.torch_internals import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """`with PeakMemory() as memory: ...` -> memory.peak, bytes of the tensors made inside that lived at one time.

    Tensors from before are not counted, nor views of them. `current` is what of those made inside is still alive.
    meta: count tensors of the meta device, which take no memory, for what they would take elsewhere; else they are not.
    """

    def __init__(self, *, meta: bool = False) -> None:
        super().__init__()
        self.meta = meta
        self.current = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in _tensors((args, kwargs))}
        for leaf in _tensors(out):
            self._count(leaf.untyped_storage(), given)
        return out

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = id(storage), storage.nbytes()  # one object as long as its memory lives
        if key in self._alive or key in given or (storage.device.type == "meta") != self.meta:
            return
        self._alive.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.current -= size


def _tensors(thing: Any) -> Iterator[Tensor]:
    """Those with a storage, at any depth (torch's own tree functions take longer than the operation itself)."""
    if isinstance(thing, Tensor):
        if thing.layout == torch.strided:
            yield thing
    elif isinstance(thing, (tuple, list)):
        for part in thing:
            yield from _tensors(part)
    elif isinstance(thing, dict):
        for part in thing.values():
            yield from _tensors(part)
