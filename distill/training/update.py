"""One student in the loop: what it does in an update, from its turn at the teachers to its line in the log."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from common.errors import UserError
from common.jsonl import Log
from distill.losses.step import DistillStep, StepResult
from distill.planning.mfu import FlopMeter, StudentFlops
from distill.recipe import Recipe
from distill.schedule import stage_at
from distill.training.data import PassBatch, RawBatch, gather_objects
from distill.training.engine import Engine
from distill.training.nan_capture import NonFiniteUpdate
from distill.training.rng_state import RngState, read_rng, same_rng
from distill.training.step_times import StepTimer, peak_memory_mib
from distill.training.trained_student import TrainedStudent
from teachers.contracts import Features

PassTargets = list[Mapping[str, Features]]


@dataclass
class ArmTrainer:
    """One student: its steps, engine, log, its own random numbers, and the updates it has behind it.

    An update is `begin`, then for each micro-batch `look` and `learn`, then `finish`. `learn` and `targets` may run
    beside other learners' (`distill.training.crew`), all others need `turn`.
    """

    steps: Mapping[tuple[str, str], DistillStep]  #: by stage and partition: every pass this process does
    engine: Engine
    recipe: Recipe
    log: Log
    start: int
    save: Callable[[int], None]  #: save(n) is called when n updates are done and a checkpoint is due
    settle: Callable[[], None]  #: waits until what was saved is on the disk
    capture: Callable[[NonFiniteUpdate], str]  #: writes what made an update impossible; returns what to tell the user
    rng_state: RngState
    trained: TrainedStudent  #: what goes along with the student: told of every update
    timer: StepTimer
    flop_meter: FlopMeter
    flops: StudentFlops
    images: int = 0  #: shown since the last line of the log, by all processes
    draws: bool = True  #: whether its steps draw random numbers, as far as is known
    _results: list[StepResult] = field(default_factory=list)
    _before: list[Tensor] = field(default_factory=list)  #: its random numbers before this update
    _not_finite: bool = False
    _several: bool = False
    _norm: float | Tensor = math.nan
    _rate: float = 0.0
    _flops_before: float = 0.0

    def takes_part(self, update: int) -> bool:
        """Whether update number `update` (1, 2, ...) is still ahead of this student, and not past its end."""
        return self.start < update <= self.recipe.optim.steps

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This student's turn: its engine, its random numbers, its clock."""
        self.engine.activate()
        with self.rng_state.hold():
            self.timer.start()
            yield

    def begin(self, done: int) -> None:
        """Prepare update number `done` (1, 2, ...). Whether it draws is seen anew in each stage."""
        self.trained.begin(done)
        self._rate = self.engine.set_learning_rate(done - 1)
        stage = stage_at(self.engine.stages, done - 1)
        self.draws = self.draws or done - 1 == stage.first
        self.images += stage.images
        self._several = len(stage.passes) > 1  # though this process may do one of them alone
        self._results, self._not_finite, self._norm = [], False, math.nan
        self._before = self.rng_state.state

    def look(self, shown: Sequence[PassBatch], first: bool) -> PassTargets:
        """`targets`, timed."""
        targets = self.targets(shown, first)
        self.timer.lap("teachers")
        return targets

    def targets(self, shown: Sequence[PassBatch], first: bool) -> PassTargets:
        """The targets of a micro-batch. first: whether no other learner has looked at it yet, which costs most."""
        targets = []
        for each in shown:
            step, size = self.steps[each.role.part.stage, each.role.part.partition], tuple(each.images.shape)
            key = (self.recipe.name, first, each.role.part.stage, each.role.part.partition, size)
            targets.append(self.flop_meter.look(key, lambda step=step, each=each: step.look(each.images)))
            self.flop_meter.done += self.flops.of(
                each.images
            )  # of the student, here because `learn` runs beside others
        return targets

    def looks_ahead(self, done: int) -> bool:
        """Whether update `done + 1` may be taken and looked at before update `done` is finished."""
        last_of_stage = stage_at(self.engine.stages, done) is not stage_at(self.engine.stages, done - 1)
        return not (
            self.draws
            or self.saves(done)
            or last_of_stage
            or self.trained.shifts is not None  # it holds where the crops of one update lie
            or self.recipe.optim.accumulate > 1  # one micro-batch at a time in memory
        )

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after update `done`."""
        return done % self.recipe.checkpoint.every == 0 or done == self.recipe.optim.steps

    def learn(self, shown: Sequence[PassBatch], targets: PassTargets, last: bool) -> None:
        """Forward and backward on a micro-batch, and with the last one the update, unless something is not finite."""
        if self._not_finite:
            return
        with self.engine.accumulating(last):
            result = self._forward(shown, targets)
            self._results.append(result)
            if self.engine.updates_in_backward and self.engine.anywhere(not_finite(result.loss)):
                self._not_finite = True  # there would be no stopping later
                return
            self.engine.backward(result.loss)
        if last:
            self._norm = self.engine.clip()
            self._not_finite = self.engine.anywhere(not_finite(result.loss, self._norm))
            if not self._not_finite:
                self.engine.update()
                self.trained.follow()
        self.timer.lap("student")

    def finish(self, done: int, raw: Sequence[RawBatch]) -> float | None:
        """Log and save after update `done` where that is due; returns the loss where it was logged.

        taken: the images of the update. UserError, with everything kept for a replay, when it was impossible.
        """
        self.draws = self.draws and not same_rng(self._before, read_rng(self.rng_state.device))
        recipe, engine, save_now = self.recipe, self.engine, self.saves(done)
        if not self._not_finite and not save_now and done % recipe.log.every:
            return None
        result, by_ranks = mean_result(self._results), stage_at(engine.stages, done - 1).by_ranks
        line = {"step": done, **measure(result, self._norm, engine.accelerator, by_ranks), "lr": self._rate}
        line["time"] = self._read_time()
        record(line, self.log, engine.accelerator)
        if self._not_finite:
            raise UserError(self.capture(NonFiniteUpdate(done, line, self._before, raw)))
        if save_now:
            self.save(done)
            self.timer.lap("save")
        return float(line["loss"])

    def _forward(self, shown: Sequence[PassBatch], targets: PassTargets) -> StepResult:
        """The loss of a micro-batch over all its passes."""
        results = {}
        for each, seen in zip(shown, targets, strict=True):
            part = each.role.part
            results[part.partition] = self.steps[part.stage, part.partition].learn(each.images, seen)
        return joined(results) if self._several else next(iter(results.values()))

    def _read_time(self) -> dict[str, Any]:
        times: dict[str, Any] = self.timer.read(self.images)
        self.images = 0
        times |= self.flop_meter.rate(self._flops_before, times["wall"])
        self._flops_before = self.flop_meter.done
        return times | {"peak_memory_mib": peak_memory_mib(self.timer.device)}


def joined(results: Mapping[str, StepResult]) -> StepResult:
    """The step's result from those of its passes here; the names of the terms begin with the partition's."""
    loss = torch.stack([result.loss for result in results.values()]).sum()
    return StepResult(
        loss, {f"{name}/{term}": value for name, result in results.items() for term, value in result.report.items()}
    )


def mean_result(results: Sequence[StepResult]) -> StepResult:
    """Of equal micro-batches: loss and terms as one large batch has them."""
    if len(results) == 1:
        return results[0]
    loss = torch.stack([result.loss.detach() for result in results]).mean()
    return StepResult(
        loss, {name: torch.stack([result.report[name] for result in results]).mean() for name in results[0].report}
    )


def not_finite(*values: Tensor | float) -> bool:
    """Whether any of these numbers is NaN or infinite. Waits for the device."""
    return not math.isfinite(sum(float(torch.as_tensor(value).detach()) for value in values))


def measure(result: StepResult, norm: float | Tensor, accelerator: Accelerator, by_ranks: bool) -> dict[str, Any]:
    """Loss and its terms averaged over the processes, and the gradient norm. Waits for the device.

    by_ranks: whether processes may have terms of their own; then what one has not counts as zero, for each brings its
    terms in a scale that makes the mean over all of them the step's.
    """
    names, loss = list(result.report), result.loss.detach()
    if by_ranks:
        names = list(dict.fromkeys(name for each in gather_objects({"names": names}) for name in each["names"]))
    terms = torch.stack([loss, *(result.report.get(name, torch.zeros_like(loss)) for name in names)]).float()
    values = accelerator.reduce(terms, "mean").tolist()
    return {"loss": values[0], "losses": dict(zip(names, values[1:], strict=True)), "grad_norm": float(norm)}


def record(line: dict[str, Any], log: Log, accelerator: Accelerator) -> None:
    """Write a line to log.jsonl and the trackers."""
    if accelerator.is_main_process:
        log.write(line)
    flat = {"loss": line["loss"], **line["losses"], "grad_norm": line["grad_norm"], "lr": line["lr"], **line["time"]}
    accelerator.log({name: value for name, value in flat.items() if value is not None}, step=line["step"])
