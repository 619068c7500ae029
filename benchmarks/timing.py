"""What the benchmarks share: a device, timings that take turns, and a table of ratios."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from common.errors import UserError
from featsharp_adapter.sharpening.peak_memory import PeakMemory


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device and --threads."""
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where to measure")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")


def open_device(arguments: argparse.Namespace) -> torch.device:
    """What `add_device` was told; UserError when there is none."""
    torch.set_num_threads(arguments.threads)
    try:
        device = torch.device(arguments.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device {arguments.device} here: {str(error).splitlines()[0]}") from error
    return device


def describe(device: torch.device) -> str:
    """For a heading."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{device}, {name}, torch {torch.__version__}"


def now_ms() -> float:
    """Milliseconds, everything that was started being done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() * 1000


def alternating_ms(variants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall time of each; their calls take turns, so that what else the machine does meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, function in variants.items():
            began = now_ms()
            function()
            if turn:
                times[name].append(now_ms() - began)
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
