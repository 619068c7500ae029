"""The upsamplers of the zoo in the sizes of tests. What they all must do is in `test_zoo_contract.py`."""

from typing import Any

import torch
from torch import Tensor

from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.table import build_upsampler

DIM, GRID = 8, (5, 4)
#: Looked at by nobody: the image, in CARAFE and DySample.
BLIND = {"carafe", "dysample"}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("carafe", {}),
    ("carafe", {"kernel": 3, "encoder_kernel": 1, "width": 8}),
    ("sapa", {"width": 8}),
    ("sapa", {"width": 8, "kernel": 3, "gated": False}),
    ("dysample", {}),
    ("dysample", {"groups": 2, "dynamic_scope": True}),
    ("lift", {}),
    ("jafar", {"width": 16, "heads": 2}),
    ("loftup", {"frequencies": 3, "heads": 2}),
    ("resfu", {"width": 16, "groups": 2}),
]
#: Upsamplers with tests of their own: they need a checkout, are fitted to one image, or are solved.
ELSEWHERE = {"anyup", "naf", "featup_implicit", "ridge", "ridge_block"}
NAMES = sorted({name for name, _ in CASES})


def build(name: str, factor: int, options: dict[str, Any], *, shake: bool = True) -> Upsampler:
    """With random weights everywhere (`shake`), so that nothing hides behind an initial zero."""
    upsampler = build_upsampler(name, dim=DIM, factor=factor, grid=GRID, **options)
    if shake:
        with torch.no_grad():
            for parameter in upsampler.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return upsampler


def inputs(grid: tuple[int, int] = GRID, batch: int = 2, **kind: Any) -> tuple[Tensor, Tensor]:
    """Features, and an image whose size has nothing to do with the grid."""
    return torch.randn(batch, DIM, *grid, **kind), torch.rand(batch, 3, 93, 71, **kind)
