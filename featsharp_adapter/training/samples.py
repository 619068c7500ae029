"""Training data: images with everything the teacher says about them, made once and kept, or made as training goes.

A sample is a pure function of (seed, position in the stream): its crop, its views, and therefore its features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from common.keyed_random import mix
from common.progress import ProgressBar
from featsharp_adapter.model.multiview import ViewSettings, random_homographies, view_images
from featsharp_adapter.model.views import Views, teacher_views
from imagery.stream import Batch, ImageStream, to_float
from teachers.contracts import Backbone, BackboneSpec

_VIEWS, _ORDER = 0x51E3, 0x0DE2  # keep these random numbers apart


@dataclass(frozen=True)
class Sample:
    """A batch of b images: pixels uint8 [b, 3, k*R, k*R'], their views, and n random homographies of each.

    homographies: [b, n, 3, 3], view -> image. targets: [b, n, C, g, g'], the features of the views, raw units.
    positions: int64 [b], of the images in their stream.
    """

    pixels: Tensor
    views: Views
    homographies: Tensor
    targets: Tensor
    positions: Tensor

    def guidance(self) -> Tensor:
        """[b, 3, k*R, k*R'] in [0, 1]."""
        return to_float(self.pixels)

    def split(self, size: int) -> list["Sample"]:
        """In pieces of at most `size` images."""
        index = torch.arange(len(self.pixels), device=self.pixels.device)
        return [self.take(part) for part in index.split(size)]

    def take(self, index: Tensor) -> "Sample":
        """The images at these positions [n]."""
        return _unflatten({name: tensor[index] for name, tensor in _flatten(self).items()})


@dataclass(frozen=True)
class SampleMaker:
    """From a batch of the stream to a sample; the only place where training meets the teacher."""

    backbone: Backbone
    grids: tuple[int, ...]
    settings: ViewSettings
    count: int  #: random views an image
    seed: int
    device: torch.device
    antialias: bool = True  #: of the images that the teacher is given

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Sample:
        images = to_float(batch.images.to(self.device))
        height, width = self.backbone.spec.native_size
        homographies = torch.stack([self.homographies(int(p), width / height) for p in batch.positions])
        flat = homographies.flatten(0, 1).to(self.device)
        jittered = view_images(
            images.repeat_interleave(self.count, dim=0), flat, (height, width), antialias=self.antialias
        )
        targets = self.backbone(jittered).spatial.unflatten(0, (len(images), self.count))
        views = teacher_views(self.backbone, images, self.grids, antialias=self.antialias)
        return Sample(
            batch.images.to(self.device), views, flat.unflatten(0, (len(images), self.count)), targets, batch.positions
        )

    def homographies(self, position: int, aspect: float) -> Tensor:
        """[n, 3, 3] of the image at this position of the stream."""
        generator = torch.Generator().manual_seed(mix(self.seed, position, _VIEWS) >> 1)
        return random_homographies(self.count, self.settings, generator, aspect=aspect)


class SampleStore:
    """The samples of the first `size` images of a stream, in memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._filled = 0
        self._tensors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.size

    def add(self, sample: Sample) -> None:
        """Append, dropping what exceeds the size."""
        fields = _flatten(sample)
        if not self._tensors:
            self._tensors = {name: t.new_empty((self.size, *t.shape[1:])) for name, t in fields.items()}
        take = min(len(sample.pixels), self.size - self._filled)
        for name, tensor in fields.items():
            self._tensors[name][self._filled : self._filled + take] = tensor[:take]
        self._filled += take

    def gather(self, index: Tensor) -> Sample:
        """The samples at these positions [b]."""
        return _unflatten({name: tensor[index] for name, tensor in self._tensors.items()})

    def in_order(self, batch_size: int, start: int = 0) -> Iterator[Sample]:
        """All samples once, in order; `start`: without the first so many, whole batches of them."""
        for index in torch.arange(start, self.size).split(batch_size) if start < self.size else ():
            yield self.gather(index)


class StreamedSamples:
    """The same samples as a store would hold, made anew each time they are asked for; where a store does not fit."""

    def __init__(self, size: int, open_stream: Callable[[int], ImageStream], maker: "SampleMaker") -> None:
        self.size, self.open_stream, self.maker = size, open_stream, maker

    def in_order(self, batch_size: int, start: int = 0) -> Iterator[Sample]:
        """As a store's; what is left out is read, and not shown to the teacher."""
        stream = self.open_stream(batch_size)
        try:
            for first in range(0, self.size, batch_size):
                batch = next(stream)
                if first >= start:
                    yield self.maker(batch).take(torch.arange(min(batch_size, self.size - first)))
        finally:  # also when nobody asks for the rest
            stream.close()


def fill_store(size: int, stream: ImageStream, maker: SampleMaker, progress: ProgressBar) -> SampleStore:
    """Encode the first `size` images of `stream`."""
    store = SampleStore(size)
    for batch in stream:
        store.add(maker(batch))
        progress.update(min(len(batch.images), size - progress.done))
        if progress.done >= size:
            return store
    raise AssertionError("a stream never ends")


def sample_bytes(spec: BackboneSpec, factor: int, grids: tuple[int, ...], views: int) -> int:
    """Memory of one image in a store."""
    tokens = spec.native_grid[0] * spec.native_grid[1] * (1 + views + sum(n * n for n in grids))
    return 4 * spec.spatial_dim * tokens + 3 * factor**2 * spec.native_size[0] * spec.native_size[1] + 36 * views


class Samples(Protocol):
    """Where a trainer gets its batches; the state is enough to go on with the batch after the last one."""

    def next(self) -> Sample: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class StoredSamples:
    """Batches from a store, reshuffled every epoch; the teacher is not needed any more."""

    def __init__(self, store: SampleStore, batch_size: int, seed: int) -> None:
        self.store, self.batch_size, self.seed = store, min(batch_size, len(store)), seed
        self.step = 0

    def next(self) -> Sample:
        """The next batch; the order is a function of (seed, step)."""
        epoch, within = divmod(self.step, len(self.store) // self.batch_size)
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, _ORDER) >> 1)
        order = torch.randperm(len(self.store), generator=generator)
        self.step += 1
        return self.store.gather(order[within * self.batch_size : (within + 1) * self.batch_size])

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


class LiveSamples:
    """Batches made as they are asked for: every image is new, and the teacher works at every step."""

    def __init__(self, stream: ImageStream, maker: SampleMaker) -> None:
        self.stream, self.maker = stream, maker

    def next(self) -> Sample:
        """The next batch of the stream."""
        return self.maker(next(self.stream))

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state["stream"])


def _flatten(sample: Sample) -> dict[str, Tensor]:
    """By name, every tensor with the images along its first axis; training needs no summary."""
    tiles = {f"tiles.{n}": tiles for n, tiles in sample.views.tiles.items()}
    return {
        "pixels": sample.pixels,
        "low": sample.views.low,
        "homographies": sample.homographies,
        "targets": sample.targets,
        "positions": sample.positions,
        **tiles,
    }


def _unflatten(fields: dict[str, Tensor]) -> Sample:
    tiles = {int(name.removeprefix("tiles.")): t for name, t in fields.items() if name.startswith("tiles.")}
    views = Views(None, fields["low"], tiles)
    return Sample(fields["pixels"], views, fields["homographies"], fields["targets"], fields["positions"])
