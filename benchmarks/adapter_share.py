"""What an adapter costs beside the teacher passes it needs, in one run.

    python benchmarks/adapter_share.py [--model timm:vit_small_patch16_224] [--factor 2] [--batch 2] [--threads 2]

A FeatSharp adapter of factor x needs 1 + x^2 passes of the teacher (the whole image, and x^2 tiles). Printed are the
median times of those passes, of JBU, of the fusion block, and of a complete sharpened forward; what the parts leave of
the total is resizing, tiling, PHI-S and bias. Weights are random: they do not change the time.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from timing import alternating_ms

from featsharp_adapter.adapter import Adapter
from featsharp_adapter.meta import AdapterMeta
from featsharp_adapter.phi_s import PhiS
from featsharp_adapter.sharp import SharpenedBackbone
from teachers.errors import add_debug_flag, guard
from teachers.registry import load_backbone


@torch.inference_mode()
def measure(model: str, factor: int, batch: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of each part and of the whole, for a batch of images of factor x the native size."""
    teacher = load_backbone({"spec": model, "pretrained": False}).to(device)
    spec = teacher.spec
    meta = AdapterMeta(spec, model, "featsharp", factor)
    sharp = SharpenedBackbone(teacher, Adapter.build(meta, PhiS(spec.spatial_dim)), "benchmark").to(device).eval()
    passes = torch.rand(batch * (1 + factor**2), 3, *spec.native_size, device=device)
    images = torch.rand(batch, 3, *sharp.spec.native_size, device=device)
    level = sharp.adapter.upsampler.levels[0]
    low = torch.randn(batch, spec.spatial_dim, *spec.native_grid, device=device)
    both = torch.randn(batch, 2 * spec.spatial_dim, *sharp.spec.native_grid, device=device)
    parts: dict[str, Callable[[], object]] = {
        f"teacher, {1 + factor**2} passes": lambda: teacher(passes),
        "JBU": lambda: level.jbu(low, images),
        "fusion block": lambda: level.block(both),
        "sharpened teacher": lambda: sharp(images),
    }
    return alternating_ms(parts, repeats)


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
    teacher, total = next(iter(times.values())), times["sharpened teacher"]
    where = f"{device}, {arguments.threads} threads, torch {torch.__version__}"
    print(f"{arguments.model}, {arguments.factor}x, batch {arguments.batch}, {where}")
    for name, value in times.items():
        print(f"  {name:28s} {value:9.1f} ms  {100 * value / total:6.1f} % of the total")
    rest = total - teacher - times["JBU"] - times["fusion block"]
    print(f"  {'everything else':28s} {rest:9.1f} ms  {100 * rest / total:6.1f} % of the total")
    share = (times["JBU"] + times["fusion block"]) / total
    of_passes = 100 * rest / teacher
    print(f"JBU and fusion: {100 * share:.1f} % of the total; the rest: {of_passes:.1f} % of the bare passes")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
