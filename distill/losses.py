"""Losses between student and teacher. All are means over the batch, so equal shares on several processes average."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

#: AM-RADIO (arXiv 2312.06709): spatial loss = 0.9 cosine + 0.1 smooth L1; the beta of the original is not published.
COSINE_SHARE = 0.9


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos, summary [B, S] against [B, S] -> scalar."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=1)).mean()


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of [B, C, h, w] over everything; in PHI-S space predicting the mean costs 1 (2410.01680)."""
    return F.mse_loss(student.float(), teacher.float())


def hybrid(student: Tensor, teacher: Tensor) -> Tensor:
    """0.9 (1 - cos per position) + 0.1 smooth L1 (beta 1), [B, C, h, w] -> scalar."""
    angle = (1 - F.cosine_similarity(student.float(), teacher.float(), dim=1)).mean()
    return COSINE_SHARE * angle + (1 - COSINE_SHARE) * F.smooth_l1_loss(student.float(), teacher.float())


SUMMARY_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": cosine}
SPATIAL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse, "hybrid": hybrid}
