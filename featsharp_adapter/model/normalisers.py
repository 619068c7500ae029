"""What features may be brought to before they are sharpened: PHI-S, and everything it is compared with.

PHI-S (arXiv 2410.01680) is a shift, a rotation and one scalar. Its parts alone, the whitenings and the standardisations
are all affine too, so they are one class with other matrices. LayerNorm is not, and cannot be undone.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError, unknown
from featsharp_adapter.model.hadamard import hadamard
from featsharp_adapter.model.phi_s import CovarianceStatistics, PhiS, rotate

#: Directions with less than this share of the largest variance hold rounding, not features; whitening drops them.
RANK_TOLERANCE = 1e-10


class AffineNormaliser(nn.Module):
    """y = matrix (x - mean), x = inverse y + mean, per token; the identity until fitted.

    Buffers: mean [C], matrix [C, C], inverse [C, C], count [] tokens it was fitted on.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    count: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))
        self.register_buffer("inverse", torch.eye(dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def dim(self) -> int:
        """C."""
        return self.mean.shape[0]

    def normalise(self, features: Tensor) -> Tensor:
        """Teacher units [B, C, h, w] -> normalised, same shape."""
        return rotate(self.matrix, features.to(self.mean.dtype) - self.mean[:, None, None])

    def denormalise(self, features: Tensor) -> Tensor:
        """The inverse of `normalise` for whatever lies in the span of the features it was fitted on."""
        return rotate(self.inverse, features.to(self.mean.dtype)) + self.mean[:, None, None]


class LayerNormaliser(nn.Module):
    """Every token to mean 0 and variance 1 over its channels, as FeatUp (arXiv 2403.10516) normalises.

    What a token's mean and length were is lost: `denormalise` is the identity, and an adapter around it gives features
    of the normalised space. It is here to be compared with.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def normalise(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> same shape."""
        return nn.functional.layer_norm(features.movedim(1, -1), (self.dim,)).movedim(-1, 1)

    def denormalise(self, features: Tensor) -> Tensor:
        """As it is."""
        return features


Normaliser = PhiS | AffineNormaliser | LayerNormaliser


def fit_normaliser(name: str, statistics: CovarianceStatistics) -> Normaliser:
    """The normaliser `name` of the table for these statistics; UserError where they allow none."""
    if name not in NORMALISERS:
        raise unknown("normaliser", name, NORMALISERS)
    if name == "phi_s":
        return PhiS.fit(statistics)
    if name == "layer_norm":
        return LayerNormaliser(statistics.dim)
    normaliser = AffineNormaliser(statistics.dim)
    matrix, inverse = _MATRICES[name](statistics.covariance)
    if not torch.isfinite(matrix).all():
        raise UserError(f'the teacher has channels that never vary; normaliser "{name}" would divide by zero')
    normaliser.matrix.copy_(matrix)
    normaliser.inverse.copy_(inverse)
    normaliser.mean.copy_(torch.zeros_like(statistics.mean) if name == "none" else statistics.mean)
    normaliser.count.fill_(statistics.count)
    return normaliser


def new_normaliser(name: str, dim: int) -> Normaliser:
    """The unfitted normaliser `name`, to load weights into."""
    if name not in NORMALISERS:
        raise unknown("normaliser", name, NORMALISERS)
    if name == "phi_s":
        return PhiS(dim)
    return LayerNormaliser(dim) if name == "layer_norm" else AffineNormaliser(dim)


def _none(covariance: Tensor) -> tuple[Tensor, Tensor]:
    eye = torch.eye(len(covariance), dtype=torch.float64)
    return eye, eye


def _global(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """One scalar for all channels: PHI-S without its rotation."""
    eye, scale = torch.eye(len(covariance), dtype=torch.float64), covariance.diagonal().mean().sqrt()
    return eye / scale, eye * scale


def _rotation(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """PHI-S without its scalar."""
    _, vectors = torch.linalg.eigh(covariance)
    rotation = _spread(len(covariance)) @ vectors.T
    return rotation, rotation.T


def _standardise(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Every channel to variance 1 by itself."""
    scale = covariance.diagonal().sqrt()
    return torch.diag(1 / scale), torch.diag(scale)


def _whiten(turn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """turn(V) L^-1/2 V^T: all directions to variance 1, then any rotation. Directions without variance become 0."""

    def matrices(covariance: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(covariance)
        kept = values > RANK_TOLERANCE * values.max()
        scale = torch.where(kept, values.clamp(min=torch.finfo(torch.float64).tiny), 1.0).sqrt()
        last = turn(vectors)
        return last @ torch.diag(kept / scale) @ vectors.T, vectors @ torch.diag(kept * scale) @ last.T

    return matrices


def _spread(dim: int) -> Tensor:
    """The orthogonal Hadamard matrix, float64."""
    return torch.from_numpy(hadamard(dim).astype(np.float64)) / dim**0.5


_MATRICES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "none": _none,
    "global": _global,
    "rotation": _rotation,
    "standardise": _standardise,
    "pca_whiten": _whiten(lambda vectors: torch.eye(len(vectors), dtype=torch.float64)),
    "zca_whiten": _whiten(lambda vectors: vectors),
    "hadamard_whiten": _whiten(lambda vectors: _spread(len(vectors))),
}
#: By name. "global" is the scalar of PHI-S alone, "rotation" its rotation alone.
NORMALISERS = ("phi_s", "layer_norm", *_MATRICES)
