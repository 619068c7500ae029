"""Probe3D's correspondence: places as features are found again, nothing is without them, brute force agrees."""

from pathlib import Path

import layout_fixtures as make
import pytest
import torch
import torch.nn.functional as F
from test_readers_layouts import opened
from toy_world import Constant, ToyData, probed

from common.errors import UserError
from eval_suite.probes.probe3d_views import Probe3dViewsProbe, move, ratio_matches, shown
from eval_suite.readers.contracts import ImagePairs, LabelledData
from teachers.contracts import Features


class Places(Constant):
    """Tells where in the world each cell of a view lies: reads the answer from the pairs it is given."""

    def __init__(self, pairs: ImagePairs, cells: tuple[int, int]) -> None:
        super().__init__()
        self.spec = type(self.spec)(**{**self.spec.to_dict(), "native_size": pairs.size, "resizable": False})
        assert pairs.geometry is not None
        clouds = []
        for side in (0, 1):
            for row in range(len(pairs.first)):
                geometry = pairs.geometry(row, cells)
                points = (
                    move(geometry.first.flatten(0, 1), geometry.motion) if side == 0 else geometry.second.flatten(0, 1)
                )
                centred = 40 * (points - geometry.second.flatten(0, 1).mean(0))
                clouds.append(torch.cat([centred, torch.ones(len(points), 1)], 1).T.unflatten(1, cells))
        self.maps = torch.stack(clouds)
        self.at = 0

    def forward(self, images: torch.Tensor) -> Features:
        self.at += len(images)
        return Features(None, self.maps[self.at - len(images) : self.at])


def probe(**changes: object) -> Probe3dViewsProbe:
    return Probe3dViewsProbe(probe="probe3d_views", name="views", data="toy", **{"cells": 24, "kept": 60, **changes})


def pairs_of(root: Path, reader: str) -> LabelledData:
    if reader == "navi":
        return opened("navi", make.navi(root), size=48, points=20, widest=30)
    return opened("scannet1500", make.scannet(root), points=20)


@pytest.mark.parametrize("reader", ["navi", "scannet"])
def test_places_are_found_again_and_constant_features_find_nothing(tmp_path: Path, reader: str) -> None:
    data = pairs_of(tmp_path, reader)
    pairs = data.pairs("test")
    task = probe(centimetres=(2.0, 10.0), pixels=(8.0,))
    best = {result.metric: result for result in task.run(probed(Places(pairs, (24, 24))), data, seed=0)}
    worst = {result.metric: result for result in task.run(probed(Constant()), data, seed=0)}
    assert set(best) == {"recall_2cm", "recall_10cm", "recall_8px"}
    assert best["recall_10cm"].value > 95
    if reader == "scannet":  # the views of the other fixture do not show the same points, so pixels say nothing there
        assert best["recall_8px"].value > 95
        assert worst["recall_2cm"].value < 30
    assert best["recall_2cm"].protocol == "probe3d"


def test_motion_and_projection_agree_with_the_sampled_correspondences(tmp_path: Path) -> None:
    """A wall seen twice: the cell clouds, moved and projected, land where the sampled points say (3.2 px left)."""
    pairs = pairs_of(tmp_path, "scannet").pairs("test")
    assert pairs.geometry is not None
    geometry = pairs.geometry(0, (make.HEIGHT, make.WIDTH))
    points = geometry.first.flatten(0, 1)
    still = type(geometry)(geometry.first, geometry.second, torch.eye(4), geometry.intrinsics)
    shift = shown(move(points, geometry.motion), geometry) - shown(points, still)
    assert torch.allclose(shift, torch.tensor([-3.2, 0.0]).expand_as(shift), atol=1e-3)
    centre = shown(points, geometry).unflatten(0, (make.HEIGHT, make.WIDTH))[10, 20]
    assert torch.allclose(centre, torch.tensor([20.5, 10.5]), atol=1e-3)


def test_ratio_matching_agrees_with_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (30, 20))
    weight, match = ratio_matches(ours, theirs)
    for row in range(30):
        distance = sorted((1 - float(ours[row] @ other), at) for at, other in enumerate(theirs))
        assert int(match[row]) == distance[0][1]
        assert float(weight[row]) == pytest.approx(1 - distance[0][0] / distance[1][0], abs=1e-4)


def test_data_without_depth_is_refused() -> None:
    with pytest.raises(UserError, match="no depth of both views; use the probe two_view"):
        probe().run(probed(Constant()), ToyData(), seed=0)
