"""PHI-S: PCA-Hadamard isotropic standardisation of a teacher's features (arXiv 2410.01680).

One scalar divides all channels, so relations between them survive; the rotation before it (principal axes, then a
Hadamard matrix) gives every channel exactly the same variance, so one loss weight fits all. Both are invertible.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import UserError
from featsharp_adapter.model.hadamard import hadamard


class CovarianceStatistics:
    """Count, mean and scatter of vectors of width `dim`, in float64, merged pairwise (Chan, Golub, LeVeque 1979).

    Merging is exact and order hardly matters, so pieces may come from batches, from processes, or from a resumed run.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._forget()

    def update(self, features: Tensor) -> None:
        """Add every token of [B, C, h, w] (or every row of [N, C]). UserError when they are not finite."""
        rows = features.detach().transpose(0, 1).flatten(1) if features.ndim == 4 else features.detach().T
        if rows.shape[0] != self.dim:
            raise ValueError(f"features are {rows.shape[0]} wide, the statistics {self.dim}")
        values = rows.double()
        mean = values.mean(dim=1)
        if not torch.isfinite(mean).all():
            raise UserError("the teacher's features are not finite (NaN or infinity); check its weights and precision")
        centred = values - mean[:, None]
        self._merge(values.shape[1], mean.cpu(), (centred @ centred.T).cpu())

    def merge(self, other: "CovarianceStatistics") -> None:
        """Add what `other` has seen."""
        self._merge(other.count, other.mean, other.scatter)

    def all_reduce(self) -> None:
        """Merge over all processes, in order of rank, so that every rank ends with the same bits; no-op without any."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        parts: list[tuple[int, Tensor, Tensor] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (self.count, self.mean, self.scatter))
        self._forget()
        for part in parts:
            if part is not None:
                self._merge(*part)

    @property
    def covariance(self) -> Tensor:
        """float64 [C, C], divided by the count."""
        if self.count == 0:
            raise UserError("no features were seen, so there is nothing to normalise by")
        return self.scatter / self.count

    def _forget(self) -> None:
        self.count = 0
        self.mean = torch.zeros(self.dim, dtype=torch.float64)
        self.scatter = torch.zeros(self.dim, self.dim, dtype=torch.float64)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        self.scatter += scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total


class PhiS(nn.Module):
    """y = alpha * rotation (x - mean), per token; the identity until fitted.

    Buffers: mean [C], alpha [], rotation [C, C] = H V^T (orthogonal), count [] tokens it was fitted on.
    """

    mean: Tensor
    alpha: Tensor
    rotation: Tensor
    count: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("alpha", torch.ones(()))
        self.register_buffer("rotation", torch.eye(dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def dim(self) -> int:
        """C."""
        return self.mean.shape[0]

    @classmethod
    def fit(cls, statistics: CovarianceStatistics) -> "PhiS":
        """The normaliser of these statistics. UserError when the features never vary, or no Hadamard matrix fits C."""
        values, vectors = torch.linalg.eigh(statistics.covariance)
        spread = values.clamp(min=0).mean()  # rounding leaves tiny negative eigenvalues where features span less than C
        if spread <= 0:
            raise UserError("the teacher's features are the same everywhere; there is no scale to normalise by")
        size = statistics.dim
        spreading = torch.from_numpy(hadamard(size).astype(np.float64)) / size**0.5
        normaliser = cls(size)
        normaliser.mean.copy_(statistics.mean)
        normaliser.alpha.copy_(spread.rsqrt())
        normaliser.rotation.copy_(spreading @ vectors.T)
        normaliser.count.fill_(statistics.count)
        return normaliser

    def normalise(self, features: Tensor) -> Tensor:
        """Teacher units [B, C, h, w] -> PHI-S space, same shape, at least float32."""
        centred = features.to(self.mean.dtype) - self.mean[:, None, None]
        return rotate(self.alpha * self.rotation, centred)

    def denormalise(self, features: Tensor) -> Tensor:
        """The inverse of `normalise`; the rotation is orthogonal, so its inverse is its transpose."""
        return rotate(self.rotation.T / self.alpha, features.to(self.mean.dtype)) + self.mean[:, None, None]


def rotate(matrix: Tensor, features: Tensor) -> Tensor:
    """A [C, C] matrix at every token of [B, C, h, w] -> same shape."""
    return torch.einsum("oc,bchw->bohw", matrix, features)
