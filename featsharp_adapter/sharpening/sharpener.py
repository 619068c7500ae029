"""Sharpened features of an image of any size and shape, at any grid, within a memory budget.

A fixed-size teacher sees squares; photographs are not. Three ways to bring them together (`fit`):
  squash   the whole image at the teacher's own size, distorted if need be: one context, k times the teacher's grid;
  resize   for teachers that take any size: the image's own shape, a k-th of its size, and tiles at full size;
  windows  for those that do not: overlapping windows of k times the teacher's size over the undistorted image, each
           with its own context, blended.

Shapes: H x W the image, R x R' the teacher's size, g x g' its grid, k the adapter's factor.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.budget import check_passes, choose_tiles, encode_tiles
from featsharp_adapter.sharpening.max_memory import Budget
from featsharp_adapter.sharpening.tile_maps import tile_map
from teachers.contracts import Backbone, BackboneSpec, Features, resize_images

Fit = Literal["auto", "squash", "resize", "windows"]
FITS = ("auto", "squash", "resize", "windows")
#: Rows of tokens brought back to the teacher's units at a time.
ROWS = 8
#: Channels resampled at a time, for the same reason.
CHANNELS = 64
#: So far beyond [0, 1] resizing may take an image; more is 0 to 255, or normalised already.
BEYOND = 0.5
#: Share of a window that it has in common with its neighbour at least.
WINDOW_OVERLAP = 0.25


@dataclass(frozen=True)
class SharpenSettings:
    """How images are sharpened.

    fit: see above; auto is resize where the teacher can, squash where that distorts by less than 5 %, else windows.
    grid: (rows, columns) wanted, at most what `fit` gives; None: all of it. overlap: share of a tile that it has in
    common with its neighbour, blended; 0 as published. max_memory: bytes for the tensors of a call beyond the images
    and the weights, results included; None: no limit. chunk: tiles in the teacher at a time, at most.
    passes: teacher passes an image at most, on average over a batch (below 1: a share of all), spent on the tiles that
    are predicted to change most; None: all tiles. With `windows` it counts in every window.
    """

    fit: Fit = "auto"
    grid: tuple[int, int] | None = None
    overlap: float = 0.0
    max_memory: int | None = None
    chunk: int = 64
    passes: float | None = None

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UserError(f'fit is one of {", ".join(FITS)}, got "{self.fit}"')
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap is a share of a tile from 0 to less than 1, got {self.overlap}")
        if self.chunk < 1 or (self.max_memory is not None and self.max_memory < 1):
            raise UserError("chunk is a number of tiles and max_memory one of bytes, both at least 1")
        if self.passes is not None and (self.overlap or self.max_memory is not None):
            raise UserError("passes goes with neither overlap nor max_memory: leave them out")


class Sharpener:
    """images [B, 3, H, W] in [0, 1] -> the teacher's summary [B, S] of the whole, and sharp features [B, C, h, w].

    Gradients flow to the adapter and to the images where nobody forbids it. UserError for images that cannot be
    sharpened, features that are no numbers, and a grid that the adapter does not reach.
    """

    def __init__(self, backbone: Backbone, adapter: Adapter, settings: SharpenSettings) -> None:
        adapter.meta.check_teacher(f"{adapter.meta.upsampler} {adapter.factor}x", backbone.spec)
        if settings.fit == "resize" and not backbone.spec.resizable:
            raise UserError(f"{backbone.spec.name} takes one size only; use fit squash or windows")
        if settings.passes is not None:
            check_passes(adapter.upsampler, settings.passes)
        self.backbone, self.adapter, self.settings = backbone, adapter, settings

    def __call__(self, images: Tensor) -> Features:
        """[B, 3, H, W]; with a memory budget one image after the other."""
        check_images(self.backbone.spec, images)
        if self.settings.max_memory is None:
            return self._sharpen(images, None)
        parts = [self._sharpen(image, Budget(self.settings.max_memory)) for image in images.split(1)]
        summaries = [part.summary for part in parts if part.summary is not None]
        spatial = [part.spatial for part in parts]
        return Features(_joined(summaries) if summaries else None, _joined(spatial))

    def low_res(self, images: Tensor) -> Tensor:
        """The map that sharpening starts from: the teacher's own of the whole image, denoised, [B, C, g, g'].

        At the teacher's size, or, where `fit` is resize, at a k-th of the image's.
        """
        check_images(self.backbone.spec, images)
        fit = choose_fit(self.settings.fit, self.backbone.spec, images)
        resized = fit == "resize"
        size = (
            resized_size(self.backbone.spec, images, self.adapter.factor) if resized else self.backbone.spec.native_size
        )
        return self.adapter.denoise(self._encode(self._resized(images, size)).spatial)

    def _sharpen(self, images: Tensor, budget: Budget | None) -> Features:
        fit = choose_fit(self.settings.fit, self.backbone.spec, images)
        if fit == "windows":
            features = self._windows(images, budget)
        else:
            native = self.backbone.spec.native_size
            size = native if fit == "squash" else resized_size(self.backbone.spec, images, self.adapter.factor)
            features = self._whole(images, size, budget, held=0)
        if self.settings.grid is None:
            return features
        return Features(features.summary, resample(features.spatial, self.settings.grid))

    def _whole(self, images: Tensor, size: tuple[int, int], budget: Budget | None, held: int) -> Features:
        """One context: the image at `size`, and its tiles of that size; `held` bytes are taken by others."""
        adapter, factor = self.adapter, self.adapter.factor
        large = self._resized(images, (factor * size[0], factor * size[1]))
        small = self._resized(images, size)
        summary, spatial = self._encode(small)
        low = adapter.denoise_normalised(spatial)
        del spatial
        grid = (low.shape[-2], low.shape[-1])
        held += low.nbytes + small.nbytes + (large.nbytes if large is not images else 0)
        tiles: dict[int, Tensor] = {}
        if self.settings.passes is not None:
            chosen = choose_tiles(adapter.upsampler, low, large, self.settings.passes)
            if chosen is not None:
                n = chosen.shape[-1]
                scaled = large if n == factor else self._resized(images, (n * size[0], n * size[1]))
                tiles[n] = encode_tiles(self._in_chunks, scaled, chosen, low)
                return Features(summary, self._raw(adapter.upsampler(low, tiles, large, chosen)))
        for n in adapter.tile_grids:
            scaled = large if n == factor else self._resized(images, (n * size[0], n * size[1]))
            held += low.nbytes * n * n
            chunk = self._chunk(small[:1], budget, held)
            tiles[n] = tile_map(self._denoised, scaled, grid, n, overlap=self.settings.overlap, chunk=chunk)
        sharp = self._upsample(low, tiles, large, budget, held)
        del tiles, low  # before denormalising needs memory of its own
        return Features(summary, self._raw(sharp))

    def _windows(self, images: Tensor, budget: Budget | None) -> Features:
        """Many contexts: windows over the image at its own scale, blended by how far inside them a place is."""
        spec, factor = self.backbone.spec, self.adapter.factor
        window = (factor * spec.native_size[0], factor * spec.native_size[1])
        whole = resize_images(images, window_canvas(spec, images, factor))
        cells = (factor * spec.native_grid[0], factor * spec.native_grid[1])
        pixels = (window[0] / cells[0], window[1] / cells[1])
        grid = (round(whole.shape[-2] / pixels[0]), round(whole.shape[-1] / pixels[1]))
        out = images.new_zeros(len(images), spec.spatial_dim, *grid)
        total = images.new_zeros(grid)
        weight = _inside(cells, images)
        held = whole.nbytes + out.nbytes + total.nbytes + weight.nbytes
        for row in window_starts(grid[0], cells[0]):
            for column in window_starts(grid[1], cells[1]):
                top, left = round(row * pixels[0]), round(column * pixels[1])
                part = whole[:, :, top : top + window[0], left : left + window[1]]
                here = (slice(row, row + cells[0]), slice(column, column + cells[1]))
                out[:, :, *here] += self._whole(part, spec.native_size, budget, held).spatial * weight
                total[here] += weight
        summary = self._encode(self._resized(images, spec.native_size)).summary
        return Features(summary, out.div_(total))

    def _resized(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        return resize_images(images, size, antialias=not self.adapter.meta.published_views)

    def _encode(self, images: Tensor) -> Features:
        features = self.backbone(images)
        if not all_finite(features.spatial):
            raise UserError(
                f"{self.backbone.spec.name} gives features that are not finite (NaN or infinity); "
                "check the image, the weights and the precision"
            )
        return features

    def _denoised(self, pixels: Tensor) -> Tensor:
        """Tiles [N, 3, R, R'] -> denoised features in normalised space [N, C, g, g']."""
        return self.adapter.denoise_normalised(self._encode(pixels).spatial)

    def _in_chunks(self, pixels: Tensor) -> Tensor:
        return torch.cat([self._denoised(part) for part in pixels.split(self.settings.chunk)])

    def _chunk(self, tile: Tensor, budget: Budget | None, held: int) -> int:
        if budget is None:
            return self.settings.chunk
        return min(self.settings.chunk, budget.tiles(self._denoised, tile, held))

    def _upsample(
        self, low: Tensor, tiles: dict[int, Tensor], large: Tensor, budget: Budget | None, held: int
    ) -> Tensor:
        upsampler = self.adapter.upsampler
        if budget is None:
            return upsampler(low, tiles, large)
        before = upsampler.strip_rows
        upsampler.strip_rows = budget.strip_rows(upsampler, low, tiles, large, held)
        try:
            return upsampler(low, tiles, large)
        finally:
            upsampler.strip_rows = before

    def _raw(self, sharp: Tensor) -> Tensor:
        """Back to the teacher's units; in place where nobody wants gradients, so that there is one map, not two."""
        normaliser = self.adapter.normaliser
        if sharp.requires_grad:
            return normaliser.denormalise(sharp)
        for rows in sharp.split(ROWS, dim=2):
            rows.copy_(normaliser.denormalise(rows))
        return sharp


def check_images(spec: BackboneSpec, images: Tensor) -> None:
    """UserError unless [B, 3, H, W] are numbers in [0, 1], of one image or more, at least one patch large."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images) or not images.is_floating_point():
        said = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        raise UserError(f"images are floating-point numbers [B, 3, H, W] in [0, 1], got {said}")
    height, width = images.shape[-2:]
    if min(height, width) < spec.patch_size:
        raise UserError(
            f"an image of {height}x{width} px is smaller than one patch of {spec.name} ({spec.patch_size} px): "
            "there is nothing to sharpen"
        )
    if not all_finite(images):
        raise UserError("the image holds values that are not finite (NaN or infinity)")
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if low < -BEYOND or high > 1 + BEYOND:
        raise UserError(
            f"images are in [0, 1] and the backbone normalises them itself; these go from {low:.3g} to {high:.3g}"
        )


def all_finite(values: Tensor) -> bool:
    """No NaN, no infinity. A sum shows them and needs no memory; only where it is none itself, every value is asked."""
    return bool(torch.isfinite(values.detach().sum())) or bool(torch.isfinite(values).all())


def choose_fit(fit: Fit, spec: BackboneSpec, images: Tensor) -> Fit:
    """What `auto` means for these images."""
    if fit != "auto":
        return fit
    if spec.resizable:
        return "resize"
    aspect = (images.shape[-2] / images.shape[-1]) / (spec.native_size[0] / spec.native_size[1])
    return "squash" if 1 / 1.05 < aspect < 1.05 else "windows"


def resized_size(spec: BackboneSpec, images: Tensor, factor: int) -> tuple[int, int]:
    """A factor-th of the image in whole patches: what a teacher of any size sees of it at low resolution."""
    patch = spec.patch_size
    height, width = (max(2 * patch, round(side / factor / patch) * patch) for side in images.shape[-2:])
    return height, width


def window_canvas(spec: BackboneSpec, images: Tensor, factor: int) -> tuple[int, int]:
    """The image's size in whole sharpened cells, enlarged in proportion if a window would not fit into it."""
    window = (factor * spec.native_size[0], factor * spec.native_size[1])
    scale = max(window[0] / images.shape[-2], window[1] / images.shape[-1], 1.0)
    cells = (factor * spec.native_grid[0], factor * spec.native_grid[1])
    counts = (
        max(many, round(side * scale * many / length))
        for side, many, length in zip(images.shape[-2:], cells, window, strict=True)
    )
    height, width = (round(count * length / many) for count, many, length in zip(counts, cells, window, strict=True))
    return height, width


def window_starts(size: int, window: int) -> list[int]:
    """First cells of the windows along a side of `size` cells."""
    steps = -(-(size - window) // max(1, round(window * (1 - WINDOW_OVERLAP))))
    return [round(step * (size - window) / max(steps, 1)) for step in range(steps + 1)]


def resample(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, C, h, w] -> [B, C, *grid], antialiased, in one step; UserError when `grid` is finer than the features."""
    here = (features.shape[-2], features.shape[-1])
    if grid == here:
        return features
    if grid[0] > here[0] or grid[1] > here[1] or min(grid) < 1:
        raise UserError(
            f"a grid of {grid[0]}x{grid[1]} was asked for and this adapter sharpens to {here[0]}x{here[1]}; "
            "ask for less, or use an adapter of a larger factor"
        )
    if features.requires_grad:
        return _antialiased(features, grid)
    out = features.new_empty(*features.shape[:2], *grid)
    for mine, theirs in zip(out.split(CHANNELS, dim=1), features.split(CHANNELS, dim=1), strict=True):
        mine.copy_(_antialiased(theirs, grid))
    return out


def _antialiased(features: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.interpolate(features, size=grid, mode="bilinear", align_corners=False, antialias=True)


def _inside(cells: tuple[int, int], like: Tensor) -> Tensor:
    sides = [torch.arange(size, device=like.device, dtype=torch.float32) for size in cells]
    down, across = (torch.minimum(side + 1, len(side) - side) for side in sides)
    return down[:, None] * across


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
