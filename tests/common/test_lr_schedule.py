"""Warm-up and cosine, against torch's own schedulers."""

import pytest
import torch

from common.lr_schedule import half_cosine, progress, warm_up, warm_up_cosine


@pytest.mark.parametrize(("steps", "first", "start"), [(30, 3, 0.1), (10, 5, 0.5), (7, 1, 0.01)])
def test_the_shares_are_the_librarys(steps: int, first: int, start: float) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler
    line = schedule.LinearLR(optimiser, start_factor=start, total_iters=first)
    wave = schedule.CosineAnnealingLR(optimiser, steps - first)
    both = schedule.SequentialLR(optimiser, [line, wave], [first])
    for step in range(steps):
        assert warm_up_cosine(step, steps, first, start=start) == pytest.approx(both.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        both.step()


def test_ends_and_degenerate_lengths() -> None:
    assert warm_up(0, 5) == 0.0 and warm_up(5, 5, start=0.3) == 1.0
    assert half_cosine(0, 0, 0) == 1.0 and half_cosine(9, 0, 9) == half_cosine(12, 0, 9) == pytest.approx(0.0)
    assert progress(3, 3, 3) == 0.0 and progress(4, 3, 3) == 1.0
    assert warm_up_cosine(0, 4, 0) == 1.0
