"""What the benchmarks of the distillation loop share: its updates, made one at a time on images that lie in memory."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distill.recipe import Recipe
from distill.training.arms import Arm, assemble, teacher_pool
from distill.training.engine import start
from distill.training.loop import Fetch, Loop
from imagery.sources import open_sources

#: Nothing is saved, and statistics come from one batch: what is timed is a step.
SHORT = ["normaliser.batches=1", "checkpoint.every=1000000", "log.every=1", "optim.warmup_steps=1"]


@dataclass
class SteppedArms:
    """Arms that train on one pass of their teachers, as `distill.training.loop.train` steps them."""

    loop: Loop
    done: int = 0

    @classmethod
    def of(cls, recipes: Mapping[str, Recipe], fetch: Fetch | None = None) -> "SteppedArms":
        """The arms of these recipes, ready for their first update; without `fetch` all on the stream's first images."""
        accelerators = start(recipes)
        arms = [Arm(name, recipe, accelerators[name]) for name, recipe in recipes.items()]
        ready = assemble(arms, open_sources(arms[0].recipe.data.train), teacher_pool(arms), untrained=None)
        if ready is None:
            raise RuntimeError("these arms are finished")
        _, trainers, stream = ready
        raw = stream.take(0)
        return cls(Loop(trainers, fetch or (lambda _: raw), accelerators[arms[0].name].device))

    def step(self) -> None:
        """One update of every arm, its line in the log included."""
        self.done += 1
        self.loop.update(self.done)


@dataclass
class Times:
    """Seconds of something done several times: of the wall clock, and of all the process's cores."""

    wall: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)

    def add(self, function: Callable[[], object]) -> None:
        """Do it once more."""
        wall, cores = time.perf_counter(), processor_seconds()
        function()
        self.wall.append(time.perf_counter() - wall)
        self.cores.append(processor_seconds() - cores)

    def medians(self) -> tuple[float, float]:
        """Of the wall clock and of the cores."""
        return statistics.median(self.wall), statistics.median(self.cores)


def processor_seconds() -> float:
    """Of this process so far, on all cores; other programs on the machine do not count in it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def alternating(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Every variant once a round, so that what else the machine does meets all alike; the first round warms up."""
    times = {name: Times() for name in variants}
    for number in range(rounds + 1):
        for name, function in variants.items():
            (times[name] if number else Times()).add(function)
    return times


def below(folder: Path, name: str) -> list[str]:
    """Overrides that let a recipe write below `folder`."""
    return [*SHORT, f"out={folder / name}"]
