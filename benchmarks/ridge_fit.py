"""Time and memory of fitting `ridge`, against the width of the features and the number of images.

    python benchmarks/ridge_fit.py [--widths 128 384 1152] [--computed 1536] [--images 16] [--grid 27] [--factor 3]

Sums of a few images are measured at the true width, on random features (values do not change the cost). The time for
more images is that of an image times their number; choosing the ridges is one solution times the number of them. Widths
of `--computed` are not run: their products of matrices at the speed of the last width that was. The teacher's passes
come on top. Without a GPU, seconds are CPU seconds.
"""

import argparse
import time

import torch
from timing import describe

from featsharp_adapter.model.least_squares import RIDGES, LeastSquaresSums, solve
from featsharp_adapter.model.multiview import ViewSettings, inside_share, random_homographies, warp
from featsharp_adapter.upsamplers.ridge import RidgeUpsampler

VIEWS = 5
EXTRAPOLATED = (1_000, 10_000, 100_000)


@torch.no_grad()
def fit(width: int, grid: int, factor: int, images: int, device: torch.device) -> dict[str, float]:
    """Seconds of an image's sums and of choosing ridges and solving; bytes of the sums."""
    upsampler = RidgeUpsampler(dim=width, factor=factor, grid=(grid, grid)).to(device)
    inputs = sum(upsampler.widths)
    train, held_back = (LeastSquaresSums(inputs, width, device) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    began = clock()
    for number in range(images):
        low = torch.randn(1, width, grid, grid, device=device)
        tiles = {factor: torch.randn(1, width, factor * grid, factor * grid, device=device)}
        image = torch.rand(1, 3, 14 * factor * grid, 14 * factor * grid, device=device)
        phi = upsampler.phi(low, tiles, image)
        homographies = random_homographies(VIEWS, ViewSettings(), generator).to(device)
        for view in homographies.split(1):
            rows = torch.nn.functional.avg_pool2d(warp(phi, view), factor).permute(0, 2, 3, 1).flatten(0, 2)
            weights = inside_share(view, (grid, grid)).flatten()
            sums = held_back if number % 2 else train
            sums.update(rows, torch.randn(len(rows), width, device=device), weights)
    if device.type == "cuda":
        torch.cuda.synchronize()
    summed = (clock() - began) / images
    began = clock()
    held_back.error(solve(train, upsampler.groups, [1.0] * len(upsampler.groups)))
    # One ridge for all inputs, each in turn, and the last solution: so often.
    solved = (clock() - began) * (len(RIDGES) * (1 + len(upsampler.groups)) + 1)
    return {"inputs": inputs, "an image": summed, "solve": solved, "bytes": sums_bytes(inputs, width)}


def sums_bytes(inputs: int, width: int) -> int:
    """Of both Gram matrices, those of the images that fit and of those that choose the ridges."""
    return 2 * 8 * (inputs + 1) * (inputs + 1 + width)


def computed(width: int, measured: int, found: dict[str, float]) -> dict[str, float]:
    """`fit` of another width: products grow with D (D + C), solutions with D^3."""
    inputs = RidgeUpsampler(dim=width, factor=1, grid=(1, 1)).linear.in_channels
    before = found["inputs"]
    summed = found["an image"] * inputs * (inputs + width) / (before * (before + measured))
    solved = found["solve"] * (inputs / before) ** 3
    return {"inputs": inputs, "an image": summed, "solve": solved, "bytes": sums_bytes(inputs, width)}


def main() -> None:
    """Print one row for each width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 384, 1152])
    parser.add_argument("--computed", type=int, nargs="*", default=[1536])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--grid", type=int, default=27)
    parser.add_argument("--factor", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.images < 2:
        parser.error("--images: 2 or more, of which every other one chooses the ridges")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{describe(device)}; {arguments.grid}x{arguments.grid} tokens, {arguments.factor}x, {VIEWS} views an image")
    print(
        "| C | D | s an image | solve, s | sums, MiB | " + " | ".join(f"{n:,} images, h" for n in EXTRAPOLATED) + " |"
    )
    found: dict[str, float] = {}
    for width in arguments.widths:
        found = fit(width, arguments.grid, arguments.factor, arguments.images, device)
        print(row(str(width), found), flush=True)
    for width in arguments.computed:
        print(row(f"{width} (computed)", computed(width, arguments.widths[-1], found)))


def row(title: str, found: dict[str, float]) -> str:
    """One line of the table."""
    hours = [f"{(n * found['an image'] + found['solve']) / 3600:.2f}" for n in EXTRAPOLATED]
    first = f"| {title} | {found['inputs']:.0f} | {found['an image']:.2f} | {found['solve']:.1f} "
    return f"{first}| {found['bytes'] / 2**20:.0f} | " + " | ".join(hours) + " |"


if __name__ == "__main__":
    main()
