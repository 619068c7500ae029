"""A part that ran once, beside what was planned for it."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from distill.planning.counting import Cost, CostCounter

Made = TypeVar("Made")
GIB, TERA = 2**30, 1e12
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CLEAR_HIGHEST = "5"  #: of Linux: the highest residence begins anew (proc(5))


@dataclass(frozen=True)
class Part:
    """seconds: of the wall. real: FLOPs, and bytes of the tensors it made that lived at one time; None: not counted.

    planned: the same, counted beforehand on tensors without numbers. note: a number of its own, such as a file's size.
    process: the most bytes of the whole process (on a GPU: of all its tensors there), with what was there before; None:
    not known here.
    """

    what: str
    seconds: float
    real: Cost | None = None
    planned: Cost | None = None
    note: str = ""
    process: int | None = None


def run_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_part(what: str, run: Callable[[], Made], planned: Cost | None = None) -> tuple[Part, Made]:
    """Run a part once, counting."""
    forget_highest()
    began = time.perf_counter()
    with CostCounter() as counted:
        made = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return Part(what, seconds, Cost(float(counted.flops), counted.peak), planned, process=highest()), made


def forget_highest() -> None:
    """Begin to look for the most memory anew, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        CLEAR.write_text(CLEAR_HIGHEST)


def highest() -> int | None:
    """The most bytes since then."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform != "linux":
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def as_table(title: str, parts: Sequence[Part]) -> str:
    """Markdown: seconds, memory and FLOPs of every part beside the plan's, and by how much they differ."""
    lines = [
        f"### {title}",
        "",
        "| part | s | GiB | planned | differs | process GiB | TFLOP | planned | differs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_row(part) for part in parts)])


def _row(part: Part) -> str:
    cells = [part.what + (f" ({part.note})" if part.note else ""), f"{part.seconds:.1f}"]
    for scale, pick in ((GIB, lambda cost: cost.peak), (TERA, lambda cost: cost.flops)):
        real = None if part.real is None else pick(part.real) / scale
        planned = None if part.planned is None else pick(part.planned) / scale
        cells += ["" if value is None else f"{value:.3g}" for value in (real, planned)]
        cells.append(f"{100 * (real / planned - 1):+.1f} %" if real and planned else "")
        if scale == GIB:
            cells.append("" if part.process is None else f"{part.process / GIB:.2f}")
    return f"| {' | '.join(cells)} |"
