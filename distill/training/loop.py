"""The training loop: images, targets, loss, backward pass, clipping, update, log, checkpoint; for one arm or many.

Several arms take turns on the same images. The loop knows no teacher.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.interruption import Stopped, heeding
from common.jsonl import Log
from common.progress import ProgressBar
from distill.losses.step import DistillStep, StepResult
from distill.planning.mfu import FlopMeter, StudentFlops
from distill.recipe import Recipe
from distill.schedule import stage_at
from distill.training.data import PassBatch, RawBatch, Streams, micro_batches, to_device
from distill.training.engine import Engine
from distill.training.log_lines import joined, log_values, mean_result, not_finite, write_line
from distill.training.nan_capture import NonFiniteUpdate
from distill.training.rng_state import RngState
from distill.training.step_times import StepTimer, peak_memory_mib
from distill.training.trained_student import TrainedStudent

Fetch = Callable[[int], list[RawBatch]]  #: the images of update number `step` (0, 1, ...), asked for in rising order


def train(trainers: Sequence["ArmTrainer"], stream: Streams, device: torch.device) -> None:
    """Train every arm from where it stopped to its last step, all of them on the same batches of the same streams.

    `stream` must be where the arm that is furthest behind stopped; the others wait until it has caught up. All arms
    must agree on optim.accumulate and on `engine` (`distill.training.arm_groups`).
    """
    first = min(trainer.start for trainer in trainers)
    last = max(trainer.recipe.optim.steps for trainer in trainers)
    loop = Loop(trainers, stream.take, device)
    quiet = not trainers[0].engine.accelerator.is_main_process
    name = ", ".join(trainer.recipe.name for trainer in trainers)
    bar = ProgressBar(last, name, "update", start=first, shown=not quiet)
    losses: dict[str, str] = {}
    with heeding(trainers[0].recipe.checkpoint.grace) as wishes:
        for trainer in trainers:
            trainer.engine.wishes = wishes
        for done in range(first + 1, last + 1):
            for trainer, loss in loop.update(done):
                losses["loss" if len(trainers) == 1 else trainer.recipe.name] = f"{loss:.4f}"
                bar.note(**losses)
            bar.update()
            loop.heed(done)
        for trainer in trainers:
            trainer.settle()
    bar.close()


class Loop:
    """The updates of several arms on the same images."""

    def __init__(self, trainers: Sequence["ArmTrainer"], fetch: Fetch, device: torch.device) -> None:
        self.trainers, self.fetch, self.device = trainers, fetch, device
        for trainer in trainers:
            trainer.engine.model.train()
            trainer.timer.restart()

    def update(self, done: int) -> list[tuple["ArmTrainer", float]]:
        """Update number `done` (1, 2, ...) of every arm that has it ahead; returns the losses that were logged."""
        active = self._active(done)
        began = time.perf_counter()
        raw = self.fetch(done - 1)
        for trainer in active:
            trainer.timer.add("data", time.perf_counter() - began)
            trainer.begin(done)
        # Micro-batch by micro-batch, so that no more than one is on the device.
        pieces = micro_batches(raw, self.trainers[0].recipe.optim.accumulate)
        for number, piece in enumerate(pieces, 1):
            batches = to_device(piece, self.device)
            for trainer in active:
                with trainer.activated():
                    trainer.micro_batch(batches, first=trainer is active[0], last=number == len(pieces))
        losses = []
        for trainer in active:
            with trainer.activated():
                loss = trainer.finish(done, raw)
            if loss is not None:
                losses.append((trainer, loss))
        return losses

    def heed(self, done: int) -> None:
        """What signals asked for, and all processes agreed on in update `done`: save, or save and stop (Stopped)."""
        agreed = [trainer.engine.agreed for trainer in self.trainers]
        stop = next((wishes.stop for wishes in agreed if wishes.stop), 0)
        if not stop and not any(wishes.save for wishes in agreed):
            return
        for trainer in self._active(done):
            if not trainer.saves(done):
                with trainer.activated():
                    trainer.save(done)
        for trainer in self.trainers:
            trainer.engine.wishes.save = trainer.engine.agreed.save = False
        main = self.trainers[0].engine.accelerator.is_main_process
        if stop:
            for trainer in self.trainers:
                trainer.settle()
            why = f"stopped by {signal.Signals(stop).name} after step {done}, which is saved; start again to go on"
            raise Stopped(stop, why if main else "")
        if main:
            print(f"step {done} is saved, as SIGUSR1 asked", file=sys.stderr, flush=True)

    def _active(self, done: int) -> list["ArmTrainer"]:
        return [trainer for trainer in self.trainers if trainer.start < done <= trainer.recipe.optim.steps]


@dataclass
class ArmTrainer:
    """One arm's student in the loop: an update is `begin`, `micro_batch` for each of them, and `finish`."""

    steps: Mapping[tuple[str, str], DistillStep]  #: by stage and partition: every pass this process does
    engine: Engine
    recipe: Recipe
    log: Log
    start: int  #: updates that were made before
    save: Callable[[int], None]  #: save(n) is called when n updates are done and a checkpoint is due
    settle: Callable[[], None]  #: waits until what was saved is on the disk
    capture: Callable[[NonFiniteUpdate], str]  #: keeps an update that is not finite; returns what to tell the user
    rng_state: RngState
    trained: TrainedStudent
    timer: StepTimer
    flop_meter: FlopMeter
    flops: StudentFlops
    images: int = 0  #: shown since the last line of the log, by all processes
    _results: list[StepResult] = field(default_factory=list)
    _rng_before: list[Tensor] = field(default_factory=list)  #: the random state before this update
    _several: bool = False  #: whether the update has several passes, though this process may do one of them
    _not_finite: bool = False
    _norm: float | Tensor = math.nan
    _rate: float = 0.0
    _flops_before: float = 0.0

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Inside, the process's engine, random numbers and timer are this arm's."""
        self.engine.activate()
        with self.rng_state.hold():
            self.timer.start()
            yield

    def begin(self, done: int) -> None:
        """Prepare update number `done` (1, 2, ...)."""
        self.trained.begin(done)
        self._rate = self.engine.set_learning_rate(done - 1)
        stage = stage_at(self.engine.stages, done - 1)
        self.images += stage.images
        self._several = len(stage.passes) > 1
        self._results, self._not_finite, self._norm = [], False, math.nan
        self._rng_before = self.rng_state.state

    def micro_batch(self, batches: Sequence[PassBatch], *, first: bool, last: bool) -> None:
        """Targets, loss and backward pass, and with the last micro-batch the update, unless something is not finite.

        first: whether no other arm has asked for these targets yet, which costs most.
        """
        if self._not_finite:
            return
        targets = [self._targets(batch, first) for batch in batches]
        self.timer.lap("teachers")
        with self.engine.accumulating(last):
            results = {
                batch.role.part.partition: self._step(batch).loss(batch.images, target)
                for batch, target in zip(batches, targets, strict=True)
            }
            result = joined(results) if self._several else next(iter(results.values()))
            self._results.append(result)
            if self.engine.updates_in_backward and self.engine.anywhere(not_finite(result.loss)):
                self._not_finite = True  # DeepSpeed would update the weights before anybody could stop it
                return
            self.engine.backward(result.loss)
        if last:
            self._norm = self.engine.clip()
            self._not_finite = self.engine.anywhere(not_finite(result.loss, self._norm))
            if not self._not_finite:
                self.engine.update()
                self.trained.update_average()
        self.timer.lap("student")

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after update `done`."""
        return done % self.recipe.checkpoint.every == 0 or done == self.recipe.optim.steps

    def finish(self, done: int, raw: Sequence[RawBatch]) -> float | None:
        """Log and save after update `done` where that is due; returns the loss where it was logged.

        raw: the images of the update. UserError, with everything kept for a replay, when it was not finite.
        """
        save_now = self.saves(done)
        if not self._not_finite and not save_now and done % self.recipe.log.every:
            return None
        engine, by_ranks = self.engine, stage_at(self.engine.stages, done - 1).by_ranks
        values = log_values(mean_result(self._results), self._norm, engine.accelerator, by_ranks=by_ranks)
        line = {"step": done, **values, "lr": self._rate, "time": self._read_time()}
        write_line(line, self.log, engine.accelerator)
        if self._not_finite:
            raise UserError(self.capture(NonFiniteUpdate(done, line, self._rng_before, raw)))
        if save_now:
            self.save(done)
            self.timer.lap("save")
        return float(line["loss"])

    def _step(self, batch: PassBatch) -> DistillStep:
        return self.steps[batch.role.part.stage, batch.role.part.partition]

    def _targets(self, batch: PassBatch, first: bool) -> Mapping[str, Any]:
        part = batch.role.part
        key = (self.recipe.name, first, part.stage, part.partition, tuple(batch.images.shape))
        self.flop_meter.done += self.flops.of(batch.images)  # of the student
        return self.flop_meter.count(key, lambda: self._step(batch).make_targets(batch.images))

    def _read_time(self) -> dict[str, Any]:
        times: dict[str, Any] = self.timer.read(self.images)
        self.images = 0
        times |= self.flop_meter.rate(self._flops_before, times["wall"])
        self._flops_before = self.flop_meter.done
        return times | {"peak_memory_mib": peak_memory_mib(self.timer.device)}
