"""What a suite costs beside the forward passes of its backbone: processor seconds of one thread.

    python benchmarks/suite_overhead.py [BACKBONE NODE]

The passes: bare ones on a few images, times the images of the suite. The rest: the whole suite on a stand-in that gives
maps and summaries of the same sizes by one convolution, less that convolution. Scenes are drawn before.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import guard
from eval_suite.suite import load_suite, run_suite
from teachers.contracts import Backbone, Features
from teachers.registry import load_backbone

SUITE = Path(__file__).parents[1] / "recipes" / "suites" / "embedded.yaml"
IMAGES, TURNS = 4, 3


class StandIn(Backbone):
    """Maps and summaries as wide as another backbone's, from one convolution over its patches."""

    def __init__(self, other: Backbone) -> None:
        super().__init__()
        self.spec = other.spec
        patch = other.spec.patch_size
        self.cells = nn.Conv2d(3, other.spec.spatial_dim, patch, patch)
        self.whole = (
            None if other.spec.summary_dim is None else nn.Linear(other.spec.spatial_dim, other.spec.summary_dim)
        )

    def forward(self, images: Tensor) -> Features:
        spatial = self.cells(images)
        return Features(None if self.whole is None else self.whole(spatial.mean((2, 3))), spatial)


def seconds() -> float:
    """Processor seconds of this process so far."""
    used = os.times()
    return used.user + used.system


@torch.no_grad()
def per_image(backbone: Backbone) -> float:
    """Processor seconds of a bare pass, the least of a few turns."""
    size = backbone.spec.native_size
    images = torch.rand(IMAGES, 3, *((size, size) if isinstance(size, int) else size))
    backbone.eval()(images)
    found = []
    for _ in range(TURNS):
        start = seconds()
        backbone(images)
        found.append((seconds() - start) / IMAGES)
    return min(found)


def main(argv: list[str]) -> None:
    """Print the shares."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    node = argv[0] if argv else '{"spec": "timm:vit_small_patch16_224", "pretrained": false}'
    backbone = load_backbone(json.loads(node) if node.startswith("{") else node)
    suite = load_suite(SUITE)
    data = {name: entry.open(name) for name, entry in suite.data.items()}
    count = sum(len(part.dense(split).images) for part in data.values() for split in ("train", "test"))
    count += sum(2 * len(part.pairs("test").first) for part in data.values())
    stand_in = StandIn(backbone)
    passes, own = count * per_image(backbone), count * per_image(stand_in)
    start = seconds()
    run_suite(stand_in, suite, progress=False)
    rest = seconds() - start - own
    share = f"+{100 * rest / passes:.0f} %"
    print(f"{backbone.spec.name}: {count} images, passes {passes:.0f} s, all else {rest:.0f} s: {share}")


if __name__ == "__main__":
    sys.exit(guard(main))
