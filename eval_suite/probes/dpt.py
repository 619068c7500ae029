"""Probe3D's heads on frozen maps of four layers: `dpt` (its default), `linear` and `multiscale`.

Its "dpt" is not the original DPT: no reassembling strides, no upsampling between fusions. All resizing is bilinear with
align_corners True, as there.
"""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Head = Literal["dpt", "linear", "multiscale"]
HIDDEN, KERNEL = 512, 3  #: Probe3D's defaults
LAYERS = 4


def make_head(kind: Head, width: int, outputs: int, *, hidden: int = HIDDEN, kernel: int = KERNEL) -> nn.Module:
    """A head over four maps [B, C, h, w] -> [B, outputs, s h, s w], s = 16 (dpt), 4 (linear) or 8 (multiscale)."""
    if kind == "dpt":
        return DptHead(width, outputs, hidden, kernel)
    if kind == "linear":
        return LinearLayersHead(width, outputs, kernel)
    return MultiscaleHead(width, outputs, hidden, kernel)


class DptHead(nn.Module):
    """1x1 convolutions to `hidden`, twice the grid, residual fusion from deep to shallow, x4, two convolutions, x2."""

    def __init__(self, width: int, outputs: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(width, hidden, 1) for _ in range(LAYERS))
        self.fuse = nn.ModuleList(Fusion(hidden, kernel, first=layer == LAYERS - 1) for layer in range(LAYERS))
        self.out = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(hidden, outputs, 3, padding=1)
        )

    def forward(self, layers: list[Tensor]) -> Tensor:
        """Maps from shallow to deep, [B, C, h, w] each -> [B, outputs, 16 h, 16 w]."""
        maps = [bigger(reduce(layer), 2) for reduce, layer in zip(self.reduce, layers, strict=True)]
        running = self.fuse[-1](maps[-1], None)
        for layer in reversed(range(LAYERS - 1)):
            running = self.fuse[layer](maps[layer], running)
        return bigger(self.out(bigger(running, 4)), 2)


class Fusion(nn.Module):
    """R2(R1(map) + what comes from below), R a residual unit; the deepest map goes through R2 alone."""

    def __init__(self, hidden: int, kernel: int, *, first: bool) -> None:
        super().__init__()
        self.before = None if first else ResidualUnit(hidden, kernel)
        self.after = ResidualUnit(hidden, kernel)

    def forward(self, own: Tensor, deeper: Tensor | None) -> Tensor:
        """[B, hidden, h, w] twice -> the same shape."""
        return self.after(own) if self.before is None or deeper is None else self.after(self.before(own) + deeper)


class ResidualUnit(nn.Module):
    """x + conv, ReLU, conv, ReLU."""

    def __init__(self, hidden: int, kernel: int) -> None:
        super().__init__()
        padding = kernel // 2
        self.body = nn.Sequential(
            nn.Conv2d(hidden, hidden, kernel, padding=padding), nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, kernel, padding=padding), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, values: Tensor) -> Tensor:
        return values + self.body(values)


class LinearLayersHead(nn.Module):
    """The layers side by side, four times the grid, one convolution (of one cell it is a linear probe)."""

    def __init__(self, width: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(LAYERS * width, outputs, kernel, padding=kernel // 2)

    def forward(self, layers: list[Tensor]) -> Tensor:
        """[B, C, h, w] each -> [B, outputs, 4 h, 4 w]."""
        return self.classify(bigger(torch.cat(list(layers), 1), 4))


class MultiscaleHead(nn.Module):
    """1x1 convolutions, side by side, x2, three convolutions, x4, two convolutions."""

    def __init__(self, width: int, outputs: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(width, hidden, 1) for _ in range(LAYERS))
        self.early = convolutions([LAYERS * hidden, hidden, hidden, hidden], kernel)
        self.late = convolutions([hidden, hidden, outputs], kernel)

    def forward(self, layers: list[Tensor]) -> Tensor:
        """[B, C, h, w] each -> [B, outputs, 8 h, 8 w]."""
        maps = [reduce(layer) for reduce, layer in zip(self.reduce, layers, strict=True)]
        return self.late(bigger(F.relu(self.early(bigger(torch.cat(maps, 1), 2))), 4))


def convolutions(widths: list[int], kernel: int) -> nn.Sequential:
    """Convolutions from width to width with a ReLU between two."""
    parts: list[nn.Module] = []
    for into, out in pairwise(widths):
        parts += [nn.Conv2d(into, out, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts[:-1])


def bigger(values: Tensor, factor: int) -> Tensor:
    """[B, K, h, w] -> [B, K, factor h, factor w], corners kept in the corners."""
    return F.interpolate(values, scale_factor=factor, mode="bilinear", align_corners=True)


class DepthBins(nn.Module):
    """Logits [B, 256, h, w] -> metres [B, 1, h, w]: ReLU, + 0.1, made to sum to one, mean over evenly spaced depths."""

    def __init__(self, nearest: float, farthest: float, bins: int = 256) -> None:
        super().__init__()
        self.register_buffer("depths", torch.linspace(nearest, farthest, bins), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        weights = logits.relu() + 0.1
        depths = self.depths.to(logits.dtype)  # type: ignore[operator]
        return torch.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdim=True), depths)[:, None]
