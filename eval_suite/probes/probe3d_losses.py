"""Probe3D's losses: scale-invariant log depth with gradients at four strides, and the uncertainty-aware angle."""

import math

import torch.nn.functional as F
from torch import Tensor

EPSILON, SIGMA = 1e-3, 0.85
STRIDES = (1, 2, 4, 6)  #: the whole map and every 2nd, 4th, 6th pixel of it
DEPTH_WEIGHTS = (10.0, 0.5)  #: of the two parts of the depth loss


def depth_loss(predicted: Tensor, depth: Tensor) -> Tensor:
    """10 SigLog + 0.5 gradient loss of metres [B, h, w] against labels [B, h, w], 0 = unknown."""
    return DEPTH_WEIGHTS[0] * sig_log(predicted, depth) + DEPTH_WEIGHTS[1] * gradient_loss(predicted, depth)


def sig_log(predicted: Tensor, depth: Tensor) -> Tensor:
    """sqrt(mean g^2 - 0.85 (mean g)^2), g = log(predicted + 0.001) - log(label + 0.001), over the batch's pixels."""
    valid = depth > 0
    if not valid.any():
        return 0.0 * predicted.sum()
    gap = (predicted[valid] + EPSILON).log() - (depth[valid] + EPSILON).log()
    return (gap.square().mean() - SIGMA * gap.mean().square()).clamp(min=1e-12).sqrt()


def gradient_loss(predicted: Tensor, depth: Tensor) -> Tensor:
    """Mean |difference of the log gap| between pixels two apart, both known, across and down, summed over strides."""
    total = predicted.new_zeros(())
    for stride in STRIDES:
        ours, truth = predicted[..., ::stride, ::stride], depth[..., ::stride, ::stride]
        valid = truth > 0
        gap = ((ours + EPSILON).log() - (truth.clamp(min=0) + EPSILON).log()) * valid
        down = (gap[..., 2:, :] - gap[..., :-2, :]).abs() * (valid[..., 2:, :] & valid[..., :-2, :])
        across = (gap[..., 2:] - gap[..., :-2]).abs() * (valid[..., 2:] & valid[..., :-2])
        total = total + (down.sum() + across.sum()) / valid.sum().clamp(min=1)
    return total


def normal_loss(predicted: Tensor, normals: Tensor) -> Tensor:
    """Negative log likelihood of the angle (Bae et al. 2021): [B, 4, h, w] = vector and certainty, labels [B, 3, h, w].

    kappa = elu(k) + 1.01; log(1 + exp(-kappa pi)) - log(kappa^2 + 1) + kappa angle; a zero label does not count.
    """
    valid = normals.square().sum(1) > 0.25
    cosine = F.cosine_similarity(predicted[:, :3], normals, dim=1).clamp(-1 + 1e-4, 1 - 1e-4)
    kappa = F.elu(predicted[:, 3]) + 1.01
    loss = (1 + (-kappa * math.pi).exp()).log() - (kappa.square() + 1).log() + kappa * cosine.acos()
    return loss[valid].sum() / valid.sum().clamp(min=1)
