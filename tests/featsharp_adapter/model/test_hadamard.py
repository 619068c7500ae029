"""Hadamard matrices are exact at every width teachers have, and refused where no construction is known to us."""

import numpy as np
import pytest

from common.errors import UserError
from featsharp_adapter.model.hadamard import hadamard

WIDTHS = [1, 2, 4, 12, 20, 28, 36, 76, 128, 192, 320, 384, 512, 576, 640, 768, 1024, 1152, 1280, 1408, 1536, 1664]


@pytest.mark.parametrize("size", WIDTHS)
def test_exact(size: int) -> None:
    matrix = hadamard(size).astype(np.float64)  # exact on integers of this size, and fast
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    assert (matrix @ matrix.T == size * np.eye(size)).all()


@pytest.mark.parametrize("size", [3, 6, 10, 92, 116, 2752])
def test_impossible_or_unknown_sizes_are_refused(size: int) -> None:
    with pytest.raises(UserError, match=str(size)):
        hadamard(size)
