"""What an adapter costs beside the teacher passes it needs, in one run.

    python benchmarks/adapter_share.py [--model timm:vit_small_patch16_224] [--factor 2] [--batch 2] [--device cuda]

A FeatSharp adapter of factor x needs 1 + x^2 passes of the teacher (the whole image, and x^2 tiles). Printed are the
median times of a complete sharpened forward and, within it, of those passes, of JBU, and of the fusion block; what they
leave of the total is resizing, tiling, PHI-S and bias. Beside it the bare passes by themselves, taking turns with it.
Shares are medians of the shares of single turns, so that what else a machine does meets both sides of each; the range
is that of the middle half of the turns. Weights are random: they do not change the time.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from timing import add_device, describe, now_ms, open_device

from common.errors import add_debug_flag, guard
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.model.phi_s import PhiS
from featsharp_adapter.sharpening.backbone import SharpenedBackbone
from teachers.registry import load_backbone

TEACHER, JBU, FUSION, TOTAL, BARE = "teacher", "JBU", "fusion block", "sharpened teacher", "bare passes"
REST = "everything else"


class Stopwatch:
    """Adds up the time spent in methods of objects."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    def watch(self, title: str, owner: object, method: str) -> None:
        """From now on calls of owner.method count under `title`."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = now_ms()
            try:
                return original(*args, **kwargs)
            finally:
                self.spent[title] += now_ms() - began

        setattr(owner, method, timed)


@torch.inference_mode()
def measure(model: str, factor: int, batch: int, repeats: int, device: torch.device) -> list[dict[str, float]]:
    """Milliseconds of each part, of the whole, and of the bare passes, in every turn; images of factor x the native
    size.
    """
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
    turns = []
    for _ in range(repeats + 1):  # the first turn warms up
        watch.spent.clear()
        began = now_ms()
        sharp(images)
        parts = {**watch.spent, TOTAL: now_ms() - began}
        parts[REST] = parts[TOTAL] - parts[TEACHER] - parts[JBU] - parts[FUSION]
        began = now_ms()
        teacher(passes)
        turns.append({**parts, BARE: now_ms() - began})
    return turns[1:]


def shares(parts: list[float], wholes: list[float]) -> str:
    """Median of part / whole over turns, and the middle half of them."""
    ratios = sorted(100 * part / whole for part, whole in zip(parts, wholes, strict=True))
    quarter = len(ratios) // 4
    return f"{statistics.median(ratios):.1f} % ({ratios[quarter]:.1f} to {ratios[-1 - quarter]:.1f})"


def main(argv: list[str]) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Time of an adapter as a share of its teacher's.")
    parser.add_argument("--model", default="timm:vit_small_patch16_224")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    add_device(parser)
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    device = open_device(arguments)
    turns = measure(arguments.model, arguments.factor, arguments.batch, arguments.repeats, device)
    print(f"{arguments.model}, {arguments.factor}x, batch {arguments.batch}, {len(turns)} turns, {describe(device)}")
    columns = {name: [turn[name] for turn in turns] for name in (TEACHER, JBU, FUSION, REST, TOTAL, BARE)}
    for name, values in columns.items():
        print(f"  {name:20s} {statistics.median(values):9.1f} ms  {shares(values, columns[TOTAL]):>24s} of the total")
    adapter = [jbu + fusion for jbu, fusion in zip(columns[JBU], columns[FUSION], strict=True)]
    print(f"JBU and fusion: {shares(adapter, columns[TOTAL])} of the total")
    print(
        f"everything else: {shares(columns[REST], columns[TEACHER])} of the {1 + arguments.factor**2} passes within it"
    )
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
