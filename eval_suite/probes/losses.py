"""Losses of the dense probes; every one is a mean over the pixels that count."""

import torch
import torch.nn.functional as F
from torch import Tensor

from eval_suite.maps import unit
from eval_suite.readers.contracts import IGNORE


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of [B, K, h, w] against class maps [B, h, w], `IGNORE` left out."""
    counted = (labels != IGNORE).sum().clamp(min=1)
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="sum") / counted


def balanced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Two-class cross-entropy of [B, 1, h, w] with both classes weighing the same in the batch."""
    positive = (labels == 1).float()
    counted = (labels != IGNORE).float()
    share = ((positive * counted).sum() / counted.sum().clamp(min=1)).clamp(0.02, 0.98)
    weight = counted * torch.where(positive > 0, 1 - share, share)
    loss = F.binary_cross_entropy_with_logits(logits[:, 0], positive, reduction="none")
    return (weight * loss).sum() / weight.sum().clamp(min=1e-6)


def edge_loss(logits: Tensor, labels: Tensor, positive: float = 0.95) -> Tensor:
    """Two-class cross-entropy of [B, 1, h, w], boundary pixels weighing `positive` and the others the rest (InvPT)."""
    truth, counted = (labels == 1).float(), (labels != IGNORE).float()
    weight = counted * torch.where(truth > 0, positive, 1 - positive)
    loss = F.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none")
    return (weight * loss).sum() / counted.sum().clamp(min=1)


def depth_loss(prediction: Tensor, depth: Tensor) -> Tensor:
    """Mean absolute error of [B, 1, h, w] against metres [B, h, w], 0 = invalid left out."""
    valid = depth > 0
    return (prediction[:, 0] - depth)[valid].abs().sum() / valid.sum().clamp(min=1)


def normal_loss(prediction: Tensor, normals: Tensor) -> Tensor:
    """Mean absolute difference of unit vectors [B, 3, h, w], pixels without a normal left out."""
    valid = normals.square().sum(1) > 0.25
    difference = (unit(prediction) - normals).abs().sum(1)
    return difference[valid].sum() / (3 * valid.sum().clamp(min=1))
