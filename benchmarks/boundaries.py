"""How long odsF takes for one 512 x 512 image and all 101 thresholds, on maps from easy to nasty.

python benchmarks/boundaries.py [MAP ...]
"""

import sys
import time

import numpy as np
import torch
from timing import table
from torch import Tensor

from eval_suite.metrics.boundaries import Boundaries

SIDE = 512


def contours(seed: int, cells: int, lines: int) -> Tensor:
    """Contour lines of a smooth random surface as a soft map [1, H, W]."""
    surface = torch.from_numpy(np.random.default_rng(seed).random((cells, cells)))[None, None]
    surface = torch.nn.functional.interpolate(surface, size=(SIDE, SIDE), mode="bicubic")[0, 0]
    return (surface * lines % 1).sub(0.5).abs().mul(2).clamp(0, 1)[None]


def maps() -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> prediction and label [1, H, W]."""
    sparse, dense, tangled = contours(1, 4, 3), contours(0, 8, 9), contours(5, 40, 9)
    noise = torch.from_numpy(np.random.default_rng(0).random((1, SIDE, SIDE)))
    coarse = torch.from_numpy(np.random.default_rng(2).random((1, 1, 32, 32)))
    blurred = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")[0]
    lines = {"sparse": (sparse > 0.97).long(), "dense": (dense > 0.97).long(), "tangled": (tangled > 0.9).long()}
    return {
        "few broad contours": (sparse, lines["sparse"]),
        "many contours": (dense, lines["dense"]),
        "tangled contours": (tangled, lines["tangled"]),
        "32 x 32 cells, blurred": (blurred, lines["dense"]),
        "one value everywhere": (torch.full_like(noise, 0.5), lines["dense"]),
        "noise": (noise, lines["sparse"]),
        "noise, noise labelled": (noise, (noise > 0.5).long()),
    }


def main(wanted: list[str]) -> None:
    """Print processor and wall seconds of each map."""
    torch.set_num_threads(1)
    rows = []
    for name, (drawn, labelled) in maps().items():
        if wanted and name not in wanted:
            continue
        metric = Boundaries()
        wall, processor = time.perf_counter(), time.process_time()
        metric.update(drawn, labelled)
        processor, wall = time.process_time() - processor, time.perf_counter() - wall
        rows.append([name, int(metric.rows[0, -1]), processor, wall])
    print(table(["map", "label pixels", "processor s", "wall s"], rows))


if __name__ == "__main__":
    main(sys.argv[1:])
