"""One pass of a backbone over a set of images, shared by every probe that asks for it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

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
        self, backbone: Backbone, *, batch_size: int = 50, device: str | torch.device = "cpu", progress: bool = False
    ) -> None:
        self.backbone = backbone.eval().to(device)
        self.spec = backbone.spec
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.progress = progress
        self._tables: dict[str, FeatureTable] = {}
        self._layers: dict[str, list[Tensor]] = {}

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

    def forget(self, images: ImageSource) -> None:
        """Free the features of a set that no later probe needs."""
        self._tables.pop(images.key, None)
        self._layers.pop(images.key, None)

    @torch.no_grad()
    def _extract(self, images: ImageSource) -> FeatureTable:
        summaries: list[Tensor] = []
        spatials: list[Tensor] = []
        for rows in self._batches(images):
            features = self.backbone(self._read(images, rows))
            self._check(images, rows, features)
            spatials.append(features.spatial.float().cpu())
            if features.summary is not None:
                summaries.append(features.summary.float().cpu())
        summary = torch.cat(summaries) if summaries else None
        return FeatureTable(summary, torch.cat(spatials))

    @torch.no_grad()
    def _extract_layers(self, images: ImageSource) -> list[Tensor]:
        intermediate = capability(self.backbone, "intermediate")
        if intermediate is None:
            raise UserError(f"{self.spec.name} has no inner layers to probe; set `layers: last` for this probe")
        total = int(self.backbone.num_blocks)
        blocks = [max(0, total * quarter // 4 - 1) for quarter in (1, 2, 3, 4)]
        parts: list[list[Tensor]] = [[] for _ in blocks]
        for rows in self._batches(images):
            for part, layer in zip(parts, intermediate(self._read(images, rows), blocks), strict=True):
                self._check(images, rows, Features(None, layer))
                part.append(layer.float().cpu())
        return [torch.cat(part) for part in parts]

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
