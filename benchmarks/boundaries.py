"""How long odsF takes for one 512 x 512 image: all 101 thresholds, as a multiple of thinning the image once.

python benchmarks/boundaries.py
"""

import time

import numpy as np
import torch

from eval_suite.metrics.boundaries import Boundaries
from eval_suite.metrics.thinning import thin


def main() -> None:
    """Print processor seconds of one image and of one thinning."""
    soft = torch.from_numpy(np.random.default_rng(0).random((8, 8)))[None, None]
    soft = torch.nn.functional.interpolate(soft, size=(512, 512), mode="bicubic")[0, 0]
    edges = (soft * 9 % 1).sub(0.5).abs().mul(2).clamp(0, 1)[None]
    started = time.process_time()
    thin((edges[0] > 0.5).numpy())
    once = time.process_time() - started
    metric = Boundaries()
    started = time.process_time()
    metric.update(edges, (edges > 0.97).long())
    whole = time.process_time() - started
    labelled = int(metric.rows[0, -1])
    print(f"512 x 512, {labelled} label pixels, 101 thresholds: {whole:.2f} s, {whole / once:.0f} x one thinning")


if __name__ == "__main__":
    main()
