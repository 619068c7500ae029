"""What an adapter costs beside the teacher passes it needs, in one run.

    python benchmarks/adapter_share.py [--model timm:vit_small_patch16_224] [--factor 2] [--batch 2] [--threads 2]

A FeatSharp adapter of factor x needs 1 + x^2 passes of the teacher (the whole image, and x^2 tiles). Printed are the
median times of a complete sharpened forward and, within it, of those passes, of JBU, and of the fusion block; what they
leave of the total is resizing, tiling, PHI-S and bias. Beside it the bare passes by themselves, taking turns with it.
Weights are random: they do not change the time.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from featsharp_adapter.adapter import Adapter
from featsharp_adapter.meta import AdapterMeta
from featsharp_adapter.phi_s import PhiS
from featsharp_adapter.sharp import SharpenedBackbone
from teachers.errors import add_debug_flag, guard
from teachers.registry import load_backbone

TEACHER, JBU, FUSION, TOTAL, BARE = "teacher", "JBU", "fusion block", "sharpened teacher", "bare passes"


def now() -> float:
    """Milliseconds, everything that was started being done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() * 1000


class Stopwatch:
    """Adds up the time spent in methods of objects."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    def watch(self, title: str, owner: object, method: str) -> None:
        """From now on calls of owner.method count under `title`."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = now()
            try:
                return original(*args, **kwargs)
            finally:
                self.spent[title] += now() - began

        setattr(owner, method, timed)


@torch.inference_mode()
def measure(model: str, factor: int, batch: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each part, of the whole, and of the bare passes; images of factor x the native size."""
    teacher = load_backbone({"spec": model, "pretrained": False}).to(device)
    spec = teacher.spec
    meta = AdapterMeta(spec, model, "featsharp", factor)
    sharp = SharpenedBackbone(teacher, Adapter.build(meta, PhiS(spec.spatial_dim)), "benchmark").to(device).eval()
    passes = torch.rand(batch * (1 + factor**2), 3, *spec.native_size, device=device)
    images = torch.rand(batch, 3, *sharp.spec.native_size, device=device)
    level, watch = sharp.adapter.upsampler.levels[0], Stopwatch()
    for title, owner, method in (
        (TEACHER, teacher, "forward"),
        (JBU, level.jbu, "pyramid"),
        (JBU, level.jbu, "rows"),
        (FUSION, level.block, "forward"),
    ):
        watch.watch(title, owner, method)
    times: defaultdict[str, list[float]] = defaultdict(list)
    for turn in range(repeats + 1):  # the first turn warms up
        watch.spent.clear()
        began = now()
        sharp(images)
        total = now() - began
        parts = dict(watch.spent)
        began = now()
        teacher(passes)
        bare = now() - began
        for title, value in {**parts, TOTAL: total, BARE: bare}.items() if turn else ():
            times[title].append(value)
    return {title: statistics.median(values) for title, values in times.items()}


def main(argv: list[str]) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Time of an adapter as a share of its teacher's.")
    parser.add_argument("--model", default="timm:vit_small_patch16_224")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    times = measure(arguments.model, arguments.factor, arguments.batch, arguments.repeats, device)
    total = times[TOTAL]
    where = f"{device}, {arguments.threads} threads, torch {torch.__version__}"
    print(f"{arguments.model}, {arguments.factor}x, batch {arguments.batch}, {where}")
    rest = total - times[TEACHER] - times[JBU] - times[FUSION]
    for name, value in {**times, "everything else": rest}.items():
        print(f"  {name:20s} {value:9.1f} ms  {100 * value / total:6.1f} % of the total")
    share = (times[JBU] + times[FUSION]) / total
    print(f"JBU and fusion: {100 * share:.1f} % of the total")
    print(f"everything else: {100 * rest / times[TEACHER]:.1f} % of the {1 + arguments.factor**2} passes within it")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
