"""Several arms of one process taking their steps at the same time, on the CPU.

A small student leaves a second core half idle: its layers are too short to be worth cutting up. Two students, each on a
core of its own, do not. torch lets go of the interpreter lock while it computes, so threads are enough. Beside them the
next update's images and targets are made (`distill.training.loop`), on as many threads as a student has.

torch has one source of random numbers for all threads. So only students that draw none take part, which is seen on the
first update of a stage, made one arm at a time; the others go on taking turns. That nobody drew is checked every time.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from accelerate import Accelerator

from distill.recipe import EngineNode
from distill.training.rng_state import read_rng, same_rng

Done = TypeVar("Done")


class Crew:
    """Runs jobs that do not depend on each other, `hands` at a time; each has `engine.arm_threads` threads."""

    def __init__(self, node: EngineNode, accelerator: Accelerator, arms: int) -> None:
        self.device = accelerator.device
        whole = torch.get_num_threads()
        self.each = min(node.arm_threads or whole, whole)
        alone = accelerator.num_processes > 1 or accelerator.state.deepspeed_plugins is not None
        # Collectives of several arms may not overlap, and arms on a GPU share it anyway. One hand more than the arms is
        # for what is made ahead.
        self.hands = 1 if alone or self.device.type != "cpu" else min(whole // self.each, arms + 1)
        self._pool: ThreadPoolExecutor | None = None
        if self.hands > 1:
            self._pool = ThreadPoolExecutor(self.hands, thread_name_prefix="arm")
            ready = Barrier(self.hands)
            for started in [self._pool.submit(self._begin, ready) for _ in range(self.hands)]:
                started.result()
            torch.set_num_threads(whole)  # the number is kept for each thread, but new ones take what was set last

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """All of them, side by side; none may draw random numbers (RuntimeError)."""
        if self._pool is None or not jobs:
            return
        before = read_rng(self.device)
        for done in [self._pool.submit(job) for job in jobs]:
            done.result()
        if not same_rng(before, read_rng(self.device)):
            raise RuntimeError("a student drew random numbers beside others; set engine.arm_threads to null")

    def alone(self, job: Callable[[], Done]) -> Done:
        """One of them, with as many threads as beside others, so that its sums have the same bits."""
        whole = torch.get_num_threads()
        if self.device.type != "cpu" or self.each == whole:
            return job()
        torch.set_num_threads(self.each)
        try:
            return job()
        finally:
            torch.set_num_threads(whole)

    def close(self) -> None:
        """Let the threads go."""
        if self._pool is not None:
            self._pool.shutdown()

    def _begin(self, ready: Barrier) -> None:
        torch.set_num_threads(self.each)
        torch.get_num_threads()  # a thread takes the process's number when it first asks: now, while it is this one
        ready.wait()
