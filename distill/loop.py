"""The training loop: fetch, step, backward, clip, update, log, save. It knows no teacher."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from distill.log import Log
from distill.optim import learning_rate
from distill.recipe import Recipe
from distill.runtime import Engine
from distill.step import DistillStep, StepResult
from imagery.stream import Batch, to_float
from teachers.errors import UserError


@dataclass
class Clock:
    """Seconds since it was last asked, by what they were spent on; only these numbers differ between equal runs."""

    last: float
    spent: dict[str, float]

    @classmethod
    def start(cls) -> "Clock":
        return cls(time.perf_counter(), {})

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


def train(
    step: DistillStep,
    engine: Engine,
    stream: Iterator[Batch],
    recipe: Recipe,
    log: Log,
    start: int,
    save: Callable[[int], None],
) -> None:
    """Updates number `start` to the last; `save(n)` is called when n updates are done and a checkpoint is due."""
    accelerator, steps = engine.accelerator, recipe.optim.steps
    engine.model.train()
    clock, logged = Clock.start(), start
    bar = tqdm(
        total=steps, initial=start, desc=recipe.name, disable=not accelerator.is_main_process, mininterval=2, leave=True
    )
    for done in range(start + 1, steps + 1):
        images = to_float(next(stream).images.to(accelerator.device, non_blocking=True))
        clock.lap("data")
        rate = learning_rate(done - 1, recipe.optim)
        engine.set_learning_rate(rate)
        result = step(images)
        engine.backward(result.loss)
        norm = engine.update()
        clock.lap("step")
        bar.update()
        save_now = done % recipe.checkpoint.every == 0 or done == steps
        if save_now or done % recipe.log.every == 0:
            line = {"step": done, **measure(result, norm, accelerator), "lr": rate}
            line["time"] = clock.read((done - logged) * recipe.optim.batch_size)
            logged = done
            record(line, log, accelerator, bar)
        if save_now:
            save(done)
            clock.lap("save")
    bar.close()


def measure(result: StepResult, norm: float | Tensor, accelerator: Accelerator) -> dict[str, Any]:
    """Loss and its terms averaged over the processes, and the gradient norm. Waits for the device."""
    names = list(result.report)
    terms = torch.stack([result.loss.detach(), *result.report.values()]).float()
    values = accelerator.reduce(terms, "mean").tolist()
    return {"loss": values[0], "losses": dict(zip(names, values[1:], strict=True)), "grad_norm": float(norm)}


def record(line: dict[str, Any], log: Log, accelerator: Accelerator, bar: "tqdm[Any]") -> None:
    """Write a line to log.jsonl and the trackers; UserError when the loss is no number any more."""
    bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)
    if accelerator.is_main_process:
        log.write(line)
    flat = {"loss": line["loss"], **line["losses"], "grad_norm": line["grad_norm"], "lr": line["lr"]}
    accelerator.log(flat | line["time"], step=line["step"])
    if not math.isfinite(line["loss"]) or not math.isfinite(line["grad_norm"]):
        raise UserError(
            f"step {line['step']}: loss {line['loss']}, gradient norm {line['grad_norm']}; stopped before this "
            "is saved. Lower optim.lr or optim.clip and start again from the last checkpoint under a new name"
        )
