"""DySample (arXiv 2308.15085): upsampling as sampling, bilinear interpolation at places that the features move.

Published code: tiny-smart/dysample, MIT; this is written from the paper. Any whole factor; the image is not looked at.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError, unknown
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.parts import check_divides
from featsharp_adapter.upsamplers.taps import to_map

STYLES = ("lp", "pl")


class DySampleUpsampler(Upsampler):
    """Fine cells start at the places of bilinear interpolation and are moved by learned offsets (section 3).

    style: `lp` predicts the offsets of all fine cells of a coarse cell and shuffles them out, `pl` shuffles the
    features out first (the width must then be a multiple of factor^2). groups: of channels, each with offsets of its
    own. dynamic_scope: offsets are scaled by a learned 0.5 * sigmoid instead of 0.25; both keep them small.
    """

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        style: Literal["lp", "pl"] = "lp",
        groups: int = 4,
        dynamic_scope: bool = False,
    ) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        if style not in STYLES:
            raise unknown("DySample style", style, STYLES)
        check_divides("groups", groups, dim, "the feature width")
        if style == "pl" and dim % factor**2:
            raise UserError(f'DySample style "pl" needs a width that {factor**2} divides, got {dim}; use "lp"')
        self.style, self.groups = style, groups
        inputs = dim if style == "lp" else dim // factor**2
        outputs = 2 * groups * (factor**2 if style == "lp" else 1)
        self.offset = nn.Conv2d(inputs, outputs, 1)
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        self.scope = nn.Conv2d(inputs, outputs, 1, bias=False) if dynamic_scope else None
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        places = self._bilinear_places(low) + self._offsets(low)
        sides = low.new_tensor([low.shape[-1], low.shape[-2]])
        grid = (2 * places + 1) / sides[:, None, None] - 1  # cell centres to -1 .. 1 over the edges
        grid = grid.flatten(0, 1).permute(0, 2, 3, 1)
        groups = low.unflatten(1, (self.groups, -1)).flatten(0, 1)
        fine = F.grid_sample(groups, grid, padding_mode="border", align_corners=False)
        return fine.unflatten(0, (-1, self.groups)).flatten(1, 2)

    def _offsets(self, low: Tensor) -> Tensor:
        """[B, groups, 2, k*g, k*g'], x before y, in coarse cells."""
        source = low if self.style == "lp" else F.pixel_shuffle(low, self.factor)
        scope = 0.25 if self.scope is None else 0.5 * self.scope(source).sigmoid()
        offsets = self.offset(source) * scope
        if self.style == "lp":
            offsets = to_map(offsets.unflatten(1, (2 * self.groups, -1)), self.factor)
        return offsets.unflatten(1, (self.groups, 2))

    def _bilinear_places(self, low: Tensor) -> Tensor:
        """[2, k*g, k*g']: x and y of the fine cells' centres, in coarse cells, the first coarse centre being 0."""
        rows, columns = (
            (torch.arange(self.factor * n, device=low.device, dtype=low.dtype) + 0.5) / self.factor - 0.5
            for n in low.shape[-2:]
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([x, y])
