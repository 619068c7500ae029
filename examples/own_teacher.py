"""A network of your own as a teacher: checked against the contract, then distilled from.

    python examples/own_teacher.py [FOLDER]          writes below FOLDER (default: runs/examples)

The teacher here is a frozen random convolution, so that nothing is downloaded; put your own network in its place.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import agglomerate
from teachers.conformance import check_backbone
from teachers.contracts import Backbone, BackboneSpec, Features, state_digest


class Edges(Backbone):
    """Patch 8, 24 channels, any size in whole patches. A recipe names it `class:own_teacher.Edges`."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.GELU(), nn.Conv2d(width, width, 1))
        self.spec = BackboneSpec(
            name="edges", library="mine", patch_size=8, spatial_dim=width, summary_dim=width, native_size=(64, 64),
            resizable=True, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), licence="Apache-2.0", source="random weights",
            digest=state_digest(self.net),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Features:
        """[B, 3, H, W] in [0, 1] -> summary [B, 24], spatial [B, 24, H/8, W/8]."""
        spatial = self.net((images - 0.5) / 0.5)  # a backbone does its own normalisation
        return Features(spatial.mean((2, 3)), spatial)


def main(out: Path) -> None:
    check_backbone(Edges().eval())
    print("the teacher keeps the contract")
    run = agglomerate.distil(
        "debug.yaml", 'teachers={"edges": {"backbone": "class:own_teacher.Edges"}}', f"out={out}", "name=own_teacher",
        "optim.steps=4", "eval=null",
    )  # fmt: skip
    student = agglomerate.load_student(run)
    features = student(torch.rand(1, 3, 64, 64))
    print(f"a student of it: {run}; its map is {list(features.spatial.shape)}")
    print(f"in the teacher's units: {list(student.adaptor('edges').project(features).spatial.shape)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples"))
