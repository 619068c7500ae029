"""Loading a teacher so that the same node is always the same teacher, and each teacher only once."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from distill.losses.shift_equivariance import Shifts
from distill.schedule import Grid
from distill.targets.mosaic import cut_back, lay_out
from distill.targets.view_cache import CachedBackbone, small_name, through_cache, tiles_name
from featsharp_adapter.adapter.budget import encode_tiles
from featsharp_adapter.model.views import Views, stitch, teacher_views, tile_images
from teachers.contracts import Features, capability, chunked, resize_images
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone

Made = TypeVar("Made")


class TeacherPool:
    """Frozen teachers; whoever asks for the same one gets the same one, so its weights are in memory once.

    cache: folder for their views (`distill.targets.view_cache`), None for none.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache
        self._loaded: dict[str, FrozenBackbone] = {}

    @property
    def teachers(self) -> list[FrozenBackbone]:
        """All that have been asked for."""
        return list(self._loaded.values())

    def get(
        self, node: str | Mapping[str, Any], dtype: torch.dtype | None, chunk: int, *, compiled: bool = False
    ) -> FrozenBackbone:
        """The teacher of a backbone node, computing in `dtype` (None: as its weights are), `chunk` images at a time."""
        key = json.dumps([node, str(dtype), chunk, compiled], sort_keys=True)
        if key not in self._loaded:
            made = load_backbone(node)
            if drop_text := capability(made, "drop_text"):  # targets are made of images alone
                drop_text()
            self._loaded[key] = (
                FrozenBackbone(made, dtype, chunk, compiled=compiled)
                if self.cache is None
                else CachedBackbone(made, dtype, chunk, self.cache, node, compiled=compiled)
            )
        return self._loaded[key]

    def use(self) -> tuple[int, int]:
        """(images' views that came from the cache, those that were made)."""
        caches = [teacher.cache for teacher in self._loaded.values() if isinstance(teacher, CachedBackbone)]
        return sum(cache.hits for cache in caches), sum(cache.misses for cache in caches)


class BatchViews:
    """What frozen teachers see of one batch [B, 3, H, W]: every view is computed when first asked for, and once.

    The small view and each tile grid are calls of their own, so a view has the same bits whatever else is asked for:
    that is what makes an arm of an ablation equal to the same arm trained alone.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self._made: dict[tuple[object, ...], Any] = {}

    def of(self, viewer: str) -> "BatchViews":
        """What a viewer sees of the batch; without shifts, all see the same."""
        return self

    def once(self, key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """What `make` gave when it was first called for `key`."""
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found

    def views(
        self, teacher: FrozenBackbone, grids: tuple[int, ...], size: Grid | None = None, chunk: int | None = None
    ) -> Views:
        """The small view and the tiles of the grids n: summary [B, S], low [B, C, g, g'], tiles [B, C, n*g, n*g'].

        size: of the small view in pixels, for a teacher that takes other sizes; None: its native one. chunk: images of
        a forward pass; None: as many as the teacher takes.
        """
        small = self.once((teacher, size), lambda: small_view(teacher, self.images, size, chunk))
        return Views(small.summary, small.low, self.tiles(teacher, grids, chunk))

    def tiles(self, teacher: FrozenBackbone, grids: tuple[int, ...], chunk: int | None = None) -> dict[int, Tensor]:
        """The tiles of the grids n: {n: [B, C, n*g, n*g']}."""
        return {n: self.once((teacher, n), partial(tile_view, teacher, self.images, n, chunk)) for n in grids}

    def mosaic(self, teacher: FrozenBackbone, grid: Grid, chunk: int | None = None) -> Views:
        """The small view [B, C, *grid] cut from canvases that hold several images; there is no summary of one image."""

        def make() -> Views:
            canvases = lay_out(self.images, teacher.spec, grid)
            maps = chunked(teacher, canvases, chunk or teacher.chunk).spatial
            return Views(None, cut_back(maps, len(self.images), grid), {})

        return self.once((teacher, "mosaic", grid), make)


class ShiftedBatchViews(BatchViews):
    """What teachers see of canvases [B, 3, H + m, W + m], each in crops of its own (losses/shift_equivariance.py)."""

    def __init__(self, canvases: Tensor, shifts: Shifts, partition: str) -> None:
        super().__init__(canvases)
        self.shifts, self.partition = shifts, partition

    def of(self, viewer: str) -> BatchViews:
        """The viewer's crops [B, 3, H, W]."""
        return self.once((viewer,), lambda: BatchViews(self.shifts.cut(self.images, viewer, self.partition)))


def batch_views(images: Tensor, partition: str, shifts: Shifts | None) -> BatchViews:
    """A batch of a partition for the teachers to look at; with shifts, of canvases."""
    return BatchViews(images) if shifts is None else ShiftedBatchViews(images, shifts, partition)


def small_view(teacher: FrozenBackbone, images: Tensor, size: Grid | None, chunk: int | None = None) -> Views:
    """[B, 3, H, W] -> the teacher's summary and map of the whole images at `size` pixels, None: its native ones."""
    size = size or teacher.spec.native_size

    def look() -> Features:
        if tuple(size) == tuple(teacher.spec.native_size):
            seen = teacher_views(teacher, images, (), chunk=chunk or teacher.chunk)
            return Features(seen.summary, seen.low)
        return chunked(teacher, resize_images(images, size), chunk or teacher.chunk)

    found = through_cache(teacher, small_name(size), images, look)
    return Views(found.summary, found.spatial, {})


def tile_view(teacher: FrozenBackbone, images: Tensor, n: int, chunk: int | None = None) -> Tensor:
    """[B, 3, H, W] -> the teacher's map [B, C, n*g, n*g'] of the image enlarged and cut in n x n tiles."""
    height, width = teacher.spec.native_size

    def look() -> Features:
        tiles = tile_images(resize_images(images, (n * height, n * width)), n)
        return Features(None, stitch(chunked(teacher, tiles, chunk or teacher.chunk).spatial, n))

    return through_cache(teacher, tiles_name(n), images, look).spatial


def some_tiles(
    teacher: FrozenBackbone, images: Tensor, low: Tensor, chosen: Tensor, chunk: int | None = None
) -> Tensor:
    """As `tile_view`, but of the tiles `chosen` [B, n, n] alone; zero elsewhere. They differ by batch: not cached."""
    n, (height, width) = chosen.shape[-1], teacher.spec.native_size
    large = resize_images(images, (n * height, n * width))
    return encode_tiles(lambda part: chunked(teacher, part, chunk or teacher.chunk).spatial, large, chosen, low)
