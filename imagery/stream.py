"""Endless batches of images for training: shuffled, augmented, split over ranks, resumable to the image.

Shapes: b images a rank and step, w ranks. At the step that starts at global position p, rank r takes the positions
p + r*b + [0..b), and the next step starts at p + b*w. Which image stands at a position, how it is augmented and what
replaces it if it is bad depend on (seed, position) alone, so the union over ranks is what one process with batch b*w
sees, and a run goes on after an interruption as if there had been none, on any number of ranks.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from common.errors import UserError
from imagery.augment import Augment
from imagery.contracts import SequentialSource, Source
from imagery.decode import BadImage
from imagery.identity import PREFIX
from imagery.mixture import Mixture
from imagery.read_counts import ReadCounts, examples
from imagery.sample_order import Candidates, open_order

BATCHES_AHEAD = 2
MAX_ATTEMPTS = 32


@dataclass(frozen=True)
class Batch:
    """images: uint8 [b, 3, H, W], RGB; positions: int64 [b], global; keys: the names of the images shown."""

    images: torch.Tensor
    positions: torch.Tensor
    keys: list[str]


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 0..1, what every backbone takes."""
    return images.float().div_(255)


def _one_core_each() -> None:
    """Keep torch from starting a team of threads for every thread of ours; those of other threads stay as they are."""
    torch.get_num_threads()  # torch sets a thread's number at its first call; ours comes after
    threadpool_limits(1, user_api="openmp")


def _of_before(then: Any, now: Any) -> bool:
    """Whether images are known by content now and were not then."""
    return isinstance(now, str) and PREFIX in now and PREFIX not in str(then)


@dataclass(frozen=True)
class _Sample:
    pixels: torch.Tensor  # uint8 [3, H, W]
    key: str
    bad: tuple[tuple[str, str], ...]  # (key, reason) of what had to be replaced


@dataclass
class _Pending:
    """A batch on its way: where it starts, the order's state before it, and its samples, done or in the making."""

    start: int
    order_state: dict[str, Any]
    positions: range
    samples: list["Future[_Sample]"] = field(default_factory=list)


class ImageStream:
    """An endless iterator of `Batch`; a second `for` loop over it goes on where the first one stopped.

    workers: threads that decode and augment ahead (Pillow releases the interpreter lock); 0 works in the caller.
    Neither their number nor their timing changes what comes out. Bad images are replaced, counted and listed in
    `report()`; UserError once they are more than `max_bad_share` of the images read.

    size_at: the (height, width) of the whole step that starts at a global position, where steps differ in size; a pure
    function, so all ranks give out the same size at a step, and again after a resume. None: always height x width.
    pin_memory: batches in memory that a GPU copies from by itself; needs one.
    """

    def __init__(
        self,
        source: Source | SequentialSource | Mixture,
        *,
        batch_size: int,
        height: int,
        width: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        augment: Augment,
        shuffle: bool = True,
        workers: int = 0,
        max_bad_share: float = 0.05,
        size_at: Callable[[int], tuple[int, int]] | None = None,
        pin_memory: bool = False,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not in 0..{world - 1}")
        if min(batch_size, height, width) < 1 or workers < 0:
            raise UserError("batch size, height and width must be positive, workers zero or more")
        if source.lost_share > max_bad_share:
            raise UserError(f"{source.lost_share:.0%} of {source.name} is unreadable, e.g. {source.problems[0]}")
        self.source, self.seed, self.augment, self.shuffle = source, seed, augment, shuffle
        self.batch_size = batch_size
        self._size_at = size_at or (lambda start: (height, width))
        self.rank, self.world, self.workers, self.pin_memory = rank, world, workers, pin_memory
        self._order = open_order(source, seed, shuffle=shuffle)
        self._next_start = 0  # of the next batch to be prepared; the next one to be given out may be earlier
        self._pending: deque[_Pending] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._counts = ReadCounts(source.name, max_bad_share)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._pending) <= (BATCHES_AHEAD if self.workers else 0):
            self._pending.append(self._prepare())
        pending = self._pending[0]
        samples = [future.result() for future in pending.samples]
        self._counts.add(len(samples), (entry for sample in samples for entry in sample.bad))
        self._pending.popleft()  # only now: had a sample failed, the state would still point at this batch
        return Batch(
            images=self._stacked([sample.pixels for sample in samples]),
            positions=torch.tensor(pending.positions, dtype=torch.int64),
            keys=[sample.key for sample in samples],
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the batch after the last one given out; plain JSON types."""
        ahead = self._pending[0] if self._pending else None
        return {
            "position": ahead.start if ahead else self._next_start,
            "order": ahead.order_state if ahead else self._order.snapshot(),
            **self._identity(),
            "counts": {"rank": self.rank, "world": self.world, **self._counts.state_dict()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, on any rank of any number of ranks. UserError if the images or their order differ."""
        if not {"order", "counts"} <= state.keys():
            raise UserError(f"the place in {self.source.name} was saved by an earlier version; start a new run")
        for name, now in self._identity().items():
            if state[name] != now and _of_before(state[name], now):
                raise UserError(
                    f"this checkpoint is of a version that knew images by name alone, so nobody can tell whether those "
                    f"of {self.source.name} are the same: finish the run with that version, or start a new one"
                )
            if state[name] != now:
                raise UserError(
                    f"the checkpoint was made with other images: {name} was {state[name]!r} and is {now!r} "
                    f"({self.source.name}); start a new run, or put the data back"
                )
        self._drop_pending()
        self._next_start = state["position"]
        self._order.restore(state["order"])
        counts = state["counts"]
        self._counts = ReadCounts(self.source.name, self._counts.max_bad_share)
        # Often one rank's state is saved for all: the order is everyone's, the counts are that rank's alone.
        if (counts["rank"], counts["world"]) == (self.rank, self.world):
            self._counts.load_state_dict(counts)

    def report(self) -> dict[str, Any]:
        """What this rank read so far: images read, bad ones among them, their keys with reasons, unreadable parts."""
        counts = self._counts.state_dict()
        return {**counts, "bad_keys": sorted(counts["bad_reasons"]), "problems": list(self.source.problems)}

    def close(self) -> None:
        """Stop the threads; the stream can still be used, it starts them again."""
        self._rewind_to_given_out()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _stacked(self, images: list[torch.Tensor]) -> torch.Tensor:
        batch = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=self.pin_memory)
        return torch.stack(images, out=batch)

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "shuffle": self.shuffle, "fingerprint": self.source.fingerprint}

    def _prepare(self) -> _Pending:
        """Start on the next batch of this rank: decide what is in it, and hand it to the threads if there are any."""
        start = self._next_start
        first = start + self.rank * self.batch_size
        pending = _Pending(start, self._order.snapshot(), range(first, first + self.batch_size))
        size = self._size_at(start)
        for position in pending.positions:
            pending.samples.append(self._submit(position, self._order.pick(position), size))
        self._next_start = start + self.batch_size * self.world
        return pending

    def _submit(self, position: int, candidates: Candidates, size: tuple[int, int]) -> "Future[_Sample]":
        if self.workers:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="imagery", initializer=_one_core_each)
            return self._pool.submit(self._make, position, candidates, size)
        done: Future[_Sample] = Future()
        try:
            done.set_result(self._make(position, candidates, size))
        except UserError as error:
            done.set_exception(error)  # raised where the batch is given out, as it is with threads
        return done

    def _make(self, position: int, candidates: Candidates, size: tuple[int, int]) -> _Sample:
        """The augmented image at `position`, or its first good replacement."""
        bad: list[tuple[str, str]] = []
        for attempt in range(MAX_ATTEMPTS):
            item = candidates(attempt)
            try:
                pixels = self.augment.apply(item.read(), *size, seed=self.seed, position=position)
            except BadImage as error:
                bad.append((item.key, str(error)))
                continue
            channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            return _Sample(torch.from_numpy(channels_first), item.key, tuple(bad))
        distinct = dict(bad)
        raise UserError(
            f"{self.source.name}: no image could be read in {MAX_ATTEMPTS} tries, among them {len(distinct)} different "
            f"one{'s' if len(distinct) > 1 else ''}, e.g. {examples(distinct)}"
        )

    def _drop_pending(self) -> None:
        for pending in self._pending:
            for sample in pending.samples:
                sample.cancel()
        self._pending.clear()

    def _rewind_to_given_out(self) -> None:
        """Forget the batches prepared ahead, so that they are prepared again."""
        if self._pending:
            self._next_start = self._pending[0].start
            self._order.restore(self._pending[0].order_state)
            self._drop_pending()
