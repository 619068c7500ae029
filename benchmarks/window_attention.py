"""Window attention: this package's blocks against attention of everything to everything, in one run.

    python benchmarks/window_attention.py [--dim 768] [--grids 28 56 64] [--batch 2] [--device cuda]

"dense" is one fused attention call with a cached bias [heads, tokens, tokens], the best of the straightforward forms;
"eager" is the same by explicit softmax, on grids where it is bearable. Input and output projections are in all of them
and also measured alone, being the part no attention can save. Memory is the peak of live tensors, biases included.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from timing import add_device, alternating_ms, describe, open_device, peak_mib, table
from torch import Tensor

from common.errors import add_debug_flag, guard
from featsharp_adapter.model.local_attention import LocalAttention, block_bias

#: Tokens up to which the eager form is tried.
EAGER = 1024


def dense(attention: LocalAttention, tokens: Tensor, bias: Tensor, *, eager: bool) -> Tensor:
    """Every token to every other, the window in the bias."""
    height, width = tokens.shape[1:3]
    parts = attention.qkv(tokens).unflatten(-1, (3, attention.heads, -1)).flatten(1, 2).permute(2, 0, 3, 1, 4)
    if eager:
        query, key, value = parts
        out = (query @ key.transpose(-1, -2) * attention.size**-0.5 + bias).softmax(dim=-1) @ value
    else:
        out = F.scaled_dot_product_attention(*parts, attn_mask=bias)
    return attention.proj(out.transpose(1, 2).flatten(2)).unflatten(1, (height, width))


def measure(dim: int, grid: int, batch: int, window: int, repeats: int, device: torch.device) -> list[object]:
    """One row of the table."""
    attention = LocalAttention(dim, window=window).to(device)
    tokens = torch.randn(batch, grid, grid, dim, device=device)

    def make_bias() -> Tensor:
        side = (grid, grid, 0)
        return block_bias.__wrapped__(attention.heads, side, side, attention.radius, tokens.device, tokens.dtype)

    bias = make_bias()
    variants = {
        "blocks": lambda: attention(tokens),
        "dense": lambda: dense(attention, tokens, bias, eager=False),
        "projections": lambda: attention.proj(attention.qkv(tokens)[..., :dim]),
    }
    if grid**2 <= EAGER:
        variants["eager"] = lambda: dense(attention, tokens, bias, eager=True)
    times = alternating_ms(variants, repeats)
    difference = float((variants["blocks"]() - variants["dense"]()).abs().max())
    block_bias.cache_clear()  # so that its biases count
    blocks, whole = peak_mib(variants["blocks"]), peak_mib(lambda: dense(attention, tokens, make_bias(), eager=False))
    eager = f"{times['eager'] / times['blocks']:.1f}x" if "eager" in times else "-"
    return [
        f"{grid}x{grid}",
        times["blocks"],
        times["projections"],
        times["dense"],
        f"{times['dense'] / times['blocks']:.1f}x",
        eager,
        blocks,
        f"{blocks * 1024 / (batch * grid**2):.1f}",
        f"{whole / blocks:.1f}x",
        f"{difference:.0e}",
    ]


@torch.inference_mode()
def main(argv: list[str]) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Speed and memory of window attention.")
    parser.add_argument("--dim", type=int, default=768, help="of the fusion: twice the teacher's width")
    parser.add_argument("--grids", type=int, nargs="+", default=[28, 56, 64])
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    add_device(parser)
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    device = open_device(arguments)
    rows = [
        measure(arguments.dim, grid, arguments.batch, arguments.window, arguments.repeats, device)
        for grid in arguments.grids
    ]
    print(f"width {arguments.dim}, window {arguments.window}, batch {arguments.batch}, {describe(device)}")
    header = [
        "grid",
        "ms",
        "projections ms",
        "dense ms",
        "faster",
        "than eager",
        "MiB",
        "KiB a token",
        "less memory",
        "max difference",
    ]
    print(table(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
