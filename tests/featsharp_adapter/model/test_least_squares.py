"""Sums that add up, and the minimiser they give, against NumPy and against gradient descent."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.model.least_squares import LeastSquaresSums, choose_ridges, solve

INPUTS, OUTPUTS = 6, 3
GROUPS = [slice(0, 4), slice(4, 6)]


def rows(count: int = 200, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, INPUTS, generator=generator) * torch.arange(1, INPUTS + 1)
    mix = torch.randn(INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(9))
    y = x @ mix + 0.5 + torch.randn(count, OUTPUTS, generator=generator)
    return x, y, torch.rand(count, generator=generator)


def sums_of(*parts: tuple[Tensor, Tensor, Tensor]) -> LeastSquaresSums:
    sums = LeastSquaresSums(INPUTS, OUTPUTS)
    for part in parts:
        sums.update(*part)
    return sums


def test_the_minimiser_is_that_of_numpy_with_rows_for_the_ridges() -> None:
    x, y, w = rows()
    ridges = (0.3, 2.0)
    found = solve(sums_of((x, y, w)), GROUPS, ridges)
    root = w.double().sqrt()[:, None]
    a = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1) * root
    power = a.square().sum(dim=0)
    scale = torch.tensor([ridges[0]] * 4 + [ridges[1]] * 2 + [0.0], dtype=torch.float64)
    padded = np.vstack([a.numpy(), np.diag((scale * power).sqrt().numpy())])
    target = np.vstack([(y.double() * root).numpy(), np.zeros((INPUTS + 1, OUTPUTS))])
    assert np.allclose(found.numpy(), np.linalg.lstsq(padded, target, rcond=None)[0], atol=1e-10)


def test_the_error_needs_no_rows() -> None:
    x, y, w = rows()
    sums, solution = sums_of((x, y, w)), torch.randn(INPUTS + 1, OUTPUTS, dtype=torch.float64)
    residual = y.double() - x.double() @ solution[:-1] - solution[-1]
    expected = (w.double()[:, None] * residual.square()).sum() / (w.double().sum() * OUTPUTS)
    assert sums.error(solution) == pytest.approx(float(expected), rel=1e-10)


def test_parts_add_up_and_a_smaller_map_has_its_own_sums() -> None:
    whole = sums_of(rows(200, 1), rows(100, 2))
    merged = sums_of(rows(200, 1)).merge(sums_of(rows(100, 2)))
    assert torch.allclose(merged.gram, whole.gram) and torch.allclose(merged.cross, whole.cross)
    assert merged.power == pytest.approx(whole.power) and merged.weight == pytest.approx(whole.weight)
    x, y, w = rows()
    kept = torch.tensor([0, 2, 5])
    small = LeastSquaresSums(3, OUTPUTS)
    small.update(x[:, kept], y, w)
    found = sums_of((x, y, w)).keep(kept)
    assert torch.allclose(found.gram, small.gram) and torch.allclose(found.cross, small.cross)


def test_an_input_that_says_nothing_is_shrunk_away() -> None:
    """Group 1 is noise: its ridge is the largest there is, and the error is that of group 0 alone."""
    parts = []
    for seed in (1, 2):
        x, _, w = rows(60, seed)
        parts.append((x, x[:, :3] + 0.1, w))
    for x, y, _ in parts:
        y += 5 * torch.randn(y.shape, generator=torch.Generator().manual_seed(int(x[0, 0] * 100) % 97))
        x[:, 4:] = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(int(x[0, 1] * 100) % 89))
    solution = choose_ridges(sums_of(parts[0]), sums_of(parts[1]), GROUPS)
    assert solution.weight[4:6].abs().max() < 0.5 and solution.ridges[1] >= solution.ridges[0]


def test_what_is_not_finite_is_refused() -> None:
    x, y, w = rows()
    x[3, 2] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        sums_of((x, y, w))


def _one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    sums = sums_of(rows(200, 1 + rank)).all_reduce()
    torch.save((sums.gram, sums.cross, sums.power, sums.weight), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_sum_what_one_sums(tmp_path: Path) -> None:
    mp.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    whole = sums_of(rows(200, 1), rows(200, 2))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.allclose(first[0], whole.gram, rtol=1e-12) and torch.allclose(first[1], whole.cross, rtol=1e-12)
    assert first[2:] == pytest.approx((whole.power, whole.weight))
