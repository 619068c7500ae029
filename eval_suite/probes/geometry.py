"""Linear probes of shape: depth and surface normals of every pixel, in closed form."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from eval_suite.features import ProbedBackbone
from eval_suite.maps import resize_map, unit
from eval_suite.metrics.depth import Depth
from eval_suite.metrics.normals import Normals
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.ridge import RidgeHead, fit_ridge
from eval_suite.readers.contracts import TEST, TRAIN, DenseImages, ImageSource, LabelledData, LabelMaps
from eval_suite.results import Result


class ShapeProbe(ProbeNode):
    """What depth and normals probes share: which maps they read and at what size they are fitted."""

    group: str = "3d"
    layers: Literal["last", "four"] = "last"  #: the last map, or Probe3D's four concatenated
    fit_size: int = Field(default=28, gt=0)  #: cells per side the normal equations are summed over

    def maps(self, backbone: ProbedBackbone, images: ImageSource) -> Tensor:
        """[N, C, h, w]: one layer, or four resized to one grid and concatenated."""
        if self.layers == "last":
            return backbone.features(images).spatial
        layers = backbone.layers(images)
        grid = (layers[-1].shape[-2], layers[-1].shape[-1])
        return torch.cat([resize_map(layer, grid) for layer in layers], 1)

    def fit(self, backbone: ProbedBackbone, learn: DenseImages, targets: LabelMaps, masks: LabelMaps) -> RidgeHead:
        return fit_ridge(self.maps(backbone, learn.images)[learn.rows], targets, masks, (self.fit_size, self.fit_size))

    def predictions(
        self, backbone: ProbedBackbone, head: RidgeHead, judge: DenseImages, label: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (prediction [b, T, H, W], label) at the labels' own resolution."""
        spatial, labels = self.maps(backbone, judge.images)[judge.rows], judge.labels(label)
        for rows in torch.arange(len(spatial)).split(50):
            truth = labels[rows].float()
            yield head.predict(spatial[rows], (truth.shape[-2], truth.shape[-1])), truth


class DepthProbe(ShapeProbe):
    """Ridge regression of log depth; error in metres pooled over the set, and the share within a factor 1.25."""

    probe: Literal["depth"]
    metrics: tuple[Literal["rmse", "d1"], ...] = Field(default=("rmse",), min_length=1)  #: which numbers are reported
    farthest: float = Field(default=80.0, gt=0)  #: metres; what lies behind does not count

    def needs(self) -> list[Need]:
        return [Need("dense", split, ("depth",)) for split in (TRAIN, TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        learn, judge = data.dense(TRAIN), data.dense(TEST)
        depth = learn.labels("depth")
        head = self.fit(backbone, learn, LogDepth(depth), ValidDepth(depth))
        metric, kept = Depth(pool="pixel", max_depth=self.farthest), []
        for predicted, truth in self.predictions(backbone, head, judge, "depth"):
            metric.update(predicted[:, 0].exp(), truth)
            if backbone.predictions is not None:
                kept.append(torch.stack([predicted[:, 0].exp(), truth]).half())
        self.keep(
            backbone,
            "depth",
            judge.images,
            judge.rows,
            lambda: dict(zip(("predicted", "labels"), torch.cat(kept, 1), strict=True)),
            farthest=self.farthest,
        )
        scores = metric.scores()
        better = {"rmse": False, "d1": True}
        return [self.result(name, scores[name], seed, higher_is_better=better[name]) for name in self.metrics]


class NormalsProbe(ShapeProbe):
    """Ridge regression of unit normals, made unit again; mean angle in degrees, pooled over the set."""

    probe: Literal["normals"]

    def needs(self) -> list[Need]:
        return [Need("dense", split, ("normals",)) for split in (TRAIN, TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        learn, judge = data.dense(TRAIN), data.dense(TEST)
        normals = learn.labels("normals")
        head = self.fit(backbone, learn, normals, ValidNormals(normals))
        metric, kept = Normals(pool="pixel"), []
        for predicted, truth in self.predictions(backbone, head, judge, "normals"):
            metric.update(predicted, truth)
            if backbone.predictions is not None:
                kept.append(torch.stack([unit(predicted), truth]).half())
        self.keep(
            backbone,
            "normals",
            judge.images,
            judge.rows,
            lambda: dict(zip(("predicted", "labels"), torch.cat(kept, 1), strict=True)),
        )
        return [self.result("mean", metric.scores()["mean"], seed, higher_is_better=False)]


@dataclass(frozen=True)
class LogDepth:
    """log metres [b, 1, h, w]; whatever where depth is invalid."""

    depth: LabelMaps

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.depth[rows].float().clamp(min=1e-3).log()[:, None]


@dataclass(frozen=True)
class ValidDepth:
    """Where there is depth: bool [b, h, w]."""

    depth: LabelMaps

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.depth[rows] > 0


@dataclass(frozen=True)
class ValidNormals:
    """Where there is a normal: bool [b, h, w]."""

    normals: LabelMaps

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.normals[rows].float().square().sum(1) > 0.25
