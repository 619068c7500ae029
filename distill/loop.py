"""The training loop: fetch, step, backward, clip, update, log, save; for one arm or many. It knows no teacher."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from distill.dice import Dice
from distill.log import Log
from distill.recipe import Recipe
from distill.runtime import Engine
from distill.step import DistillStep, StepResult
from imagery.stream import Batch, to_float
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
    """One student in the loop: its step, engine, log, its own random numbers, and the updates it has behind it."""

    step: DistillStep
    engine: Engine
    recipe: Recipe
    log: Log
    start: int
    save: Callable[[int], None]  #: save(n) is called when n updates are done and a checkpoint is due
    dice: Dice
    clock: Clock = field(default_factory=Clock)
    logged: int = 0

    def __post_init__(self) -> None:
        self.logged = self.start

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

    def update(self, done: int, images: Tensor) -> float | None:
        """Make update number `done` from images [B, 3, H, W]; returns the loss where it was logged."""
        recipe, engine = self.recipe, self.engine
        rate = engine.set_learning_rate(done - 1)
        targets = self.step.look(images)
        self.clock.lap("teachers")
        result = self.step.learn(images, targets)
        engine.backward(result.loss)
        norm = engine.update()
        self.clock.lap("student")
        save_now = done % recipe.checkpoint.every == 0 or done == recipe.optim.steps
        if not save_now and done % recipe.log.every:
            return None
        line = {"step": done, **measure(result, norm, engine.accelerator), "lr": rate}
        line["time"] = self.clock.read((done - self.logged) * recipe.optim.batch_size)
        self.logged = done
        record(line, self.log, engine.accelerator)
        if save_now:
            self.save(done)
            self.clock.lap("save")
        return float(line["loss"])


def train(learners: Sequence[Learner], stream: Iterator[Batch], device: torch.device) -> None:
    """Every learner from where it stands to its last step, all of them on the same batches of one stream.

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
        images = to_float(next(stream).images.to(device, non_blocking=True))
        fetching.lap("data")
        for learner in (learner for learner in learners if learner.takes_part(done)):
            learner.clock.spent["data"] = learner.clock.spent.get("data", 0.0) + fetching.spent["data"]
            with learner.turn():
                loss = learner.update(done, images)
            if loss is not None:
                losses["loss" if len(learners) == 1 else learner.recipe.name] = f"{loss:.4f}"
                bar.set_postfix(losses, refresh=False)
        fetching.spent.clear()
        bar.update()
    bar.close()


def measure(result: StepResult, norm: float | Tensor, accelerator: Accelerator) -> dict[str, Any]:
    """Loss and its terms averaged over the processes, and the gradient norm. Waits for the device."""
    names = list(result.report)
    terms = torch.stack([result.loss.detach(), *result.report.values()]).float()
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
