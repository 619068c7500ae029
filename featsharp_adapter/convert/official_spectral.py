"""Spectral reparametrisation as official checkpoints store it, computed away.

A reparametrised X.weight is stored as X.parametrizations.weight.original and, beside it, either one set of
X.parametrizations.weight.0.{sn_scale, _u, _v, _sn_version} or several, X.parametrizations.weight.0.parts.I.{...}, one
for each equal piece of its rows.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

_MIDDLE = ".parametrizations.weight."


def bake_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with plain weights."""
    plain = {name: value for name, value in state.items() if ".parametrizations." not in name}
    for name, original in state.items():
        layer, middle, rest = name.partition(_MIDDLE)
        if not middle or rest != "original":
            continue
        prefix = f"{layer}{_MIDDLE}0."
        if f"{prefix}sn_scale" in state:
            pieces = [(prefix, original)]
        else:
            count = len({key.split(".parts.")[1].split(".")[0] for key in state if key.startswith(f"{prefix}parts.")})
            rows = original.chunk(max(count, 1))
            pieces = [(f"{prefix}parts.{part}.", piece) for part, piece in enumerate(rows)]
        plain[f"{layer}.weight"] = torch.cat([_effective(piece, state, where) for where, piece in pieces])
    return plain


def _effective(weight: Tensor, state: Mapping[str, Tensor], prefix: str) -> Tensor:
    """W (softplus(s) + 0.05) / (sigma + 1e-6); the first version, which no `_sn_version` marks, has s itself."""
    scale = state[f"{prefix}sn_scale"].float()
    factor = F.softplus(scale) + 0.05 if f"{prefix}_sn_version" in state else scale
    flat = weight.float().flatten(1)
    if f"{prefix}_u" in state and f"{prefix}_v" in state:
        sigma = state[f"{prefix}_u"].float().flatten() @ flat @ state[f"{prefix}_v"].float().flatten()
    else:
        sigma = torch.linalg.matrix_norm(flat, ord=2)
    return weight.float() * factor.reshape(()) / (sigma + 1e-6)
