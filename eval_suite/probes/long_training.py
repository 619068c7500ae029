"""What probes that train for hours share: batches read ahead by threads, and a state that is kept after each epoch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from common.recipes import Node
from common.store import Store, packed_state, unpacked_state
from eval_suite import processes
from eval_suite.provenance import digests_of

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
        self.store = None if folder is None else Store(folder / "training", identity)

    def load(self) -> dict[str, Any] | None:
        """What was kept last; None where there is nothing, or nothing whole."""
        found = None if self.store is None else self.store.read({})
        return None if found is None else unpacked_state(found["state"])

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state of tensors, numbers and texts; a reader sees the old file or the new one. First process only."""
        if self.store is not None and not processes.rank():
            self.store.write({}, {"state": packed_state(state)})


def training_identity(backbone: Any, probe: Node, found: Any, labels: Sequence[str], seed: int) -> dict[str, Any]:
    """All that decides what a probe learns: backbone, every option, images and labels, seed."""
    learn = {"images": found.images.key, "labels": digests_of(found, "learn", labels)}
    return {"backbone": backbone.identity(), "probe": probe.model_dump(mode="json"), "learn": learn, "seed": seed}
