"""An upsampler of your own, in one file: checked, trained for a teacher, compared, and used in a distillation.

python examples/own_upsampler.py [FOLDER]        writes below FOLDER (default: runs/examples)
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agglomerate
from agglomerate.training import run
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.conformance import check_upsampler

NAME = "class:own_upsampler.Residual"


class Residual(Upsampler):
    """Bilinear upsampling plus a residual that a small convolution makes of the image and the smooth map."""

    starts_as_bilinear = True

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int], width: int = 16) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        self.mix = nn.Conv2d(3 + dim, width, 3, padding=1)
        self.out = nn.Conv2d(width, dim, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        """low [B, C, g, g'], guidance [B, 3, H, W] -> [B, C, k g, k g']."""
        size = (self.factor * low.shape[-2], self.factor * low.shape[-1])
        smooth = F.interpolate(low, size=size, mode="bilinear", align_corners=False)
        image = F.interpolate(guidance, size=size, mode="bilinear", align_corners=False, antialias=True)
        return smooth + self.out(torch.relu(self.mix(torch.cat([image, smooth], 1))))


def main(out: Path) -> None:
    check_upsampler(NAME, options={"width": 8})
    print("the upsampler keeps the contract")
    short = ["optim.steps=20", "optim.warmup=2", "optim.batch_size=2", "data.images=16", "data.held_out_images=8"]
    recipe = "adapters/tiny_clip.yaml"
    adapter = agglomerate.train_adapter(
        recipe, f"upsampler={NAME}", "options={width: 8}", f"out={out / 'own_adapter'}", *short
    )
    print(f"trained: {adapter}")
    run(
        "featsharp_adapter", "compare", recipe, "--upsamplers", "bilinear", f"{NAME}:width=8", "--seeds", "0",
        "--set", *short, "--out", str(out / "compared"),
    )  # fmt: skip
    student = agglomerate.distil(
        "quickstart.yaml", f"teachers.clip.upsampler={NAME}", f"teachers.clip.adapters={{{NAME!r}: {str(adapter)!r}}}",
        f"out={out}", "name=own_upsampler", "arms={}", "baseline=null", "optim.steps=2", "optim.warmup_steps=0",
        "eval=null",
    )  # fmt: skip
    print(f"a student of teachers sharpened by it: {student}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples"))
