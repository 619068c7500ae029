"""What a step's time goes to. Everything here comes from the clock and stands under "time" in the log.

A student's wall time since its last line is divided among data (waiting for images), teachers (their forward passes and
what sharpens them) and student (forward, backward, update). What is left over is other arms of the same process, the
log, and saving.
"""

import resource
import sys
import time
from typing import Any

import torch

Mark = float | torch.cuda.Event


class StepTimer:
    """Seconds by what they were spent on. On a GPU it is the GPU's time, which runs behind the program's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._began = time.perf_counter()
        self._last: Mark = 0.0
        self._spans: list[tuple[str, Mark, Mark]] = []
        self._extra: dict[str, float] = {}

    def restart(self) -> None:
        """The wall time begins now."""
        self._began = time.perf_counter()

    def start(self) -> None:
        """Count from now."""
        self._last = self._now()

    def lap(self, name: str) -> None:
        """Count the time since the last call under `name`."""
        now = self._now()
        self._spans.append((name, self._last, now))
        self._last = now

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that something else measured."""
        self._extra[name] = self._extra.get(name, 0.0) + seconds

    def read(self, images: int) -> dict[str, float]:
        """Images per second of wall time, seconds and shares of it by name; starts over. Waits for a GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = {name: self._extra.get(name, 0.0) for name in ("data", "teachers", "student")} | self._extra
        for name, first, last in self._spans:
            spent[name] = spent.get(name, 0.0) + _seconds(first, last)
        now = time.perf_counter()
        wall = max(now - self._began, 1e-9)
        self._began, self._spans, self._extra = now, [], {}
        shares = {f"{name}_share": round(spent[name] / wall, 4) for name in ("data", "teachers", "student")}
        seconds = {name: round(value, 4) for name, value in spent.items()}
        return {"images_per_second": round(images / wall, 2), "wall": round(wall, 4), **seconds, **shares}

    def _now(self) -> Mark:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def peak_memory_mib(device: torch.device) -> float:
    """Most memory so far: what tensors took on a GPU, else the resident memory of the whole process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _seconds(first: Any, last: Any) -> float:
    return float(last - first if isinstance(first, float) else first.elapsed_time(last) / 1000)
