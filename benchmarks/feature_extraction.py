"""What the suite adds to a backbone's own forward time: reading, resizing, checking, gathering. As a ratio, in one run.

python benchmarks/feature_extraction.py [BACKBONE ...]

The bare time is that of `backbone(batch)` alone, on batches that lie in memory as floats of the backbone's size. Both
take turns in one process on the same number of threads (OMP_NUM_THREADS); the reading thread's time counts too.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from timing import table
from torch import Tensor

from eval_suite.__main__ import backbone_node
from eval_suite.features import ProbedBackbone
from eval_suite.readers.contracts import ImageSource
from teachers.contracts import fit_images
from teachers.registry import load_backbone

BACKBONES = ("tiny:dino", "{spec: timm:vit_small_patch16_224, pretrained: false}")
IMAGES, SIDE, BATCH = 192, 224, 16  #: the batch of the embedded suite
TURNS, SECONDS = 3, 60.0  #: at least so many turns, and more until so much time has gone


class Noise(ImageSource):
    """Random pixels in memory."""

    key = "noise"
    pixels = torch.randint(
        0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )

    def __len__(self) -> int:
        return IMAGES

    def read(self, rows: Tensor) -> Tensor:
        return self.pixels[rows]


def processor_seconds(work: Callable[[], object]) -> float:
    """Of one call, all threads of the process together."""
    started = time.process_time()
    work()
    return time.process_time() - started


@torch.no_grad()
def measure(text: str) -> list[object]:
    """A row of the table."""
    images, backbone = Noise(), load_backbone(backbone_node(text)).eval()
    probed = ProbedBackbone(backbone, batch_size=BATCH)
    batches = [
        fit_images(images.read(rows).float() / 255, backbone.spec)
        for rows in torch.arange(IMAGES).split(probed.batch_size)
    ]
    bare, whole = [], []
    while len(bare) < TURNS or sum(bare) + sum(whole) < SECONDS:
        bare.append(processor_seconds(lambda: [backbone(batch) for batch in batches]))
        probed.forget(images)
        whole.append(processor_seconds(lambda: probed.features(images)))
    ratios = torch.tensor(whole) / torch.tensor(bare)
    low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    times = [1000 * median(part) / IMAGES for part in (bare, whole)]
    return [backbone.spec.name, len(bare), *times, f"{middle:.3f}x", f"{low:.3f} to {high:.3f}"]


def main(backbones: list[str]) -> None:
    """Print milliseconds of processor time an image, bare and through the suite, and the ratio within each turn."""
    rows = [measure(text) for text in backbones]
    print(table(["backbone", "turns", "bare ms", "through the suite ms", "ratio", "middle half"], rows))


if __name__ == "__main__":
    main(sys.argv[1:] or list(BACKBONES))
