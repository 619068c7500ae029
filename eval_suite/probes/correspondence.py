"""Do frozen features find the same place again: in another view of it, and on another object of the kind?"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from common.errors import UserError
from common.recipes import Distances
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.correspondence import pck, recall_at
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.matching import match_in_boxes, match_pairs, sample_points
from eval_suite.readers.contracts import TEST, KeypointObject, LabelledData
from eval_suite.results import Result

Pair = tuple[int, KeypointObject, KeypointObject]  #: number of the kind, source, target


class TwoViewProbe(ProbeNode):
    """Nearest neighbours between two views (NAVI, ScanNet in Probe3D): share of points found within some pixels.

    Pooled over all points of all pairs, in percent; no training.
    """

    probe: Literal["two_view"]
    group: str = "3d"
    pixels: Distances = Field(default=(12.0,), min_length=1)  #: distances within which a point counts as found
    cells: int = Field(default=56, gt=0, le=4096)  #: places per side among which the match is sought

    def needs(self) -> list[Need]:
        return [Need("pairs", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        pairs = data.pairs(TEST)
        first, second = backbone.features(pairs.first).spatial, backbone.features(pairs.second).spatial
        found = match_pairs(first, second, pairs.points, self.cells, pairs.size)
        errors = (found - pairs.targets).norm(dim=-1)
        scores = recall_at(errors, pairs.valid, self.pixels)
        kept = {"errors": errors, "valid": pairs.valid}
        self.keep(backbone, "recall", pairs.first, torch.arange(0), lambda: kept, pixels=self.pixels)
        area = pairs.size[0] * pairs.size[1]
        return [
            self.result(f"recall_{px:g}px", scores[px].with_floor(100 * min(1.0, math.pi * px**2 / area)), seed)
            for px in self.pixels
        ]


class KeypointProbe(ProbeNode):
    """Named keypoints carried to another object of the same kind in another image (SPair-71k): PCK in percent.

    A point counts as found within `alpha` of the longer side of the target's box; pooled within a kind, then averaged
    over kinds. The match is sought inside the target's box, because a picture may hold several objects of a kind and
    any of them would be a right answer, and pairs are drawn with the seed. Where the data fixes the pairs (SPair-71k,
    one object an image) those are used, at most `pairs_per_kind` of a kind, and the whole image is searched.
    """

    probe: Literal["keypoints"]
    group: str = "3d"
    alpha: float = Field(default=0.1, gt=0, le=1)  #: a point is right within this share of its box's longer side
    smallest: float = Field(default=40.0, ge=0)  #: objects with a shorter longer side, in pixels, are left out
    pairs_per_kind: int = Field(default=200, gt=0)  #: at most so many pairs of objects of a kind
    cells: int = Field(default=24, gt=0, le=4096)  #: places per side of the box among which the match is sought
    margin: float = Field(default=0.1, ge=0)  #: share of its sides the box is widened by, each way

    def needs(self) -> list[Need]:
        return [Need("keypoints", TEST)]

    def test_set(self, data: LabelledData, seed: int) -> str:
        """Pairs are drawn with the seed, by these rules."""
        return f"{super().test_set(data, seed)}:images of pairs:{seed}:{self.smallest:g}:{self.pairs_per_kind}"

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        images = data.keypoints(TEST)
        whole = None if images.pairs is None else torch.tensor([0.0, 0.0, float(images.size[1]), float(images.size[0])])
        if images.pairs is None:
            drawn = draw_pairs(images.objects, self.smallest, self.pairs_per_kind, seed)
        else:
            drawn = fixed_pairs(images.objects, images.pairs, self.pairs_per_kind, seed)
        if not drawn:
            raise UserError(f'data "{self.data}" has no two objects of one kind that are {self.smallest:g} px large')
        spatial = backbone.features(images.images).spatial
        parts = (drawn[at : at + 32] for at in range(0, len(drawn), 32))
        errors = torch.cat([self._errors(spatial, part, images.size, whole) for part in parts])
        shared = [len(names_of(source, target)) for _, source, target in drawn]
        per_point = torch.arange(len(drawn)).repeat_interleave(torch.tensor(shared))
        sides = torch.tensor([longer_side(target) for _, _, target in drawn])[per_point]
        kinds = torch.tensor([kind for kind, _, _ in drawn])[per_point]
        ends = torch.tensor([(source.row, target.row) for _, source, target in drawn])
        scored = {"errors": errors, "sides": sides, "pairs": per_point, "kinds": kinds, "ends": ends}
        score = pck(**scored, alpha=self.alpha)
        self.keep(backbone, "pck", images.images, torch.arange(0), lambda: scored, alpha=self.alpha)
        boxes = torch.stack([self._widened(target) if whole is None else whole for _, _, target in drawn])[per_point]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        blind = (math.pi * (self.alpha * sides).square() / areas).clamp(max=1.0).mean()
        return [self.result(f"pck_{self.alpha:g}", score.with_floor(100.0 * float(blind)), seed)]

    def _errors(self, spatial: Tensor, drawn: Sequence[Pair], size: tuple[int, int], whole: Tensor | None) -> Tensor:
        """Distance in pixels of each shared point's best match from where it is on the target, pair after pair: [K]."""
        names = [names_of(source, target) for _, source, target in drawn]
        longest = max(len(some) for some in names)
        points, wanted = torch.zeros(2, len(drawn), longest, 2)
        for row, (_, source, target) in enumerate(drawn):
            points[row, : len(names[row])] = torch.tensor([source.points[name] for name in names[row]])
            wanted[row, : len(names[row])] = torch.tensor([target.points[name] for name in names[row]])
        sources, targets = [source.row for _, source, _ in drawn], [target.row for _, _, target in drawn]
        boxes = torch.stack([self._widened(target) if whole is None else whole for _, _, target in drawn])
        queries = sample_points(spatial[sources], points, size)
        errors = (match_in_boxes(queries, spatial[targets], boxes, self.cells, size) - wanted).norm(dim=-1)
        there = torch.arange(longest)[None] < torch.tensor([len(some) for some in names])[:, None]
        return errors[there]

    def _widened(self, item: KeypointObject) -> Tensor:
        x0, y0, x1, y1 = item.box
        dx, dy = self.margin * (x1 - x0), self.margin * (y1 - y0)
        return torch.tensor([x0 - dx, y0 - dy, x1 + dx, y1 + dy])


def draw_pairs(objects: Sequence[KeypointObject], smallest: float, count: int, seed: int) -> list[Pair]:
    """(kind number, source, target): objects in different images that share a keypoint name, at most `count` a kind."""
    generator = torch.Generator().manual_seed(seed)
    by_kind: dict[str, list[KeypointObject]] = {}
    for item in objects:
        if longer_side(item) >= smallest:
            by_kind.setdefault(item.kind, []).append(item)
    out: list[Pair] = []
    for kind, (_, items) in enumerate(sorted(by_kind.items())):
        left = count
        for number in torch.randperm(len(items) ** 2, generator=generator).tolist():
            source, target = items[number // len(items)], items[number % len(items)]
            if source.row != target.row and names_of(source, target):
                out.append((kind, source, target))
                left -= 1
            if not left:
                break
    return out


def fixed_pairs(
    objects: Sequence[KeypointObject], pairs: Sequence[tuple[int, int]], count: int, seed: int
) -> list[Pair]:
    """The benchmark's pairs that share a keypoint, at most `count` a kind, drawn with the seed where there are more."""
    generator = torch.Generator().manual_seed(seed)
    kinds = sorted({item.kind for item in objects})
    left = dict.fromkeys(kinds, count)
    out: list[Pair] = []
    for number in torch.randperm(len(pairs), generator=generator).tolist():
        source, target = (objects[at] for at in pairs[number])
        if left[source.kind] and names_of(source, target):
            out.append((kinds.index(source.kind), source, target))
            left[source.kind] -= 1
    return out


def longer_side(item: KeypointObject) -> float:
    """Pixels of the longer side of an object's box."""
    x0, y0, x1, y1 = item.box
    return max(x1 - x0, y1 - y0)


def names_of(source: KeypointObject, target: KeypointObject) -> list[str]:
    """Keypoints that both objects show."""
    return sorted(source.points.keys() & target.points.keys())
