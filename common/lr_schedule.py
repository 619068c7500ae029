"""Learning rates as functions of the step alone, so that a resumed run has no schedule to restore.

Steps count from 0. `steps` is the length of the training, `first` where the warm-up ends.
"""

import math


def warm_up(step: int, first: float, *, start: float = 0.0) -> float:
    """Share of the peak rate at a step before `first`: a line from `start` at step 0 to 1 at `first`."""
    return start + (1 - start) * step / first


def half_cosine(step: float, first: float, steps: float) -> float:
    """Share of the peak rate after the warm-up: 1 at `first`, 0 at `steps` and beyond."""
    return 0.5 * (1 + math.cos(math.pi * progress(step, first, steps)))


def progress(step: float, first: float, steps: float) -> float:
    """How much of the way from `first` to `steps` is done, in [0, 1]."""
    return min(1.0, (step - first) / max(1, steps - first))


def warm_up_cosine(step: int, steps: int, first: float, *, start: float = 0.0) -> float:
    """Share of the peak rate: `warm_up`, then `half_cosine`."""
    return warm_up(step, first, start=start) if step < first else half_cosine(step, first, steps)
