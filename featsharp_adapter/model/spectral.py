"""Spectral reparametrisation: a linear layer's largest singular value becomes a parameter of its own.

W_eff = W (softplus(s) + 0.05) / (sigma(W) + 1e-6), sigma by power iteration, a step each training forward, as
FeatSharp's code trains (not in its paper; after sigma-Reparam, arXiv 2303.06296). Layers that are several in one
(query, key and value; the halves of a gated layer) get one s for each. Training ends by writing W_eff into W, so that
what is saved is plain.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

FLOOR, EPSILON = 0.05, 1e-6
#: Power iterations before training; one more at every training forward.
FIRST_ITERATIONS = 20
#: softplus of this plus FLOOR is 1: every layer starts with the largest singular value 1, as published.
START = math.log(math.expm1(1 - FLOOR))


class SpectralScale(nn.Module):
    """The parametrisation of one weight [out, in], its rows in `parts` equal pieces."""

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, parts: int) -> None:
        super().__init__()
        self.parts = parts
        # [1, 1] as published, so that rules that spare vectors from weight decay do not spare it.
        self.scale = nn.ParameterList(nn.Parameter(weight.new_full((1, 1), START)) for _ in range(parts))
        pieces = weight.detach().chunk(parts)
        left = [F.normalize(piece.new_ones(len(piece)), dim=0) for piece in pieces]
        self.register_buffer("left", torch.stack(left))
        self.register_buffer("right", weight.detach().new_zeros(parts, weight.shape[1]))
        for _ in range(FIRST_ITERATIONS):
            self._iterate(weight)

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self._iterate(weight)
        out = []
        for part, (piece, scale) in enumerate(zip(weight.chunk(self.parts), self.scale, strict=True)):
            sigma = self.left[part].clone() @ piece @ self.right[part].clone()
            out.append(piece * (F.softplus(scale) + FLOOR) / (sigma + EPSILON))
        return torch.cat(out)

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> None:
        for part, piece in enumerate(weight.chunk(self.parts)):
            self.right[part] = F.normalize(piece.T @ self.left[part], dim=0)
            self.left[part] = F.normalize(piece @ self.right[part], dim=0)


def attach_spectral(module: nn.Module) -> list[nn.Parameter]:
    """Reparametrise every linear layer inside; returns the scales.

    Layers that start at zero are left as they are: they have no singular value to divide by, and are what makes an
    untrained fusion block return its first input.
    """
    scales: list[nn.Parameter] = []
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and layer.weight.any():
            parts = {"qkv": 3, "w12": 2}.get(name.rpartition(".")[2], 1)
            parametrisation = SpectralScale(layer.weight, parts)
            parametrize.register_parametrization(layer, "weight", parametrisation)
            scales += list(parametrisation.scale)
    return scales


def bake_spectral(module: nn.Module) -> None:
    """Write the effective weights into plain ones; the module computes the same and forgets the scales."""
    module.eval()
    for layer in list(module.modules()):
        if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
