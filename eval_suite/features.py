"""One pass of a backbone over a set of images, shared by every probe that asks for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from common.errors import UserError
from common.progress import ProgressBar
from common.store import Store
from eval_suite import processes
from eval_suite.predictions import Predictions
from eval_suite.provenance import program
from eval_suite.read_ahead import ReadAhead
from eval_suite.readers.contracts import ImageSource
from teachers.contracts import Backbone, Features, capability, fit_images, identity_of

T = TypeVar("T")
MAPS_KEPT = 8 << 30  #: bytes of a set's maps up to which they are kept for every probe
#: images [b, 3, H, W] as the backbone takes them and their row numbers -> [b, ...] by name
Forward = Callable[[Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class FeatureTable:
    """Frozen features of N images: `summary` [N, S] or None, `spatial` [N, C, h, w], float32 on the CPU."""

    summary: Tensor | None
    spatial: Tensor

    def pick(self, rows: Tensor) -> "FeatureTable":
        """The features of some rows, int64 [b]."""
        return FeatureTable(None if self.summary is None else self.summary[rows], self.spatial[rows])


class ProbedBackbone:
    """A frozen backbone and what it said of each set of images; probes read from here and never run it twice."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        batch_size: int = 50,
        device: str | torch.device = "cpu",
        progress: bool = False,
        cache: Path | None = None,
        predictions: Predictions | None = None,
    ) -> None:
        """With `cache`, features are kept in that folder and what is there is not extracted again.

        `predictions` is where probes put what they predicted, if it is to be kept.
        """
        self.predictions = predictions
        self.backbone = backbone.eval().to(device)
        self.spec = backbone.spec
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.progress = progress
        self.cache = cache
        self._store = None if cache is None else Store(cache / "features", self.identity())
        self._made: dict[str, Any] = {}
        self._tables: dict[str, FeatureTable] = {}
        self._layers: dict[str, list[Tensor]] = {}
        self._vectors: dict[str, FeatureTable] = {}
        self._shared: set[tuple[str, str]] = set()

    def identity(self) -> dict[str, Any]:
        """All that decides what this backbone answers here, as plain data: the key of what is kept of it."""
        where = {"torch": torch.__version__, "device": self.device.type, "program": program()}
        return identity_of(self.backbone) | where

    def features(self, images: ImageSource) -> FeatureTable:
        """Summary and last spatial map of every image of the source; extracted once."""
        if images.key not in self._tables:
            self._tables[images.key] = self._extract(images)
        return self._tables[images.key]

    def layers(self, images: ImageSource) -> list[Tensor]:
        """Four maps [N, C, h, w] from blocks L/4-1, L/2-1, 3L/4-1, L-1 (Probe3D); extracted once.

        UserError where the backbone cannot show its inner blocks.
        """
        if images.key not in self._layers:
            self._layers[images.key] = self._extract_layers(images)
        return self._layers[images.key]

    def vectors(self, images: ImageSource) -> FeatureTable:
        """What probes of whole images read: summaries and maps; of a large set the maps' means [N, C, 1, 1].

        Other probes may ask for a small set's maps, so it is extracted once with them; ImageNet's take terabytes.
        """
        if images.key in self._tables or self._map_bytes(images) <= MAPS_KEPT:
            return self.features(images)
        if images.key not in self._vectors:
            self._vectors[images.key] = self._extract(images, pooled=True)
        return self._vectors[images.key]

    def _map_bytes(self, images: ImageSource) -> int:
        """About how much memory the maps of a set take."""
        if not len(images):
            return 0
        shown = fit_images(images.read(torch.tensor([0])).float(), self.spec)
        cells = (shown.shape[-2] // self.spec.patch_size) * (shown.shape[-1] // self.spec.patch_size)
        return 4 * len(images) * cells * self.spec.spatial_dim

    def remember(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gave when this key was first asked for: what several probes share, e.g. a model trained once."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def extract_together(self, images: ImageSource, what: Literal["features", "layers", "vectors"]) -> None:
        """Extract with all processes what the method of that name will answer from; only the first one then has it."""
        if what == "vectors" and ((images.key, "features") in self._shared or self._map_bytes(images) <= MAPS_KEPT):
            what = "features"
        if (images.key, what) in self._shared or processes.world() == 1:
            return
        self._shared.add((images.key, what))
        if what == "layers":
            self._layers[images.key] = self._extract_layers(images, together=True)
        elif what == "vectors":
            self._vectors[images.key] = self._extract(images, together=True, pooled=True)
        else:
            self._tables[images.key] = self._extract(images, together=True)
        if processes.rank():
            self.forget(images)

    def forget(self, images: ImageSource) -> None:
        """Free the features of a set that no later probe needs."""
        self._tables.pop(images.key, None)
        self._layers.pop(images.key, None)
        self._vectors.pop(images.key, None)

    @torch.no_grad()
    def _extract(self, images: ImageSource, together: bool = False, pooled: bool = False) -> FeatureTable:
        if not len(images):
            raise UserError(f"{images.key} holds no images")

        def forward(batch: Tensor, rows: Tensor) -> dict[str, Tensor]:
            features = self.backbone(batch)
            self._check(images, rows, features)
            spatial = features.spatial.float()
            found = {"spatial": (spatial.mean((2, 3), keepdim=True) if pooled else spatial).cpu()}
            return found if features.summary is None else found | {"summary": features.summary.float().cpu()}

        found = self._passes(images, "vectors" if pooled else "features", forward, together)
        if processes.rank() and together:
            return FeatureTable(None, torch.empty(0))
        return FeatureTable(found.get("summary"), found["spatial"])

    @torch.no_grad()
    def _extract_layers(self, images: ImageSource, together: bool = False) -> list[Tensor]:
        intermediate, blocks = quarter_layers(self.backbone)

        def forward(batch: Tensor, rows: Tensor) -> dict[str, Tensor]:
            layers = intermediate(batch, blocks)
            for layer in layers:
                self._check(images, rows, Features(None, layer))
            return {f"layer{number}": layer.float().cpu() for number, layer in enumerate(layers)}

        found = self._passes(images, f"layers-{'-'.join(map(str, blocks))}", forward, together)
        return [] if processes.rank() and together else [found[f"layer{number}"] for number in range(len(blocks))]

    def _passes(self, images: ImageSource, what: str, forward: Forward, together: bool) -> dict[str, Tensor]:
        """What `forward` gives of every image, [N, ...] by name; out of the cache where it is there.

        together: each process takes every n-th batch, and all of them come out of the first one; the others get none.
        """
        rows = torch.arange(len(images)).split(self.batch_size)
        store, set_key = self._store, {"images": images.key, "what": what, "batch": self.batch_size}
        keys = [set_key | {"number": number} for number in range(len(rows))]
        turns = slice(processes.rank(), None, processes.world()) if together else slice(None)
        own = zip(rows[turns], keys[turns], strict=True)
        found: dict[str, Tensor] = {}
        with ReadAhead(images, [some for some, key in own if store is None or not store.path(key).is_file()]) as ahead:

            def make(number: int, some: Tensor) -> Mapping[str, Tensor]:
                forwards = partial(self._forward, forward, ahead, some)
                return forwards() if store is None else store.get(keys[number], forwards)

            items = list(enumerate(rows))
            made = processes.in_turns(make, items) if together else (make(*item) for item in items)
            bar = ProgressBar(len(rows), f"features {images.key}", "batch", shown=self.progress, leave=False)
            for some, values in zip(bar.over(rows), made, strict=False):  # other processes get nothing
                for name, value in values.items():
                    if name not in found:
                        found[name] = value.new_empty(len(images), *value.shape[1:])
                    found[name][some[0] : some[-1] + 1] = value
        return found

    def _forward(self, forward: Forward, ahead: ReadAhead, rows: Tensor) -> dict[str, Tensor]:
        batch = ahead.read(rows).to(self.device).float().div_(255)
        return forward(fit_images(batch, self.spec), rows)

    def _check(self, images: ImageSource, rows: Tensor, features: Features) -> None:
        """NaN in a feature would make every probe quietly meaningless."""
        for part in features:
            if part is None or part.float().sum().isfinite():  # a sum is finite only if all of it is
                continue
            finite = part.flatten(1).isfinite().all(1)
            if not finite.all():  # else the sum alone went beyond what floats hold
                row = int(rows[int((~finite).nonzero()[0])])
                raise UserError(
                    f"{self.spec.name} gives NaN or infinite features for {images.name_of(row)}; "
                    "check its weights, or run it in float32"
                )


def quarter_layers(backbone: Backbone) -> tuple[Callable[[Tensor, list[int]], list[Tensor]], list[int]]:
    """What shows a backbone's inner maps, and the blocks L/4-1, L/2-1, 3L/4-1, L-1 (Probe3D).

    UserError where the backbone cannot show its inner blocks, and when they differ in width, as a convolutional one's.
    """
    intermediate = capability(backbone, "intermediate")
    if intermediate is None:
        raise UserError(f"{backbone.spec.name} has no inner layers to probe; set `layers: last` or take another probe")
    total, width = int(backbone.num_blocks), backbone.spec.spatial_dim

    def layers(images: Tensor, blocks: list[int]) -> list[Tensor]:
        found: list[Tensor] = intermediate(images, blocks)
        if any(layer.shape[1] != width for layer in found):
            widths = ", ".join(str(layer.shape[1]) for layer in found)
            raise UserError(
                f"{backbone.spec.name} has inner layers of {widths} channels; "
                f"this probe is for a ViT, whose layers are all as wide as its map ({width}); set `layers: last` where "
                "the probe has it, or take another probe"
            )
        return found

    return layers, [max(0, total * quarter // 4 - 1) for quarter in (1, 2, 3, 4)]
