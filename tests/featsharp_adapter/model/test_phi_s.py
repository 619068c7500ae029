"""PHI-S gives every channel the same unit variance, is exactly invertible, and its statistics may come in pieces."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.model.phi_s import CovarianceStatistics, PhiS


def uneven(count: int, dim: int, rank: int | None = None) -> Tensor:
    """[count, dim, 3, 2] whose channels correlate, differ in scale, and are far from zero."""
    mixing = torch.randn(dim, rank or dim) * torch.logspace(-1, 1, dim)[:, None]
    return torch.einsum("cr,brhw->bchw", mixing, torch.randn(count, rank or dim, 3, 2)) + 5 * torch.randn(dim, 1, 1)


def statistics_of(*batches: Tensor) -> CovarianceStatistics:
    statistics = CovarianceStatistics(batches[0].shape[1])
    for batch in batches:
        statistics.update(batch)
    return statistics


@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("dim", [12, 16, 36])
def test_unit_variance_per_channel_and_exact_inverse(dim: int, rank: int | None) -> None:
    features = uneven(200, dim, rank)
    phi_s = PhiS.fit(statistics_of(features))
    normalised = phi_s.normalise(features)
    assert torch.allclose(normalised.mean(dim=(0, 2, 3)), torch.zeros(dim), atol=1e-4)
    assert torch.allclose(normalised.var(dim=(0, 2, 3), unbiased=False), torch.ones(dim), rtol=1e-3)
    assert torch.allclose(phi_s.denormalise(normalised), features, rtol=1e-4, atol=1e-4)


def test_distances_change_by_one_factor_only() -> None:
    features = uneven(40, 16)
    phi_s = PhiS.fit(statistics_of(features))
    normalised = phi_s.normalise(features)
    ratio = (normalised[0] - normalised[1]).norm(dim=0) / (features[0] - features[1]).norm(dim=0)
    assert torch.allclose(ratio, phi_s.alpha.expand_as(ratio), rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 59), min_size=1, max_size=4, unique=True), seed=st.integers(0, 99))
def test_merged_pieces_equal_the_whole(cuts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    features = uneven(60, 8) + 1000  # a naive sum of squares loses the covariance behind this mean
    merged = CovarianceStatistics(8)
    for piece in torch.tensor_split(features, sorted(cuts)):
        merged.merge(statistics_of(piece))
    rows = features.double().transpose(0, 1).flatten(1)
    assert merged.count == rows.shape[1]
    assert torch.allclose(merged.mean, rows.mean(dim=1), rtol=1e-12)
    assert torch.allclose(merged.covariance, torch.cov(rows, correction=0), rtol=1e-8, atol=1e-9)


def _reduce(rank: int, address: str) -> tuple[int, Tensor, Tensor]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    try:
        torch.manual_seed(7)
        statistics = statistics_of(uneven(30, 8)[rank * 10 : 10 + rank * 20])
        statistics.all_reduce()
    finally:
        torch.distributed.destroy_process_group()
    return statistics.count, statistics.mean, statistics.scatter


def _reduce_elsewhere(rank: int, address: str, out: str) -> None:
    torch.save(_reduce(rank + 1, address), out)


def test_two_processes_agree_on_the_statistics_of_the_union(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "address"), str(tmp_path / "rank1"))
    other = mp.spawn(_reduce_elsewhere, args=arguments, nprocs=1, join=False)
    first = _reduce(0, str(tmp_path / "address"))
    other.join()
    second = torch.load(tmp_path / "rank1")
    torch.manual_seed(7)
    whole = statistics_of(uneven(30, 8))
    assert first[0] == second[0] == whole.count
    assert torch.equal(first[1], second[1]) and torch.equal(first[2], second[2])
    assert torch.allclose(first[2], whole.scatter, rtol=1e-10)


def test_bad_features_are_refused_in_words() -> None:
    broken = uneven(2, 8)
    broken[1, 3] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        statistics_of(broken)
    with pytest.raises(UserError, match="same everywhere"):
        PhiS.fit(statistics_of(torch.ones(4, 8, 2, 2)))
    with pytest.raises(UserError, match="no features"):
        PhiS.fit(CovarianceStatistics(8))
