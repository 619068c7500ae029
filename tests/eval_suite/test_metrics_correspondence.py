"""Recall of matches and PCK on cases with known answers, and against plain counting."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from eval_suite.metrics.correspondence import pck, recall_at


def nearest_error(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Distance in cells between where a point is and where its most similar feature is, identity pose; [1, cells]."""
    side = 12
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], 1).double()
    match = (F.normalize(first, dim=1) @ F.normalize(second, dim=1).T).argmax(1)
    return (places[match] - places).norm(dim=1)[None]


def test_identical_features_match_and_permuted_ones_do_not() -> None:
    features = torch.randn(144, 16, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(1, 144, dtype=torch.bool)
    exact = recall_at(nearest_error(features, features), valid, (0.5, 1.0, 5.0))
    assert [score.value for score in exact.values()] == [100.0] * 3
    shuffled = features[torch.randperm(144, generator=torch.Generator().manual_seed(1))]
    assert recall_at(nearest_error(features, shuffled), valid, (0.5,))[0.5].value < 5.0


def test_recall_equals_counting_and_pools_points_over_pairs() -> None:
    rng = np.random.default_rng(2)
    errors, valid = rng.gamma(2.0, 5.0, (9, 40)), rng.random((9, 40)) < np.linspace(0.0, 1.0, 9)[:, None]
    scores = recall_at(torch.from_numpy(errors), torch.from_numpy(valid), (5, 25))
    for threshold in (5, 25):
        assert scores[threshold].value == pytest.approx(100 * (errors[valid] < threshold).mean())
    assert scores[5].n == valid.sum()


def test_points_of_one_pair_are_one_draw() -> None:
    right = torch.arange(8) % 2 == 0
    errors = torch.where(right, 0.0, 99.0)[:, None].expand(8, 50)
    score = recall_at(errors, torch.ones(8, 50), (1.0,))[1.0]
    assert score.stderr == pytest.approx(100 * float(right.double().std()) / 8**0.5)


def test_pck_border_of_a_tenth_of_the_box() -> None:
    sides = torch.tensor([200.0, 200.0, 40.0])
    errors = torch.tensor([0.05 * 200, 0.15 * 200, 0.1 * 40])
    assert pck(errors, sides, pairs=torch.arange(3)).value == pytest.approx(200 / 3)


def test_pck_mean_over_kinds_or_over_keypoints() -> None:
    errors, sides = torch.tensor([0.0, 0.0, 0.0, 9.0]), torch.full((4,), 10.0)
    kinds, pairs = torch.tensor([3, 3, 3, 8]), torch.tensor([0, 0, 1, 2])
    assert pck(errors, sides, pairs=pairs, kinds=kinds).value == pytest.approx(50.0)
    assert pck(errors, sides, pairs=pairs).value == pytest.approx(75.0)
    assert pck(errors, sides, pairs=pairs).n == 4


def test_nothing_visible_and_nan_are_refused() -> None:
    with pytest.raises(UserError, match="visible in both"):
        recall_at(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), (1.0,))
    with pytest.raises(UserError, match="not finite"):
        pck(torch.tensor([float("nan")]), torch.ones(1), pairs=torch.zeros(1, dtype=torch.long))
