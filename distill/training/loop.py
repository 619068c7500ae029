"""The training loop: fetch, look, learn, log, save; for one arm or many. It knows no teacher."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from common.interruption import Stopped, heeding
from distill.training.crew import Crew
from distill.training.data import PassBatch, RawBatch, Streams, micro_batches, to_device
from distill.training.update import ArmTrainer, PassTargets

Fetch = Callable[[int], list[RawBatch]]  #: the images of update number `step` (0, 1, ...), asked for in rising order


def train(trainers: Sequence[ArmTrainer], stream: Streams, device: torch.device) -> None:
    """Every learner from where it stands to its last step, all of them on the same batches of the same streams.

    `stream` must stand where the learner that is furthest behind stands; the others wait until it has caught up. All
    learners must agree on optim.accumulate and on `engine` (`distill.training.arm_groups`).
    """
    first = min(trainer.start for trainer in trainers)
    last = max(trainer.recipe.optim.steps for trainer in trainers)
    loop = Loop(trainers, stream.take, device)
    quiet = not trainers[0].engine.accelerator.is_main_process
    name = ", ".join(trainer.recipe.name for trainer in trainers)
    bar = tqdm(total=last, initial=first, desc=name, disable=quiet, mininterval=2, leave=True)
    losses: dict[str, str] = {}
    with heeding(trainers[0].recipe.checkpoint.grace) as wishes:
        for trainer in trainers:
            trainer.engine.wishes = wishes
        for done in range(first + 1, last + 1):
            for trainer, loss in loop.update(done):
                losses["loss" if len(trainers) == 1 else trainer.recipe.name] = f"{loss:.4f}"
                bar.set_postfix(losses, refresh=False)
            bar.update()
            loop.heed(done)
        for trainer in trainers:
            trainer.settle()
    bar.close()
    loop.close()


@dataclass
class Prepared:
    """An update's images, and for learners that looked already what they saw; `seconds` is what that took."""

    raw: list[RawBatch]
    shown: list[PassBatch] = field(default_factory=list)
    seen: list[PassTargets] = field(default_factory=list)  #: of each learner that takes part
    seconds: dict[str, list[float]] = field(default_factory=dict)  #: by what they count as, for each learner


class Loop:
    """The updates of several learners on the same images.

    Where arms step side by side (crew.py), the next update's images and targets are made beside them: with an
    odd number of students a core would stand idle, and the teachers' passes fill it.
    """

    def __init__(self, trainers: Sequence[ArmTrainer], fetch: Fetch, device: torch.device) -> None:
        self.trainers, self.fetch, self.device = trainers, fetch, device
        self.crew = Crew(trainers[0].recipe.engine, trainers[0].engine.accelerator, len(trainers))
        self._next: tuple[int, Prepared | BaseException] | None = None
        for trainer in trainers:
            trainer.engine.model.train()
            trainer.timer.restart()

    def close(self) -> None:
        """Let the threads go."""
        self.crew.close()

    def update(self, done: int) -> list[tuple[ArmTrainer, float]]:
        """Update number `done` (1, 2, ...) of every learner, logged and saved; the losses that were logged."""
        active = self._active(done)
        ready = self._ready(done) or self._take(done, active)
        for index, trainer in enumerate(active):
            for name, seconds in ready.seconds.items():
                trainer.timer.add(name, seconds[index])
            trainer.begin(done)
        if ready.seen:
            self._learn(active, ready.shown, ready.seen, done, last=True)
        else:
            # Micro-batch by micro-batch, so that no more than one is on the device.
            pieces = micro_batches(ready.raw, self.trainers[0].recipe.optim.accumulate)
            for number, piece in enumerate(pieces, 1):
                shown = to_device(piece, self.device)
                self._learn(active, shown, None, done, last=number == len(pieces))
        losses = []
        for trainer in active:
            with trainer.turn():
                loss = trainer.finish(done, ready.raw)
            if loss is not None:
                losses.append((trainer, loss))
        return losses

    def heed(self, done: int) -> None:
        """What signals asked for, and all processes agreed on in update `done`: save, or save and stop (Stopped).

        Where the next update's images are taken already, it waits for that update: a checkpoint holds their place.
        """
        agreed = [trainer.engine.agreed for trainer in self.trainers]
        stop = next((wishes.stop for wishes in agreed if wishes.stop), 0)
        if self._next is not None or not (stop or any(wishes.save for wishes in agreed)):
            return
        for trainer in self._active(done):
            if not trainer.saves(done):
                with trainer.turn():
                    trainer.save(done)
        for trainer in self.trainers:
            trainer.engine.wishes.save = trainer.engine.agreed.save = False
        if stop:
            for trainer in self.trainers:
                trainer.settle()
            main = self.trainers[0].engine.accelerator.is_main_process
            why = f"stopped by {signal.Signals(stop).name} after step {done}, which is saved; start again to go on"
            raise Stopped(stop, why if main else "")
        if self.trainers[0].engine.accelerator.is_main_process:
            print(f"step {done} is saved, as SIGUSR1 asked", file=sys.stderr, flush=True)

    def _active(self, done: int) -> list[ArmTrainer]:
        return [trainer for trainer in self.trainers if trainer.takes_part(done)]

    def _learn(
        self,
        active: Sequence[ArmTrainer],
        shown: Sequence[PassBatch],
        seen: Sequence[PassTargets] | None,
        done: int,
        *,
        last: bool,
    ) -> None:
        """A micro-batch of every learner; `seen` where they have looked at it already."""
        together = []
        for index, trainer in enumerate(active):
            with trainer.turn():
                if seen is None:
                    targets = self.crew.alone(lambda trainer=trainer, index=index: trainer.look(shown, index == 0))
                else:
                    targets = seen[index]
                learn = job(trainer, shown, targets, last=last)
                if trainer.draws or self.crew.hands == 1:
                    self.crew.alone(learn)
                else:
                    together.append(learn)
        if last and self._may_prepare(done, active):
            together.insert(0, lambda: self._prepare(done + 1, active))  # the longest job first
        self.crew.run(together)

    def _take(self, done: int, active: Sequence[ArmTrainer]) -> Prepared:
        began = time.perf_counter()
        raw = self.fetch(done - 1)
        return Prepared(raw, seconds={"data": [time.perf_counter() - began] * len(active)})

    def _ready(self, done: int) -> Prepared | None:
        """What was prepared for this update, or the error that this met, raised now that the update is due."""
        if self._next is None or self._next[0] != done:
            return None
        prepared, self._next = self._next[1], None
        if isinstance(prepared, BaseException):
            raise prepared
        return prepared

    def _may_prepare(self, done: int, active: Sequence[ArmTrainer]) -> bool:
        """Whether the next update's images may be taken, and its targets made, while this update is still going on.

        Not where a checkpoint is due, which holds the stream's place; not over the border of a stage; and only where
        targets are a function of the images alone.
        """
        return (
            self.crew.hands > 1
            and not any(each.engine.wishes.stop or each.engine.wishes.save for each in active)
            and self._active(done + 1) == active
            and all(trainer.looks_ahead(done) for trainer in active)
        )

    def _prepare(self, done: int, active: Sequence[ArmTrainer]) -> None:
        """Images and targets of update `done`, beside students that still make the one before."""
        try:
            ready = self._take(done, active)
            ready.shown, ready.seconds["teachers"] = to_device(ready.raw, self.device), []
            for index, trainer in enumerate(active):
                began = time.perf_counter()
                ready.seen.append(trainer.targets(ready.shown, index == 0))
                ready.seconds["teachers"].append(time.perf_counter() - began)
            self._next = (done, ready)
        except Exception as error:  # the update that is going on has no part in it, and is finished first
            self._next = (done, error)


def job(trainer: ArmTrainer, shown: Sequence[PassBatch], seen: PassTargets, *, last: bool) -> Callable[[], None]:
    """A learner's part in a micro-batch, to be done in its turn or beside others'."""

    def learn() -> None:
        trainer.timer.start()
        trainer.learn(shown, seen, last)

    return learn
