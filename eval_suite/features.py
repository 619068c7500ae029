"""One pass of a backbone over a set of images, shared by every probe that asks for it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from eval_suite import processes
from eval_suite.feature_cache import FeatureCache
from eval_suite.readers.contracts import ImageSource
from teachers.contracts import Backbone, Features, capability, fit_images
from teachers.errors import UserError


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
    ) -> None:
        """With `cache`, features are kept in that folder and what is there is not extracted again."""
        self.backbone = backbone.eval().to(device)
        self.spec = backbone.spec
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.progress = progress
        self.cache = cache
        self._cache = None if cache is None else FeatureCache(cache, self.spec)
        self._tables: dict[str, FeatureTable] = {}
        self._layers: dict[str, list[Tensor]] = {}
        self._shared: set[tuple[str, bool]] = set()

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

    def extract_together(self, images: ImageSource, layers: bool = False) -> None:
        """Extract with all processes what `features` (or `layers`) will answer from; only the first one then has it."""
        if (images.key, layers) in self._shared or processes.world() == 1:
            return
        self._shared.add((images.key, layers))
        if layers:
            self._layers[images.key] = self._extract_layers(images, together=True)
        else:
            self._tables[images.key] = self._extract(images, together=True)
        if processes.rank():
            self.forget(images)

    def forget(self, images: ImageSource) -> None:
        """Free the features of a set that no later probe needs."""
        self._tables.pop(images.key, None)
        self._layers.pop(images.key, None)

    @torch.no_grad()
    def _extract(self, images: ImageSource, together: bool = False) -> FeatureTable:
        if not len(images):
            raise UserError(f"{images.key} holds no images")

        def forward(rows: Tensor) -> dict[str, Tensor]:
            features = self.backbone(self._read(images, rows))
            self._check(images, rows, features)
            found = {"spatial": features.spatial.float().cpu()}
            return found if features.summary is None else found | {"summary": features.summary.float().cpu()}

        parts = list(self._passes(images, "features", forward, together))
        if processes.rank() and together:
            return FeatureTable(None, torch.empty(0))
        summary = torch.cat([part["summary"] for part in parts]) if "summary" in parts[0] else None
        return FeatureTable(summary, torch.cat([part["spatial"] for part in parts]))

    @torch.no_grad()
    def _extract_layers(self, images: ImageSource, together: bool = False) -> list[Tensor]:
        intermediate, blocks = quarter_layers(self.backbone)

        def forward(rows: Tensor) -> dict[str, Tensor]:
            layers = intermediate(self._read(images, rows), blocks)
            for layer in layers:
                self._check(images, rows, Features(None, layer))
            return {f"layer{number}": layer.float().cpu() for number, layer in enumerate(layers)}

        parts = list(self._passes(images, f"layers-{'-'.join(map(str, blocks))}", forward, together))
        if processes.rank() and together:
            return []
        return [torch.cat([part[f"layer{number}"] for part in parts]) for number in range(len(blocks))]

    def _passes(
        self, images: ImageSource, what: str, forward: Callable[[Tensor], dict[str, Tensor]], together: bool
    ) -> Iterator[Mapping[str, Tensor]]:
        """What `forward` gives for every batch, out of the cache where it is there; `together`: each process takes
        every n-th batch, and all of them come out of the first one, in order."""

        def part(number: int, rows: Tensor) -> Mapping[str, Tensor]:
            if self._cache is None:
                return forward(rows)
            return self._cache.part(images.key, what, self.batch_size, number, partial(forward, rows))

        batches = enumerate(self._batches(images))
        if together:
            yield from processes.in_turns(part, list(batches))
        else:
            yield from (part(number, rows) for number, rows in batches)

    def _batches(self, images: ImageSource) -> Iterable[Tensor]:
        rows = torch.arange(len(images)).split(self.batch_size)
        return tqdm(rows, desc=f"features {images.key}", disable=not self.progress, leave=False)

    def _read(self, images: ImageSource, rows: Tensor) -> Tensor:
        return fit_images(images.read(rows).to(self.device).float() / 255, self.spec)

    def _check(self, images: ImageSource, rows: Tensor, features: Features) -> None:
        """NaN in a feature would make every probe quietly meaningless."""
        for part in features:
            if part is None:
                continue
            finite = part.flatten(1).isfinite().all(1)
            if not finite.all():
                row = int(rows[int((~finite).nonzero()[0])])
                raise UserError(
                    f"{self.spec.name} gives NaN or infinite features for {images.name_of(row)}; "
                    "check its weights, or run it in float32"
                )


def quarter_layers(backbone: Backbone) -> tuple[Callable[[Tensor, list[int]], list[Tensor]], list[int]]:
    """What shows a backbone's inner maps, and the blocks L/4-1, L/2-1, 3L/4-1, L-1 (Probe3D).

    UserError where the backbone cannot show its inner blocks.
    """
    intermediate = capability(backbone, "intermediate")
    if intermediate is None:
        raise UserError(f"{backbone.spec.name} has no inner layers to probe; set `layers: last` or take another probe")
    total = int(backbone.num_blocks)
    return intermediate, [max(0, total * quarter // 4 - 1) for quarter in (1, 2, 3, 4)]
