"""What the benchmarks share: timings that take turns, and a table of ratios."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from featsharp_adapter.peak_memory import PeakMemory


def alternating_ms(variants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall time of each; their calls take turns, so that what else the machine does meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, function in variants.items():
            began = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mib(function: Callable[[], object]) -> float:
    """Most memory that tensors made by one call take at a time, the result included."""
    with PeakMemory() as memory:
        function()
    return memory.peak / 2**20


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; floats with three digits."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
