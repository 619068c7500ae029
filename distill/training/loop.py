"""The training loop: fetch, look, learn, log, save; for one arm or many. It knows no teacher."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from distill.training.crew import Crew
from distill.training.data import Shown, Streams, Taken, micro_batches, show
from distill.training.update import Learner, Seen

Fetch = Callable[[int], list[Taken]]  #: the images of update number `step` (0, 1, ...), asked for in rising order


def train(learners: Sequence[Learner], stream: Streams, device: torch.device) -> None:
    """Every learner from where it stands to its last step, all of them on the same batches of the same streams.

    `stream` must stand where the learner that is furthest behind stands; the others wait until it has caught up. All
    learners must agree on optim.accumulate and on `engine` (`distill.training.arm_groups`).
    """
    first = min(learner.start for learner in learners)
    last = max(learner.recipe.optim.steps for learner in learners)
    loop = Loop(learners, stream.take, device)
    quiet = not learners[0].engine.accelerator.is_main_process
    name = ", ".join(learner.recipe.name for learner in learners)
    bar = tqdm(total=last, initial=first, desc=name, disable=quiet, mininterval=2, leave=True)
    losses: dict[str, str] = {}
    for done in range(first + 1, last + 1):
        for learner, loss in loop.update(done):
            losses["loss" if len(learners) == 1 else learner.recipe.name] = f"{loss:.4f}"
            bar.set_postfix(losses, refresh=False)
        bar.update()
    bar.close()
    loop.close()


@dataclass
class Prepared:
    """An update's images, and for learners that looked already what they saw; `seconds` is what that took."""

    taken: list[Taken]
    shown: list[Shown] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)  #: of each learner that takes part
    seconds: dict[str, list[float]] = field(default_factory=dict)  #: by what they count as, for each learner


class Loop:
    """The updates of several learners on the same images.

    Where arms step side by side (crew.py), the next update's images and targets are made beside them: with an
    odd number of students a core would stand idle, and the teachers' passes fill it.
    """

    def __init__(self, learners: Sequence[Learner], fetch: Fetch, device: torch.device) -> None:
        self.learners, self.fetch, self.device = learners, fetch, device
        self.crew = Crew(learners[0].recipe.engine, learners[0].engine.accelerator, len(learners))
        self._next: tuple[int, Prepared | BaseException] | None = None
        for learner in learners:
            learner.engine.model.train()
            learner.clock.restart()

    def close(self) -> None:
        """Let the threads go."""
        self.crew.close()

    def update(self, done: int) -> list[tuple[Learner, float]]:
        """Update number `done` (1, 2, ...) of every learner, logged and saved; the losses that were logged."""
        active = self._active(done)
        ready = self._ready(done) or self._take(done, active)
        for index, learner in enumerate(active):
            for name, seconds in ready.seconds.items():
                learner.clock.add(name, seconds[index])
            learner.begin(done)
        if ready.seen:
            self._learn(active, ready.shown, ready.seen, done, last=True)
        else:
            # Micro-batch by micro-batch, so that no more than one is on the device.
            pieces = micro_batches(ready.taken, self.learners[0].recipe.optim.accumulate)
            for number, piece in enumerate(pieces, 1):
                shown = show(piece, self.device)
                self._learn(active, shown, None, done, last=number == len(pieces))
        losses = []
        for learner in active:
            with learner.turn():
                loss = learner.finish(done, ready.taken)
            if loss is not None:
                losses.append((learner, loss))
        return losses

    def _active(self, done: int) -> list[Learner]:
        return [learner for learner in self.learners if learner.takes_part(done)]

    def _learn(
        self, active: Sequence[Learner], shown: Sequence[Shown], seen: Sequence[Seen] | None, done: int, *, last: bool
    ) -> None:
        """A micro-batch of every learner; `seen` where they have looked at it already."""
        together = []
        for index, learner in enumerate(active):
            with learner.turn():
                if seen is None:
                    targets = self.crew.alone(lambda learner=learner, index=index: learner.look(shown, index == 0))
                else:
                    targets = seen[index]
                learn = job(learner, shown, targets, last=last)
                if learner.draws or self.crew.hands == 1:
                    self.crew.alone(learn)
                else:
                    together.append(learn)
        if last and self._may_prepare(done, active):
            together.insert(0, lambda: self._prepare(done + 1, active))  # the longest job first
        self.crew.run(together)

    def _take(self, done: int, active: Sequence[Learner]) -> Prepared:
        began = time.perf_counter()
        taken = self.fetch(done - 1)
        return Prepared(taken, seconds={"data": [time.perf_counter() - began] * len(active)})

    def _ready(self, done: int) -> Prepared | None:
        """What was prepared for this update, or the error that this met, raised now that the update is due."""
        if self._next is None or self._next[0] != done:
            return None
        prepared, self._next = self._next[1], None
        if isinstance(prepared, BaseException):
            raise prepared
        return prepared

    def _may_prepare(self, done: int, active: Sequence[Learner]) -> bool:
        """Whether the next update's images may be taken, and its targets made, while this update is still going on.

        Not where a checkpoint is due, which holds the stream's place; not over the border of a stage; and only where
        targets are a function of the images alone.
        """
        return (
            self.crew.hands > 1
            and self._active(done + 1) == active
            and all(learner.looks_ahead(done) for learner in active)
        )

    def _prepare(self, done: int, active: Sequence[Learner]) -> None:
        """Images and targets of update `done`, beside students that still make the one before."""
        try:
            ready = self._take(done, active)
            ready.shown, ready.seconds["teachers"] = show(ready.taken, self.device), []
            for index, learner in enumerate(active):
                began = time.perf_counter()
                ready.seen.append(learner.targets(ready.shown, index == 0))
                ready.seconds["teachers"].append(time.perf_counter() - began)
            self._next = (done, ready)
        except Exception as error:  # the update that is going on has no part in it, and is finished first
            self._next = (done, error)


def job(learner: Learner, shown: Sequence[Shown], seen: Seen, *, last: bool) -> Callable[[], None]:
    """A learner's part in a micro-batch, to be done in its turn or beside others'."""

    def learn() -> None:
        learner.clock.start()
        learner.learn(shown, seen, last)

    return learn
