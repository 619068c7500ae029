"""Whether a memory budget is kept, on a large image, and what keeping it costs.

    python benchmarks/max_memory.py [--size 1536 2048] [--factor 4] [--budgets 0.5 0.7] [--threads 2]

A teacher of any size (random weights) sees an image of that size at a `factor`-th and in factor^2 tiles; a FeatSharp
adapter fuses. Printed are the peak of live tensors, and the growth of the process's resident memory, which has the
kernels' own buffers in it, and with --keep what the C library keeps of freed tensors (as a program that does not call
`return_freed_memory`). Each line is a process of its own, so that none finds another's memory.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from timing import table

from common.errors import add_debug_flag, guard
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.model.phi_s import PhiS
from featsharp_adapter.sharpening.max_memory import return_freed_memory
from featsharp_adapter.sharpening.peak_memory import PeakMemory
from featsharp_adapter.sharpening.sharpener import Sharpener, SharpenSettings
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone


@torch.inference_mode()
def measure(model: str, size: tuple[int, int], factor: int, budget: int | None) -> list[float]:
    """One run: [peak of tensors in MiB, growth of resident memory in MiB, seconds, sum and sum of squares]."""
    torch.manual_seed(0)
    backbone = FrozenBackbone(load_backbone({"spec": model, "pretrained": False}))
    spec = backbone.spec
    adapter = Adapter.build(AdapterMeta(spec, model, "featsharp", factor), PhiS(spec.spatial_dim)).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    images = torch.rand(1, 3, *size)
    sharpener = Sharpener(backbone, adapter, SharpenSettings(fit="resize", max_memory=budget))
    backbone(torch.rand(1, 3, *spec.native_size))  # whatever is set up once
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with PeakMemory() as memory:
        spatial = sharpener(images).spatial
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sums = [float(spatial.double().sum()), float(spatial.double().square().sum())]
    return [memory.peak / 2**20, (after - before) / 2**10, seconds, *sums]


def main(argv: list[str]) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="A memory budget on a large image.")
    parser.add_argument("--model", default="timm:vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, nargs=2, default=[1536, 2048])
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5], help="shares of what no limit takes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bytes", type=int, help="measure once, with this budget (0: none), and print the figures")
    parser.add_argument("--keep", action="store_true", help="let the C library keep freed memory, as it does by itself")
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if not arguments.keep:
        return_freed_memory()
    size = (arguments.size[0], arguments.size[1])
    if arguments.bytes is not None:
        print(*measure(arguments.model, size, arguments.factor, arguments.bytes or None))
        return 0

    def alone(budget: int) -> list[float]:
        command = [sys.executable, __file__, *argv, "--bytes", str(budget)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [float(word) for word in done.stdout.split()]

    free = alone(0)
    rows: list[list[object]] = [["none", *free[:3], "-", "-", "-"]]
    for share in arguments.budgets:
        budget = share * free[0]
        found = alone(int(budget * 2**20))
        difference = max(abs(a / b - 1) for a, b in zip(found[3:], free[3:], strict=True))
        shares = [f"{100 * value / budget:.0f} %" for value in found[:2]]
        rows.append([budget, *found[:3], *shares, f"{difference:.0e}"])
    print(f"{arguments.model}, {size[0]}x{size[1]} px, {arguments.factor}x, {arguments.threads} threads")
    head = ["budget MiB", "tensors MiB", "resident MiB", "seconds", "tensors", "resident", "sums differ"]
    print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
