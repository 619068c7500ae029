"""FeatSharp (arXiv 2502.16025): a guided upsampling of the whole image, corrected by what the teacher sees in tiles.

The upsampled low-resolution map knows the scene and is blurred; the tiles have the detail and have lost the scene. A
fusion block reads both at every place and corrects the first.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import mul

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError, unknown
from featsharp_adapter.model.fusion import BlockKind, FusionBlock, PartialBlock, build_block
from featsharp_adapter.model.jbu import JBUStack, prime_factors
from featsharp_adapter.model.local_attention import Position
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.guides import GUIDES
from featsharp_adapter.upsamplers.strips import in_strips, resized_rows

INPUTS = ("jbu", "bilinear", "tiles", "rgb")
#: Width of the image among the fusion inputs, as published.
RGB_DIM = 16


class TilePosition(nn.Module):
    """Adds one learned vector to all tokens of a tile: [B, C, n*g, n*g'] -> same. Starts at zero."""

    def __init__(self, dim: int, n: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(1, dim, n, n))

    def forward(self, tiles: Tensor) -> Tensor:
        return self.rows(tiles, 0, tiles.shape[-2])

    def rows(self, tiles: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the result."""
        high, wide = (side // n for side, n in zip(tiles.shape[-2:], self.embedding.shape[-2:], strict=True))
        down = torch.arange(start, stop, device=tiles.device) // high
        added = self.embedding[:, :, down].repeat_interleave(wide, dim=3)
        return tiles[:, :, start:stop] + added


class FusionLevel(nn.Module):
    """low [B, C, h, w], tiles [B, C, f*h, f*w], guidance [B, 3, H, W] -> [B, C, f*h, f*w]."""

    def __init__(
        self,
        dim: int,
        factor: int,
        n: int,
        inputs: Sequence[str],
        sigma: float,
        block: FusionBlock | PartialBlock,
        learned: Mapping[str, Upsampler],
    ) -> None:
        """n: tiles a side of the map it is given; the first of `inputs` is the one that is corrected."""
        super().__init__()
        self.factor, self.inputs, self.block = factor, tuple(inputs), block
        self.jbu = JBUStack(factor, sigma=sigma) if "jbu" in inputs else None
        self.position = TilePosition(dim, n) if "tiles" in inputs else None
        self.rgb = nn.Conv2d(3, RGB_DIM, 1) if "rgb" in inputs else None
        self.learned = nn.ModuleDict(learned)

    def forward(self, low: Tensor, tiles: Tensor | None, guidance: Tensor, strip_rows: int | None = None) -> Tensor:
        """strip_rows: make so many rows at a time; the result is the same."""
        height = self.factor * low.shape[-2]
        sources = [self._source(name, low, tiles, guidance) for name in self.inputs]

        def rows(start: int, stop: int) -> Tensor:
            first, last = max(start - self.block.radius, 0), min(stop + self.block.radius, height)
            maps = torch.cat([source(first, last) for source in sources], dim=1)
            return self.block(maps)[:, :, start - first : stop - first]

        return rows(0, height) if strip_rows is None else in_strips(rows, low, self.factor, strip_rows)

    def _source(self, name: str, low: Tensor, tiles: Tensor | None, guidance: Tensor) -> Callable[[int, int], Tensor]:
        """rows(start, stop) of one input."""
        grid = (low.shape[-2], low.shape[-1])
        if name == "jbu" and self.jbu is not None:
            jbu, pyramid = self.jbu, self.jbu.pyramid(guidance, grid)
            return lambda start, stop: jbu.rows(low, pyramid, start, stop)
        if name == "tiles" and self.position is not None and tiles is not None:
            position = self.position
            return lambda start, stop: position.rows(tiles, start, stop)
        if name == "rgb" and self.rgb is not None:
            colours = self.rgb(F.adaptive_avg_pool2d(guidance, (grid[0] * self.factor, grid[1] * self.factor)))
            return lambda start, stop: colours[:, :, start:stop]
        if name in self.learned:
            whole = self.learned[name](low, {}, guidance)
            return lambda start, stop: whole[:, :, start:stop]
        return lambda start, stop: resized_rows(low, self.factor, start, stop)


class FeatSharpUpsampler(Upsampler):
    """One fusion level for the whole factor, or (`progressive`) one per prime factor, each fed by its own tile grid.

    inputs: what the block reads; the first is corrected and is exactly what comes out before training. Beside INPUTS,
        any upsampler of the table that needs no tiles, with its default options.
    block: "full", "no_attention", "no_ffn" or "linear". norm: layer normalisation before attention and SwiGLU.
    heads, window, position, head_dim: of the local attention. hidden: width of the SwiGLU; None gives 16C/3, as
        published code has it.
    layer_scale: how far the block may move at first; 1e-6 as published suits thousands of steps, 0.1 hundreds.
    sigma: the joint bilateral kernel's first width.
    published_guidance: resize the image bilinearly to the grid of each level, as published, instead of pooling.
    """

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        inputs: Sequence[str] = ("jbu", "tiles"),
        progressive: bool = False,
        block: BlockKind = "full",
        norm: bool = True,
        heads: int = 16,
        window: int = 7,
        position: Position = "alibi",
        head_dim: int | None = None,
        hidden: int | None = None,
        layer_scale: float = 0.1,
        sigma: float = 0.35,
        published_guidance: bool = False,
    ) -> None:
        learned = check_inputs(inputs)
        steps = prime_factors(factor) if progressive else [factor]
        grids = list(accumulate(steps, mul))
        super().__init__(dim=dim, factor=factor, grid=grid, tile_grids=tuple(grids) if "tiles" in inputs else ())
        width = sum(RGB_DIM if name == "rgb" else dim for name in inputs)
        levels = []
        for step, n in zip(steps, grids, strict=True):
            fusion = build_block(
                block,
                width,
                dim,
                heads=heads,
                window=window,
                hidden=hidden,
                layer_scale=layer_scale,
                position=position,
                norm=norm,
                head_dim=head_dim,
            )
            before = (grid[0] * n // step, grid[1] * n // step)
            guides = {name: learned[name](dim=dim, factor=step, grid=before) for name in learned}
            for name, guide in guides.items():
                if guide.tile_grids:
                    raise UserError(f'fusion input "{name}" needs tiles of its own; only upsamplers without can be one')
            levels.append(FusionLevel(dim, step, n, inputs, sigma, fusion, guides))
        self.grids, self.published_guidance = grids, published_guidance
        self.levels: Sequence[FusionLevel] = nn.ModuleList(levels)  # type: ignore[assignment]  # its stubs do not say of what it is a list

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        for n, level in zip(self.grids, self.levels, strict=True):
            image = guidance
            if self.published_guidance:
                size = (low.shape[-2] * level.factor, low.shape[-1] * level.factor)
                image = F.interpolate(guidance, size=size, mode="bilinear", align_corners=False)
            low = level(low, tiles.get(n), image, self.strip_rows)
        return low

    @property
    def local(self) -> bool:
        return not any(len(level.learned) for level in self.levels)

    @property
    def reach(self) -> int:
        return max((level.block.radius for level in self.levels), default=0)

    def guide_parameters(self) -> list[nn.Parameter]:
        return [p for level in self.levels if level.jbu is not None for p in level.jbu.parameters()]


def check_inputs(inputs: Sequence[str]) -> dict[str, type[Upsampler]]:
    """The learned ones among `inputs`; UserError unless they are different known names, the first with features."""
    for name in inputs:
        if name not in INPUTS and name not in GUIDES:
            raise unknown("fusion input", name, (*INPUTS, *GUIDES))
    if not inputs or len(set(inputs)) < len(inputs):
        raise UserError(f"fusion inputs are different names out of {', '.join((*INPUTS, *GUIDES))}, got {list(inputs)}")
    if inputs[0] == "rgb":
        raise UserError(
            'the first fusion input is the one that is corrected; it cannot be "rgb", which has no features'
        )
    return {name: GUIDES[name] for name in inputs if name in GUIDES}
