"""`ridge`: bilinear interpolation corrected by a linear map of what is known at each place, solved and not trained.

    y(u) = low(u) + W phi(u) + b

phi(u) sets maps side by side at place u of the fine grid. Warping and average pooling are linear and commute with W, so
that the multi-view objective of FeatSharp (arXiv 2502.16025, section 3.3) under an average downsampler is least squares
in W (`training/closed_form.py` solves it in one pass over the views). W = 0 is bilinear interpolation, and W is shrunk
towards it.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError, unknown
from featsharp_adapter.model.jbu import JBUStack
from featsharp_adapter.model.layers import bias_of
from featsharp_adapter.model.views import stitch, tile_images
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.strips import in_strips, resized_rows

#: Rows `start` to `stop` of one map on the fine grid.
Rows = Callable[[int, int], Tensor]
#: What phi may hold. *_mean: the mean of the 3 x 3 tokens around, within its own pass of the teacher. s2: the mean of
#: low and tiles. jbu: a joint bilateral upsampling of `low` with random weights. image: `ImageStem`.
INPUTS = ("low", "tiles", "low_mean", "tile_mean", "s2", "jbu", "image")
OF_TILES = ("tiles", "tile_mean", "s2")


class ImageStem(nn.Module):
    """Random features of the image, [B, 3, H, W] -> [B, width, h, w]; they are read by a linear map and not trained.

    A convolution of half a cell, another of 3 x 3 half cells, ReLU after each, mean over the cell.
    """

    #: Pixels of the image in half a cell, a side; larger images are pooled to it.
    PIXELS = 8

    def __init__(self, width: int, *, inner: int = 64) -> None:
        super().__init__()
        patch = self.PIXELS
        self.near = nn.Conv2d(3, inner, patch, stride=patch)
        self.around = nn.Conv2d(inner, width, 3)
        nn.init.normal_(self.near.weight, std=3 / (3 * patch * patch) ** 0.5)
        nn.init.normal_(self.around.weight, std=2 / (9 * inner) ** 0.5)
        for layer in (self.near, self.around):
            nn.init.normal_(bias_of(layer), std=0.3)

    def rows(self, image: Tensor, size: tuple[int, int]) -> Rows:
        """On a grid of `size`, by rows."""
        image = image.to(self.near.weight.dtype)
        pixels = F.adaptive_avg_pool2d(image, (2 * self.PIXELS * size[0], 2 * self.PIXELS * size[1])) - 0.5

        def part(start: int, stop: int) -> Tensor:
            first, last = max(start - 1, 0), min(stop + 1, size[0])  # the second convolution sees half a cell further
            halves = F.relu(self.near(pixels[:, :, 2 * self.PIXELS * first : 2 * self.PIXELS * last]))
            found = F.relu(self.around(F.pad(halves, (1,) * 4, mode="replicate")))
            return F.avg_pool2d(found, 2)[:, :, start - first : stop - first]

        return part


def side_by_side(widths: Sequence[int]) -> list[slice]:
    """Where each of several maps lies when they are put after each other."""
    ends = list(accumulate(widths))
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def local_mean(maps: Tensor, n: int = 1) -> Tensor:
    """The mean of the 3 x 3 tokens around each of [B, C, n*g, n*g'], within its own tile; a border continues itself."""
    tiles = F.pad(tile_images(maps, n), (1,) * 4, mode="replicate")
    return stitch(F.avg_pool2d(tiles, 3, stride=1), n)


class RidgeUpsampler(Upsampler):
    """inputs: what phi holds, of INPUTS. tile_grid: tiles a side; None: the factor (fewer are cheaper).

    image_width: of the image's random features. The random weights are saved with the adapter.
    """

    starts_as_bilinear = True
    closed_form = True

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        inputs: Sequence[str] = ("low", "tiles", "low_mean", "tile_mean", "image"),
        tile_grid: int | None = None,
        image_width: int = 128,
    ) -> None:
        for name in inputs:
            if name not in INPUTS:
                raise unknown("input of a ridge", name, INPUTS)
        if not inputs or len(set(inputs)) < len(inputs):
            raise UserError(f"inputs of a ridge are different names out of {', '.join(INPUTS)}, got {list(inputs)}")
        self.inputs = tuple(inputs)
        self.n = factor if tile_grid is None else tile_grid
        if isinstance(tile_grid, bool) or isinstance(image_width, bool) or image_width < 1:
            raise UserError(
                f"tile_grid and image_width of a ridge are numbers from 1, got {tile_grid} and {image_width}"
            )
        if not 1 <= self.n <= factor or factor % self.n:
            raise UserError(f"tile_grid: {self.n} tiles a side do not divide a factor of {factor}")
        tiled = any(name in OF_TILES for name in inputs)
        super().__init__(dim=dim, factor=factor, grid=grid, tile_grids=(self.n,) if tiled else ())
        self.widths = [image_width if name == "image" else dim for name in inputs]
        self.linear = nn.Conv2d(sum(self.widths), dim, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(bias_of(self.linear))
        self.stem = ImageStem(image_width).requires_grad_(False) if "image" in inputs else None
        self.jbu = JBUStack(factor).requires_grad_(False) if "jbu" in inputs else None
        # Without tiles: a solution of its own, and a prediction of what a tile changes, from means and deviations.
        self.budgeted = tiled and not all(name in OF_TILES for name in inputs)
        if self.budgeted:
            width = sum(width for name, width in zip(inputs, self.widths, strict=True) if name not in OF_TILES)
            self.linear_low = nn.Conv2d(width, dim, 1).requires_grad_(False)
            self.gain = nn.Linear(2 * width, 1).requires_grad_(False)
            parts: tuple[nn.Conv2d | nn.Linear, ...] = (self.linear_low, self.gain)
            for layer in parts:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(bias_of(layer))

    @property
    def groups(self) -> list[slice]:
        """The channels of phi that each input has."""
        return side_by_side(self.widths)

    @property
    def low_groups(self) -> list[slice]:
        """The channels of `low_phi` that each input has that needs no tiles."""
        named = zip(self.inputs, self.widths, strict=True)
        return side_by_side([width for name, width in named if name not in OF_TILES])

    @property
    def local(self) -> bool:
        return True

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        sources = self.sources(low, tiles, guidance)

        def rows(start: int, stop: int) -> Tensor:
            phi = torch.cat([source(start, stop) for source in sources], dim=1)
            return resized_rows(low, self.factor, start, stop) + self.linear(phi)

        if self.strip_rows is None:
            return rows(0, self.factor * low.shape[-2])
        return in_strips(rows, low, self.factor, self.strip_rows)

    @property
    def low_channels(self) -> Tensor:
        """Positions in phi of the inputs that need no tiles."""
        groups = zip(self.inputs, self.groups, strict=True)
        return torch.cat([torch.arange(g.start, g.stop) for name, g in groups if name not in OF_TILES])

    def low_phi(self, low: Tensor, guidance: Tensor) -> Tensor:
        """The part of phi that needs no tiles."""
        sources = [self._source(name, low, None, guidance) for name in self.inputs if name not in OF_TILES]
        return torch.cat([source(0, self.factor * low.shape[-2]) for source in sources], dim=1)

    def upsample_low(self, low: Tensor, guidance: Tensor) -> Tensor:
        """As `upsample`, of the low-resolution pass alone."""
        return resized_rows(low, self.factor, 0, self.factor * low.shape[-2]) + self.linear_low(
            self.low_phi(low, guidance)
        )

    def upsample_partly(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor, chosen: Tensor) -> Tensor:
        fine, token = self.factor // self.n, (low.shape[-2], low.shape[-1])
        there = chosen[:, None].repeat_interleave(token[0], dim=2).repeat_interleave(token[1], dim=3)
        # What is missing is filled with the whole image's map, so that neighbours see something like it.
        filled = torch.where(there, tiles[self.n], resized_rows(low, self.n, 0, self.n * token[0]))
        whole = self.upsample(low, {self.n: filled}, guidance)
        cells = there.repeat_interleave(fine, dim=2).repeat_interleave(fine, dim=3)
        return torch.where(cells, whole, self.upsample_low(low, guidance))

    def gain_inputs(self, phi: Tensor) -> Tensor:
        """The part of phi without tiles -> [B, n*n, 2 d]: its mean and deviation over each tile."""
        tiles = tile_images(phi, self.n).flatten(2).unflatten(0, (len(phi), -1))
        return torch.cat([tiles.mean(dim=-1), tiles.std(dim=-1, correction=0)], dim=-1)

    def gains(self, low: Tensor, guidance: Tensor) -> Tensor:
        found = self.gain(self.gain_inputs(self.low_phi(low, guidance)))[..., 0]
        return found.unflatten(1, (self.n, self.n))

    def phi(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        """[B, D, k*g, k*g'], all inputs side by side."""
        sources = self.sources(low, tiles, guidance)
        return torch.cat([source(0, self.factor * low.shape[-2]) for source in sources], dim=1)

    def sources(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> list[Rows]:
        """Each input by rows of the fine grid."""
        return [self._source(name, low, tiles.get(self.n), guidance) for name in self.inputs]

    def _source(self, name: str, low: Tensor, tiles: Tensor | None, guidance: Tensor) -> Rows:
        size = (low.shape[-2] * self.factor, low.shape[-1] * self.factor)
        if name == "image" and self.stem is not None:
            return self.stem.rows(guidance, size)
        if name == "jbu" and self.jbu is not None:
            jbu, pyramid = self.jbu, self.jbu.pyramid(guidance, (low.shape[-2], low.shape[-1]))
            return lambda start, stop: jbu.rows(low, pyramid, start, stop)
        if name == "low":
            return lambda start, stop: resized_rows(low, self.factor, start, stop)
        if name == "low_mean":
            mean = local_mean(low)
            return lambda start, stop: resized_rows(mean, self.factor, start, stop)
        assert tiles is not None
        fine = self.factor // self.n
        if name == "s2":
            return lambda start, stop: resized_rows(low, self.factor, start, stop).lerp(
                resized_rows(tiles, fine, start, stop), 0.5
            )
        found = tiles if name == "tiles" else local_mean(tiles, self.n)
        return lambda start, stop: resized_rows(found, fine, start, stop)
