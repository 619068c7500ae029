"""How far a teacher's summaries spread around their mean direction: what balances angular losses between teachers."""

from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

#: Summaries kept by a process. Disp is one number; its relative error is about 1 / sqrt of the summaries seen.
MOST = 16384


class DirectionStatistics:
    """Collects summaries [B, S] and gives Disp = E[angle(y, mu)^2] with mu = E[y] / |E[y]| (arXiv 2601.17237).

    The first `MOST` summaries of every process are kept, so both expectations are exact over the same images.
    """

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.count = 0

    def update(self, summary: Tensor) -> None:
        """Add the rows of [B, S]."""
        room = MOST - self.count
        if room > 0:
            self.kept.append(summary[:room].detach().double().cpu())
            self.count += len(self.kept[-1])

    def dispersion(self) -> float:
        """Disp in squared radians, over all processes, which must all call it; 0 where all point the same way.

        A process may have seen none, if another has.
        """
        rows = torch.cat(self.kept) if self.kept else None
        sums = gathered(torch.zeros(0) if rows is None else rows.sum(0))
        total = reduce(torch.add, [part for part in sums if part.numel()])
        own = torch.zeros(1) if rows is None else angles(rows, total.expand_as(rows)).square()
        parts = gathered(torch.stack([own.sum(), torch.tensor(float(self.count))]).double())
        summed, count = reduce(torch.add, parts).tolist()
        return float(summed / count)


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Angle between rows [B, S] and [B, S] -> [B], radians. Stays clear of 0 and pi, where arccos has no gradient."""
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)
    return torch.arccos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))


def gathered(tensor: Tensor) -> list[Tensor]:
    """The tensor of every process, in order of rank; only our own without any others."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [tensor]
    parts: list[Tensor] = [tensor] * dist.get_world_size()
    dist.all_gather_object(parts, tensor)
    return parts
