"""Saliency: the best F-measure over thresholds, beta^2 = 0.3, from pixel counts over the whole set."""

from typing import Literal

import torch
from torch import Tensor

from common.errors import UserError
from eval_suite.metrics.score import Score, Tally, same_shape

BETA_SQUARED = 0.3
THRESHOLDS = torch.arange(1, 20, dtype=torch.float64) / 20  #: 0.05, 0.10, ... 0.95


class Saliency(Tally):
    """maxF in percent.

    `variant="mlore"` reproduces the published multi-task numbers of MLoRE, InvPT and TaskPrompter: their meter applies
    a sigmoid to values that already are probabilities, so only p >= 0, 0.20, 0.41, 0.62, 0.85 are ever tried.
    """

    def __init__(self, *, variant: Literal["plain", "mlore"] = "plain", ignore: int = 255) -> None:
        super().__init__({"maxf": lambda sums: 100.0 * f_measure(sums).amax(-1)})
        self.variant = variant
        self.ignore = ignore

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Probability of being salient [b, h, w] in [0, 1]; label in {0, 1}, or `ignore`."""
        same_shape(probability, target)
        probability, target = probability.double().flatten(1), target.flatten(1)
        if probability.numel() and not (probability.min() >= 0 and probability.max() <= 1):
            raise UserError("saliency wants probabilities in [0, 1]; apply the sigmoid or softmax first")
        valid = target != self.ignore
        level = probability.sigmoid() if self.variant == "mlore" else probability
        found, hit = [], []
        for threshold in THRESHOLDS.tolist():
            fired = (level >= threshold) & valid
            found.append(fired.sum(1))
            hit.append((fired & (target == 1)).sum(1))
        salient = ((target == 1) & valid).sum(1, keepdim=True)
        pixels = valid.sum(1, keepdim=True)
        self.add(torch.cat([torch.stack(hit, 1), torch.stack(found, 1), salient, pixels], 1), valid.any(1))

    def scores(self) -> dict[str, Score]:
        """The floor is that of calling every pixel salient: all are found, as precisely as there are salient ones."""
        salient, pixels = self.rows.sum(0)[-2:].tolist()
        everything = (1.0 + BETA_SQUARED) * salient / (BETA_SQUARED * salient + pixels)
        return {name: score.with_floor(100.0 * everything) for name, score in super().scores().items()}


def f_measure(sums: Tensor) -> Tensor:
    """[..., 2T + 2] of hits and predicted pixels per threshold, salient and all pixels -> F per threshold [..., T]."""
    hit, found, salient, _ = sums.split([len(THRESHOLDS), len(THRESHOLDS), 1, 1], dim=-1)
    # (1 + b) P R / (b P + R) with P = hit / found, R = hit / salient, written without the divisions by zero
    return (1.0 + BETA_SQUARED) * hit / (BETA_SQUARED * salient + found).clamp(min=1e-12)
