"""What probes that train for hours share: batches read ahead by threads, and a state that is kept after each epoch."""

import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from eval_suite import processes

Item = TypeVar("Item")
Made = TypeVar("Made")
READERS = 4  #: threads; image decoders release the interpreter's lock


def ahead(make: Callable[[Item], Made], items: Iterable[Item], *, readers: int = READERS) -> Iterator[Made]:
    """`make(item)` in order, up to `readers` of them being made at a time."""
    with ThreadPoolExecutor(readers) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class KeptState:
    """The state of one training under `folder` (None: kept nowhere), known by all that it hangs on."""

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.path = None if folder is None else folder / "training" / f"{digest}.pt"

    def load(self) -> dict[str, Any] | None:
        """What was kept last; None where there is nothing, or nothing whole."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # cut short or damaged: trained again
            return None

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state of tensors, numbers and texts; a reader sees the old file or the new one. First process only."""
        if self.path is None or processes.rank():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".state.")
        os.close(handle)
        try:
            torch.save(dict(state), temporary)
            os.replace(temporary, self.path)
        finally:
            Path(temporary).unlink(missing_ok=True)
