"""Do frozen features find the same place again: in another view of it, and on another object of the kind?"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from eval_suite.features import ProbedBackbone
from eval_suite.metrics.correspondence import pck, recall_at
from eval_suite.probes.base import ProbeNode
from eval_suite.probes.matching import best_matches, match_pairs, sample_points
from eval_suite.readers.contracts import TEST, KeypointObject, LabelledData
from eval_suite.results import Result
from teachers.errors import UserError


class TwoViewProbe(ProbeNode):
    """Nearest neighbours between two views (NAVI, ScanNet in Probe3D): share of points found within some pixels.

    Pooled over all points of all pairs, in percent; no training.
    """

    probe: Literal["two_view"]
    group: str = "3d"
    pixels: tuple[float, ...] = Field(default=(12.0,), min_length=1)
    cells: int = Field(default=56, gt=0)  #: places per side among which the match is sought

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        pairs = data.pairs(TEST)
        first, second = backbone.features(pairs.first).spatial, backbone.features(pairs.second).spatial
        found = match_pairs(first, second, pairs.points, self.cells, pairs.size)
        errors = (found - pairs.targets).norm(dim=-1)
        scores = recall_at(errors, pairs.valid, self.pixels)
        return [self.result(f"recall_{pixels:g}px", scores[pixels], seed) for pixels in self.pixels]


class KeypointProbe(ProbeNode):
    """Named keypoints carried to another object of the same kind in another image (SPair-71k): PCK in percent.

    A point counts as found within `alpha` of the longer side of the target's box; pooled within a kind, then averaged
    over kinds. Pairs are drawn with the seed; no training.
    """

    probe: Literal["keypoints"]
    group: str = "3d"
    alpha: float = Field(default=0.2, gt=0)
    smallest: float = Field(default=40.0, ge=0)  #: objects with a shorter longer side, in pixels, are left out
    pairs_per_kind: int = Field(default=200, gt=0)
    cells: int = Field(default=56, gt=0)

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        images = data.keypoints(TEST)
        spatial = backbone.features(images.images).spatial
        errors, sides, pairs, kinds = [], [], [], []
        drawn = draw_pairs(images.objects, self.smallest, self.pairs_per_kind, seed)
        for number, (kind, source, target) in enumerate(drawn):
            names = sorted(source.points.keys() & target.points.keys())
            error = self._errors(spatial, source, target, names, images.size)
            errors.append(error)
            sides.append(torch.full_like(error, longer_side(target)))
            pairs.append(torch.full_like(error, number, dtype=torch.int64))
            kinds.append(torch.full_like(error, kind, dtype=torch.int64))
        if not errors:
            raise UserError(f'data "{self.data}" has no two objects of one kind that are {self.smallest:g} px large')
        score = pck(
            torch.cat(errors), torch.cat(sides), pairs=torch.cat(pairs), kinds=torch.cat(kinds), alpha=self.alpha
        )
        return [self.result(f"pck_{self.alpha:g}", score, seed)]

    def _errors(
        self, spatial: Tensor, source: KeypointObject, target: KeypointObject, names: list[str], size: tuple[int, int]
    ) -> Tensor:
        """Distance in pixels of each named point's best match from where it is on the target: [K]."""
        points = torch.tensor([[source.points[name] for name in names]])
        wanted = torch.tensor([target.points[name] for name in names])
        queries = sample_points(spatial[source.row][None], points, size)
        found = best_matches(queries, spatial[target.row][None], self.cells, size)[0]
        return (found - wanted).norm(dim=-1)


def draw_pairs(
    objects: Sequence[KeypointObject], smallest: float, count: int, seed: int
) -> list[tuple[int, KeypointObject, KeypointObject]]:
    """(kind number, source, target): objects in different images that share a keypoint name, at most `count` a kind."""
    generator = torch.Generator().manual_seed(seed)
    by_kind: dict[str, list[KeypointObject]] = {}
    for item in objects:
        if longer_side(item) >= smallest:
            by_kind.setdefault(item.kind, []).append(item)
    out: list[tuple[int, KeypointObject, KeypointObject]] = []
    for kind, (_, items) in enumerate(sorted(by_kind.items())):
        left = count
        for number in torch.randperm(len(items) ** 2, generator=generator).tolist():
            source, target = items[number // len(items)], items[number % len(items)]
            if source.row != target.row and source.points.keys() & target.points.keys():
                out.append((kind, source, target))
                left -= 1
            if not left:
                break
    return out


def longer_side(item: KeypointObject) -> float:
    """Pixels of the longer side of an object's box."""
    x0, y0, x1, y1 = item.box
    return max(x1 - x0, y1 - y0)
