"""A linear map in closed form, from sums over rows that may come from anywhere: batches, processes, a resumed run.

    minimise  sum_i w_i |r_i - W x_i|^2  +  sum_g lambda_g sum_{j in g} G_jj |W_j|^2

G = sum w x x^T, R = sum w x r^T, and groups g of inputs with a ridge each, in units of each input's own power G_jj, so
that it does not matter how inputs are scaled. With every lambda at infinity W is zero. The last input is a constant 1
and is never shrunk.

Shapes: N rows, D inputs (the constant included), C outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError

#: Ridges that are tried for every group.
RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 30.0, 1e4)


class LeastSquaresSums:
    """Sums in float64: gram [D, D], cross [D, C], power (of the targets), weight. They add up over parts exactly enough
    that order hardly matters."""

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        """inputs: D without the constant."""
        self.gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64, device=device)
        self.cross = torch.zeros(inputs + 1, outputs, dtype=torch.float64, device=device)
        self.power, self.weight = 0.0, 0.0

    def update(self, rows: Tensor, targets: Tensor, weights: Tensor) -> None:
        """rows [N, D-1], targets [N, C], weights [N]; UserError when they are not finite."""
        kept = weights > 0
        root = weights[kept].double().sqrt()[:, None]
        x = torch.cat([rows[kept].double(), torch.ones(len(root), 1, dtype=torch.float64, device=rows.device)], dim=1)
        x, y = x * root, targets[kept].double() * root
        power = float(y.square().sum())
        if not torch.isfinite(x.sum()) or power != power or power == float("inf"):
            raise UserError("the teacher's features are not finite (NaN or infinity); check its weights and precision")
        self.gram.addmm_(x.T, x)
        self.cross.addmm_(x.T, y)
        self.power += power
        self.weight += float(weights[kept].double().sum())

    def merge(self, other: "LeastSquaresSums") -> "LeastSquaresSums":
        """Add what `other` has summed; returns self."""
        self.gram += other.gram.to(self.gram.device)
        self.cross += other.cross.to(self.cross.device)
        self.power += other.power
        self.weight += other.weight
        return self

    def all_reduce(self) -> "LeastSquaresSums":
        """Merge over all processes, so that every rank ends with the same sums; nothing to do without any."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            numbers = torch.tensor([self.power, self.weight], dtype=torch.float64, device=self.gram.device)
            for values in (self.gram, self.cross, numbers):
                dist.all_reduce(values)
            self.power, self.weight = numbers.tolist()
        return self

    def keep(self, inputs: Tensor) -> "LeastSquaresSums":
        """The sums of the inputs at these positions [d] and the constant: those of a smaller map, exactly."""
        index = torch.cat([inputs, inputs.new_tensor([len(self.gram) - 1])]).to(self.gram.device)
        small = LeastSquaresSums(len(inputs), self.cross.shape[1], self.gram.device)
        small.gram, small.cross = self.gram[index][:, index], self.cross[index]
        small.power, small.weight = self.power, self.weight
        return small

    def state_dict(self) -> dict[str, Tensor | float]:
        """What has been summed so far."""
        return {"gram": self.gram, "cross": self.cross, "power": self.power, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.gram.copy_(state["gram"])
        self.cross.copy_(state["cross"])
        self.power, self.weight = state["power"], state["weight"]

    def error(self, solution: Tensor) -> float:
        """Mean squared error per output of a solution [D, C] on these rows, without visiting them again."""
        explained = 2 * float((solution * self.cross).sum()) - float((solution * (self.gram @ solution)).sum())
        return (self.power - explained) / (self.weight * self.cross.shape[1])


@dataclass(frozen=True)
class Solution:
    """weight [D, C] (its last row belongs to the constant); ridges of the groups; error on the rows that chose them."""

    weight: Tensor
    ridges: tuple[float, ...]
    error: float


def solve(sums: LeastSquaresSums, groups: Sequence[slice], ridges: Sequence[float]) -> Tensor:
    """The minimiser [D, C], float64. UserError where the inputs allow none."""
    added = torch.zeros(len(sums.gram), dtype=torch.float64, device=sums.gram.device)
    diagonal = sums.gram.diagonal()
    for group, ridge in zip(groups, ridges, strict=True):
        # An input that is always zero gets a ridge too, or the matrix could not be factorised.
        added[group] = ridge * diagonal[group].clamp(min=1e-12 * float(diagonal.max()))
    factor, failed = torch.linalg.cholesky_ex(sums.gram + torch.diag(added))
    if int(failed):
        raise UserError("the inputs of the closed form depend on each other exactly; leave one out, or use more images")
    return torch.cholesky_solve(sums.cross, factor)


def choose_ridges(
    train: LeastSquaresSums, held_back: LeastSquaresSums, groups: Sequence[slice], *, sweeps: int = 1
) -> Solution:
    """A ridge for each group by the error on rows held back, then the solution of all rows together.

    First one ridge for all groups, then each in turn; the error needs the sums of the rows held back, not the rows.
    """

    def error(ridges: Sequence[float]) -> float:
        return held_back.error(solve(train, groups, ridges))

    best = _smallest([[ridge] * len(groups) for ridge in RIDGES], error)
    for _ in range(sweeps if len(groups) > 1 else 0):
        for place in range(len(groups)):
            best = _smallest([[*best[:place], ridge, *best[place + 1 :]] for ridge in RIDGES], error)
    together = LeastSquaresSums(len(train.gram) - 1, train.cross.shape[1], train.gram.device)
    together.merge(train).merge(held_back)
    return Solution(solve(together, groups, best), tuple(best), error(best))


def _smallest(candidates: list[list[float]], error: Callable[[Sequence[float]], float]) -> list[float]:
    return min(candidates, key=error)
