"""The training loop: fetch, step, backward, clip, update, log, save; for one arm or many. It knows no teacher."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from distill.company import Company
from distill.dice import Dice
from distill.log import Log
from distill.recipe import Recipe
from distill.runtime import Engine
from distill.schedule import stage_at
from distill.step import DistillStep, StepResult
from distill.streams import Shown, Streams, everyones, show
from teachers.errors import UserError


@dataclass
class Clock:
    """Seconds by what they were spent on; only these numbers differ between equal runs."""

    last: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """Count from now."""
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the last call under `name`."""
        now = time.perf_counter()
        self.spent[name] = self.spent.get(name, 0.0) + now - self.last
        self.last = now

    def read(self, images: int) -> dict[str, float]:
        """Seconds by name and images per second, for `images` of all processes; starts over."""
        total = max(sum(self.spent.values()), 1e-9)
        seconds = {name: round(value, 4) for name, value in self.spent.items()}
        self.spent = {}
        return {"images_per_second": round(images / total, 2), **seconds}


@dataclass
class Learner:
    """One student in the loop: its steps, engine, log, its own random numbers, and the updates it has behind it."""

    steps: Mapping[tuple[str, str], DistillStep]  #: by stage and partition: every pass this process does
    engine: Engine
    recipe: Recipe
    log: Log
    start: int
    save: Callable[[int], None]  #: save(n) is called when n updates are done and a checkpoint is due
    dice: Dice
    company: Company  #: what goes along with the student: told of every update
    clock: Clock = field(default_factory=Clock)
    images: int = 0  #: shown since the last line of the log, by all processes

    def takes_part(self, update: int) -> bool:
        """Whether update number `update` (1, 2, ...) is still ahead of this student, and not past its end."""
        return self.start < update <= self.recipe.optim.steps

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This student's turn: its engine, its random numbers, its clock."""
        self.engine.activate()
        with self.dice.hold():
            self.clock.start()
            yield

    def update(self, done: int, shown: Sequence[Shown]) -> float | None:
        """Make update number `done` from the images of its passes; returns the loss where it was logged."""
        recipe, engine = self.recipe, self.engine
        self.company.begin(done)
        rate = engine.set_learning_rate(done - 1)
        stage = stage_at(engine.stages, done - 1)
        self.images += stage.images
        results = {each.role.part.partition: self._learn(each) for each in shown}
        result = joined(results) if len(stage.passes) > 1 else next(iter(results.values()))
        engine.backward(result.loss)
        norm = engine.update()
        self.company.follow()
        self.clock.lap("student")
        save_now = done % recipe.checkpoint.every == 0 or done == recipe.optim.steps
        if not save_now and done % recipe.log.every:
            return None
        line = {"step": done, **measure(result, norm, engine.accelerator, stage.by_ranks), "lr": rate}
        line["time"] = self.clock.read(self.images)
        self.images = 0
        record(line, self.log, engine.accelerator)
        if save_now:
            self.save(done)
            self.clock.lap("save")
        return float(line["loss"])

    def _learn(self, shown: Shown) -> StepResult:
        step = self.steps[shown.role.part.stage, shown.role.part.partition]
        targets = step.look(shown.images)
        self.clock.lap("teachers")
        result = step.learn(shown.images, targets)
        self.clock.lap("student")
        return result


def joined(results: Mapping[str, StepResult]) -> StepResult:
    """The step's result from those of its passes here; the names of the terms begin with the partition's."""
    loss = torch.stack([result.loss for result in results.values()]).sum()
    return StepResult(
        loss, {f"{name}/{term}": value for name, result in results.items() for term, value in result.report.items()}
    )


def train(learners: Sequence[Learner], stream: Streams, device: torch.device) -> None:
    """Every learner from where it stands to its last step, all of them on the same batches of the same streams.

    `stream` must stand where the learner that is furthest behind stands; the others wait until it has caught up.
    """
    first = min(learner.start for learner in learners)
    last = max(learner.recipe.optim.steps for learner in learners)
    for learner in learners:
        learner.engine.model.train()
    quiet = not learners[0].engine.accelerator.is_main_process
    name = ", ".join(learner.recipe.name for learner in learners)
    bar = tqdm(total=last, initial=first, desc=name, disable=quiet, mininterval=2, leave=True)
    losses: dict[str, str] = {}
    fetching = Clock()
    for done in range(first + 1, last + 1):
        fetching.start()
        shown = show(stream.take(done - 1), device)
        fetching.lap("data")
        for learner in (learner for learner in learners if learner.takes_part(done)):
            learner.clock.spent["data"] = learner.clock.spent.get("data", 0.0) + fetching.spent["data"]
            with learner.turn():
                loss = learner.update(done, shown)
            if loss is not None:
                losses["loss" if len(learners) == 1 else learner.recipe.name] = f"{loss:.4f}"
                bar.set_postfix(losses, refresh=False)
        fetching.spent.clear()
        bar.update()
    bar.close()


def measure(result: StepResult, norm: float | Tensor, accelerator: Accelerator, by_ranks: bool) -> dict[str, Any]:
    """Loss and its terms averaged over the processes, and the gradient norm. Waits for the device.

    by_ranks: whether processes may have terms of their own; then what one has not counts as zero, for each brings its
    terms in a scale that makes the mean over all of them the step's.
    """
    names, loss = list(result.report), result.loss.detach()
    if by_ranks:
        names = list(dict.fromkeys(name for each in everyones({"names": names}) for name in each["names"]))
    terms = torch.stack([loss, *(result.report.get(name, torch.zeros_like(loss)) for name in names)]).float()
    values = accelerator.reduce(terms, "mean").tolist()
    return {"loss": values[0], "losses": dict(zip(names, values[1:], strict=True)), "grad_norm": float(norm)}


def record(line: dict[str, Any], log: Log, accelerator: Accelerator) -> None:
    """Write a line to log.jsonl and the trackers; UserError when the loss is no number any more."""
    if accelerator.is_main_process:
        log.write(line)
    flat = {"loss": line["loss"], **line["losses"], "grad_norm": line["grad_norm"], "lr": line["lr"]}
    accelerator.log(flat | line["time"], step=line["step"])
    if not math.isfinite(line["loss"]) or not math.isfinite(line["grad_norm"]):
        raise UserError(
            f"step {line['step']}: loss {line['loss']}, gradient norm {line['grad_norm']}; stopped before this "
            f"is saved ({log.path}). Lower optim.lr or optim.clip and start again from the last checkpoint under a "
            "new name"
        )
