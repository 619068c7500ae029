"""A part that ran once, beside what was planned for it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from distill.planning.counting import Cost, CostCounter

Made = TypeVar("Made")
GIB, TERA = 2**30, 1e12


@dataclass(frozen=True)
class Part:
    """seconds: of the wall. real: FLOPs, and bytes of the tensors it made that lived at one time; None: not counted.

    planned: the same, counted beforehand on tensors without numbers. note: a number of its own, such as a file's size.
    """

    what: str
    seconds: float
    real: Cost | None = None
    planned: Cost | None = None
    note: str = ""


def run_part(what: str, run: Callable[[], Made], planned: Cost | None = None) -> tuple[Part, Made]:
    """Run a part once, counting."""
    began = time.perf_counter()
    with CostCounter() as counted:
        made = run()
    seconds = time.perf_counter() - began
    return Part(what, seconds, Cost(float(counted.flops), counted.peak), planned), made


def as_table(title: str, parts: Sequence[Part]) -> str:
    """Markdown: seconds, memory and FLOPs of every part beside the plan's, and by how much they differ."""
    lines = [
        f"### {title}",
        "",
        "| part | s | GiB | planned | differs | TFLOP | planned | differs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_row(part) for part in parts)])


def _row(part: Part) -> str:
    cells = [part.what + (f" ({part.note})" if part.note else ""), f"{part.seconds:.1f}"]
    for scale, pick in ((GIB, lambda cost: cost.peak), (TERA, lambda cost: cost.flops)):
        real = None if part.real is None else pick(part.real) / scale
        planned = None if part.planned is None else pick(part.planned) / scale
        cells += ["" if value is None else f"{value:.3g}" for value in (real, planned)]
        cells.append(f"{100 * (real / planned - 1):+.1f} %" if real and planned else "")
    return f"| {' | '.join(cells)} |"
