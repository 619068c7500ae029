"""Joint bilateral upsampling: this package's against the straightforward formulation, in one run.

    python benchmarks/jbu_speed.py [--dims 384 1024] [--grids 14 16] [--factors 2 4] [--batch 2] [--device cuda]

Straightforward means: unfold the 7 x 7 neighbourhoods of the keys and of the upsampled map, multiply, sum. Both have
the same weights, and the difference of their results is printed beside the ratios. Memory is the peak of live tensors.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from timing import add_device, alternating_ms, describe, open_device, peak_mib, table
from torch import Tensor

from common.errors import add_debug_flag, guard
from featsharp_adapter.model.jbu import RADIUS, JBULevel, JBUStack

TAPS = 2 * RADIUS + 1


def unfold_level(level: JBULevel, source: Tensor, guidance: Tensor) -> Tensor:
    """One level as it is written down."""
    batch, channels, height, width = source.shape
    size = (height * level.factor, width * level.factor)
    keys = level.key(F.adaptive_avg_pool2d(guidance, size))
    near = F.unfold(F.pad(keys, (RADIUS,) * 4, mode="reflect"), TAPS).view(batch, keys.shape[1], TAPS**2, -1)
    alike = torch.einsum("bcnp,bcp->bnp", near, keys.flatten(2)) * level.log_temperature.exp()
    line = torch.linspace(-1, 1, TAPS, device=source.device) ** 2
    gaussian = torch.exp(-(line[:, None] + line[None, :]).flatten() / (2 * level.log_sigma.exp() ** 2))
    kernel = alike.softmax(dim=1) * gaussian[None, :, None]
    kernel = kernel / kernel.sum(dim=1, keepdim=True).clamp(min=1e-7)
    upsampled = F.interpolate(source, size=size, mode="bilinear", align_corners=False)
    patches = F.unfold(F.pad(upsampled, (RADIUS,) * 4, mode="reflect"), TAPS).view(batch, channels, TAPS**2, -1)
    return torch.einsum("bcnp,bnp->bcp", patches, kernel).view(batch, channels, *size)


def unfold_stack(stack: JBUStack, source: Tensor, guidance: Tensor) -> Tensor:
    """All levels."""
    for level in stack.levels:
        source = unfold_level(level, source, guidance)
    return source


def measure(
    dim: int, grid: int, factor: int, batch: int, repeats: int, backward: bool, device: torch.device
) -> list[object]:
    """One row of the table."""
    stack = JBUStack(factor).to(device)
    source = torch.randn(batch, dim, grid, grid, device=device, requires_grad=backward)
    guidance = torch.rand(batch, 3, grid * 16, grid * 16, device=device)

    def fast() -> Tensor:
        return stack(source, guidance)

    def slow() -> Tensor:
        return unfold_stack(stack, source, guidance)

    learned = [source, *stack.parameters()]
    variants = {"fast": fast, "slow": slow}
    if backward:
        variants = {
            name: lambda run=run: torch.autograd.grad(run().square().mean(), learned) for name, run in variants.items()
        }
    with torch.set_grad_enabled(backward):
        times = alternating_ms(variants, repeats)
        peaks = {name: peak_mib(run) for name, run in variants.items()}
        difference = float((fast() - slow()).abs().max().detach())
    what = "forward + backward" if backward else "forward"
    faster, leaner = times["slow"] / times["fast"], peaks["slow"] / peaks["fast"]
    return [
        dim,
        f"{grid} -> {grid * factor}",
        what,
        *times.values(),
        f"{faster:.1f}x",
        *peaks.values(),
        f"{leaner:.1f}x",
        f"{difference:.0e}",
    ]


def main(argv: list[str]) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Speed and memory of joint bilateral upsampling.")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 1024])
    parser.add_argument("--grids", type=int, nargs="+", default=[14, 16])
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--forward-only", action="store_true")
    add_device(parser)
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    device = open_device(arguments)
    rows = [
        measure(dim, grid, factor, arguments.batch, arguments.repeats, backward, device)
        for dim in arguments.dims
        for factor in arguments.factors
        for grid in arguments.grids
        for backward in ((False,) if arguments.forward_only else (False, True))
    ]
    print(f"batch {arguments.batch}, {describe(device)}")
    header = ["C", "grid", "what", "ms", "unfold ms", "faster", "MiB", "unfold MiB", "less memory", "max difference"]
    print(table(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
