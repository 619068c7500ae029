"""From which factor on a sharpened teacher costs less than the same teacher run at full resolution.

    python benchmarks/crossover.py [--model timm:vit_huge_patch14_clip_378] [--factors 2 3 4 6] [--device cuda]

At factor x the sharpened teacher looks x^2 + 1 times at images of its native size and fuses; the plain one looks once
at an image x times as large, and its attention grows with x^4. Operations are counted by torch.utils.flop_counter on
the meta device (matrix products, convolutions and attention: what a GPU spends its time on), so that no weights and no
GPU are needed. --device cuda measures the time of both instead, teacher in bfloat16, adapter in float32 as it is used.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise

import torch
from timing import alternating_ms, table
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError, add_debug_flag, guard
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.model.phi_s import PhiS
from featsharp_adapter.model.views import Views
from teachers.registry import load_backbone

Call = Callable[[], object]


def build(
    model: str, factor: int, device: str
) -> tuple[Callable[[], object], Callable[[], object], Callable[[], object]]:
    """Functions: the teacher at full size; its passes over the image and the tiles; the adapter."""
    where = "meta" if device == "meta" else "cpu"  # what loaders know
    teacher = load_backbone({"spec": model, "pretrained": False, "resizable": True, "device": where}).to(device).eval()
    spec = teacher.spec
    with torch.device(device):
        adapter = Adapter.build(AdapterMeta(spec, model, "featsharp", factor), PhiS(spec.spatial_dim)).eval()
        native, grid = spec.native_size, spec.native_grid
        large = torch.rand(1, 3, factor * native[0], factor * native[1])
        passes = torch.rand(1 + factor**2, 3, *native)
        low = torch.rand(1, spec.spatial_dim, *grid)
        tiles = {factor: torch.rand(1, spec.spatial_dim, factor * grid[0], factor * grid[1])}

    def looked(images: torch.Tensor) -> object:
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            return teacher(images)

    return lambda: looked(large), lambda: looked(passes), lambda: adapter(Views(None, low, tiles), large)


def count(function: Call) -> float:
    """TFLOPs of a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e12


@torch.inference_mode()
def measure(model: str, factors: list[int], device: str) -> list[list[float]]:
    """Per factor [factor, plain, passes, adapter, plain / (passes + adapter)]; TFLOPs, or ms on a GPU."""
    rows = []
    for factor in factors:
        functions = build(model, factor, device)
        if device == "cuda":
            costs = list(alternating_ms(dict(zip("abc", functions, strict=True)), 3).values())
        else:
            costs = [count(function) for function in functions]
        rows.append([factor, *costs, costs[0] / (costs[1] + costs[2])])
    return rows


def crossover(rows: list[list[float]]) -> str:
    """Where the ratio passes 1, interpolated between factors."""
    for before, after in pairwise(rows):
        if before[-1] < 1 <= after[-1]:
            return f"{before[0] + (1 - before[-1]) / (after[-1] - before[-1]) * (after[0] - before[0]):.1f}"
    return f"below {rows[0][0]}" if rows[0][-1] >= 1 else f"above {rows[-1][0]}"


def main(argv: list[str]) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Sharpening against full resolution.")
    parser.add_argument("--model", default="timm:vit_huge_patch14_clip_378")
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 3, 4, 6])
    parser.add_argument("--device", choices=("meta", "cuda"), default="meta", help="cuda: milliseconds, not operations")
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU here; without --device cuda operations are counted")
    unit = "TFLOPs" if arguments.device == "meta" else "ms"
    rows = measure(arguments.model, sorted(arguments.factors), arguments.device)
    head = ["factor", f"full size, {unit}", f"1 + x^2 passes, {unit}", f"adapter, {unit}", "full size / sharpened"]
    print(arguments.model)
    print(table(head, rows))
    print(f"the sharpened teacher costs less from factor {crossover(rows)} on")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
