"""Probe3D's correspondence between views: nearest neighbours one way, Lowe's ratio, errors in metres and pixels."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from common.errors import UserError
from common.recipes import Distances, Pixels
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.correspondence import views_recall
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.readers.contracts import TEST, ImagePairs, LabelledData, PairGeometry
from eval_suite.results import Result

CHUNK = 1024


class Probe3dViewsProbe(ProbeNode):
    """NAVI: cells 128, 1, 2, 5 cm and 5, 25, 50 px; ScanNet: cells [120, 160], 5, 10, 20 px of the small image.

    Feature maps are resized bicubically to the cells, every cell with depth seeks its nearest neighbour in the other
    view, the `kept` matches with the best ratio of first to second distance count, pooled over pairs. Pixels are those
    of the fitted images divided by `pixel`.
    """

    probe: Literal["probe3d_views"]
    group: str = "3d"
    #: places of a map among which matches are sought: one side, or height and width
    cells: Pixels | tuple[Pixels, Pixels] = 128
    kept: int = Field(default=1000, gt=0)  #: best matches of a pair that count
    centimetres: Distances = (1.0, 2.0, 5.0)  #: distances in space within which a match is right
    pixels: Distances = ()  #: distances in the image within which a match is right
    pixel: float = Field(default=1.0, gt=0)  #: size of the pixels that `pixels` counts, in pixels of the fitted image

    @model_validator(mode="after")
    def _measures_something(self) -> "Probe3dViewsProbe":
        if not self.centimetres and not self.pixels:
            raise ValueError("neither centimetres nor pixels names a distance, so nothing is measured")
        return self

    def needs(self) -> list[Need]:
        return [Need("pairs", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        pairs = data.pairs(TEST)
        if pairs.geometry is None:
            raise UserError(f'data "{self.data}" has no depth of both views; use the probe two_view')
        first, second = backbone.features(pairs.first).spatial, backbone.features(pairs.second).spatial
        errors = [self._errors(pairs, row, first[row], second[row]) for row in range(len(pairs.first))]
        metres, places, valid, *blind = (torch.stack(part) for part in zip(*errors, strict=True))
        kept = {"metres": metres, "places": places / self.pixel, "valid": valid}
        limits = {"centimetres": self.centimetres, "pixels": self.pixels}
        self.keep(backbone, "views", pairs.first, torch.arange(0), lambda: kept, **limits)
        floors = views_recall({"metres": blind[0], "places": blind[1] / self.pixel, "valid": valid}, **limits)
        return [
            self.result(name, score.with_floor(floors[name].value), seed, protocol="probe3d")
            for name, score in views_recall(kept, **limits).items()
        ]

    def _errors(self, pairs: ImagePairs, row: int, first: Tensor, second: Tensor) -> list[Tensor]:
        """Errors in metres and pixels, which of the `kept` there are, and the errors of matches drawn at random: each
        [kept]."""
        cells = (self.cells, self.cells) if isinstance(self.cells, int) else self.cells
        assert pairs.geometry is not None  # checked by run
        geometry = pairs.geometry(row, cells)
        out = [torch.zeros(self.kept) for _ in range(5)]
        out[2] = torch.zeros(self.kept, dtype=torch.bool)
        seen = [cloud[..., 2] > 0 for cloud in (geometry.first, geometry.second)]
        if int(seen[0].sum()) < 1 or int(seen[1].sum()) < 2:
            return out
        ours, theirs = (
            F.normalize(F.interpolate(part[None], size=cells, mode="bicubic")[0][:, mask].T, dim=1)
            for part, mask in zip((first, second), seen, strict=True)
        )
        weight, match = ratio_matches(ours, theirs)
        best = weight.topk(min(self.kept, len(weight))).indices
        moved = move(geometry.first[seen[0]][best], geometry.motion)
        cloud = geometry.second[seen[1]]
        drawn = torch.randint(len(cloud), (len(best),), generator=torch.Generator().manual_seed(row))
        out[2][: len(best)] = True
        for at, found in ((0, cloud[match[best]]), (3, cloud[drawn])):
            out[at][: len(best)] = (moved - found).norm(dim=1)
            out[at + 1][: len(best)] = (shown(moved, geometry) - shown(found, geometry)).norm(dim=1)
        return out


def ratio_matches(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors [n, C] and [m, C] -> weight 1 - d1 / d2 [n] and nearest neighbour [n]; d is the cosine distance."""
    weights, matches = [], []
    for part in ours.split(CHUNK):
        similarity, index = (part @ theirs.T).topk(2, dim=1)
        distance = (1 - similarity).clamp(min=1e-9)
        weights.append(1 - distance[:, 0] / distance[:, 1])
        matches.append(index[:, 0])
    return torch.cat(weights), torch.cat(matches)


def move(points: Tensor, motion: Tensor) -> Tensor:
    """Points [n, 3] through a rigid motion [4, 4]."""
    return points @ motion[:3, :3].T + motion[:3, 3]


def shown(points: Tensor, geometry: PairGeometry) -> Tensor:
    """Camera points [n, 3] of the second view -> pixels [n, 2] of the fitted image."""
    ahead = points[:, 2:].clamp(min=1e-6)
    focal, centre = geometry.intrinsics.diagonal()[:2], geometry.intrinsics[:2, 2]
    return points[:, :2] / ahead * focal + centre
