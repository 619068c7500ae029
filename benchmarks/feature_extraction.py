"""What the suite adds to a backbone's own forward time: reading, resizing, checking, gathering. As a ratio, in one run.

python benchmarks/feature_extraction.py [PREFIX:REST]
"""

import sys
import time

import torch

from eval_suite.features import ProbedBackbone
from eval_suite.readers.scenes import ScenesNode
from teachers.contracts import fit_images
from teachers.registry import load_backbone


def main(spec: str) -> None:
    """Print processor seconds of the bare forward passes and of feature extraction on 200 scenes."""
    fields = {"seed": 7, "train": 200, "test": 1, "pairs": 0, "points": 1, "size": 224, "label_stride": 2}
    images = ScenesNode(reader="scenes", **fields).open("benchmark").classes("train").images
    backbone = load_backbone(spec).eval()
    probed = ProbedBackbone(backbone)
    batches = [
        fit_images(images.read(rows).float() / 255, backbone.spec) for rows in torch.arange(len(images)).split(50)
    ]
    bare, whole = [], []
    with torch.no_grad():
        for _ in range(3):
            started = time.process_time()
            for batch in batches:
                backbone(batch)
            bare.append(time.process_time() - started)
            probed.forget(images)
            started = time.process_time()
            probed.features(images)
            whole.append(time.process_time() - started)
    print(f"{spec}: bare {min(bare):.2f} s, through the suite {min(whole):.2f} s: {min(whole) / min(bare):.3f} x")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tiny:dino")
