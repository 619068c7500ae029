"""`ridge_block`: the closed form of `ridge`, and a small transformer block that learns what no linear map can.

    y(u) = low(u) + W phi(u) + b + V Block(E LN(phi))(u)

W and b are solved first; V starts at zero, so that training begins at the solution and goes on from there.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from featsharp_adapter.model.fusion import FusionBlock
from featsharp_adapter.model.layers import bias_of
from featsharp_adapter.upsamplers.ridge import RidgeUpsampler
from featsharp_adapter.upsamplers.strips import in_strips, resized_rows


class RidgeBlockUpsampler(RidgeUpsampler):
    """width, heads, window, hidden: of the block; the rest as in `ridge`; here the image's features are trained."""

    closed_form = False

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        inputs: Sequence[str] = ("low", "tiles", "low_mean", "tile_mean", "image"),
        tile_grid: int | None = None,
        image_width: int = 128,
        width: int = 128,
        heads: int = 8,
        window: int = 5,
        hidden: int = 256,
    ) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid, inputs=inputs, tile_grid=tile_grid, image_width=image_width)
        total = sum(self.widths)
        self.norm, self.enter = nn.LayerNorm(total), nn.Linear(total, width)
        self.block = FusionBlock(width, width, heads=heads, window=window, hidden=hidden, layer_scale=1.0)
        self.leave = nn.Conv2d(width, dim, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(bias_of(self.leave))
        for part in (self.stem, self.jbu):
            if part is not None:
                part.requires_grad_(True)

    @property
    def reach(self) -> int:
        return self.block.radius

    def fitted_parameters(self) -> list[nn.Parameter]:
        return list(self.linear.parameters())

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        sources, height = self.sources(low, tiles, guidance), self.factor * low.shape[-2]

        def rows(start: int, stop: int) -> Tensor:
            first, last = max(start - self.reach, 0), min(stop + self.reach, height)
            phi = torch.cat([source(first, last) for source in sources], dim=1)
            tokens = self.enter(self.norm(phi.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            found = self.linear(phi) + self.leave(self.block(tokens))
            return resized_rows(low, self.factor, start, stop) + found[:, :, start - first : stop - first]

        return rows(0, height) if self.strip_rows is None else in_strips(rows, low, self.factor, self.strip_rows)
