"""What the suite adds to a backbone's own forward time: reading, resizing, checking, gathering. As a ratio, in one run.

python benchmarks/feature_extraction.py [BACKBONE ...]

The bare time is that of `backbone(batch)` alone, on batches that lie in memory as floats of the backbone's size. Both
take turns in one process on the same number of threads (OMP_NUM_THREADS); the reading thread's time counts too.
"""

import sys
import time
from collections.abc import Callable

import torch
from timing import table
from torch import Tensor

from eval_suite.__main__ import backbone_node
from eval_suite.features import ProbedBackbone
from eval_suite.readers.contracts import ImageSource
from teachers.contracts import fit_images
from teachers.registry import load_backbone

BACKBONES = ("tiny:dino", "{spec: timm:vit_small_patch16_224, pretrained: false}")
IMAGES, SIDE, TURNS = 200, 224, 3


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
    probed = ProbedBackbone(backbone)
    batches = [
        fit_images(images.read(rows).float() / 255, backbone.spec)
        for rows in torch.arange(IMAGES).split(probed.batch_size)
    ]
    bare, whole = [], []
    for _ in range(TURNS):
        bare.append(processor_seconds(lambda: [backbone(batch) for batch in batches]))
        probed.forget(images)
        whole.append(processor_seconds(lambda: probed.features(images)))
    return [backbone.spec.name, 1000 * min(bare) / IMAGES, 1000 * min(whole) / IMAGES, f"{min(whole) / min(bare):.3f}x"]


def main(backbones: list[str]) -> None:
    """Print milliseconds of processor time an image, bare and through the suite."""
    rows = [measure(text) for text in backbones]
    print(table(["backbone", "bare ms", "through the suite ms", "ratio"], rows))


if __name__ == "__main__":
    main(sys.argv[1:] or list(BACKBONES))
