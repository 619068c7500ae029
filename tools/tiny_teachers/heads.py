"""Linear read-outs that exist only during training: what must be readable from one token by one matrix."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.tiny_teachers.targets import Masked


class DenseHeads(nn.Module):
    """One linear map per token, split into named maps: `outputs` gives name -> (channels, sub-cells per patch side).

    Linear on purpose: a deeper head would let the features keep the answer in a form that no probe can read.
    """

    def __init__(self, dim: int, outputs: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.outputs = dict(outputs)
        self.linear = nn.Conv2d(dim, sum(channels * sub * sub for channels, sub in self.outputs.values()), 1)

    def forward(self, spatial: Tensor) -> dict[str, Tensor]:
        """[B, C, g, g] -> name: [B, channels, g*sub, g*sub]."""
        widths = [channels * sub * sub for channels, sub in self.outputs.values()]
        pieces = self.linear(spatial).split(widths, dim=1)
        return {
            name: F.pixel_shuffle(piece, sub)
            for (name, (_, sub)), piece in zip(self.outputs.items(), pieces, strict=True)
        }


def histogram_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy to soft class shares, both [B, K, h, w], minus the target's own entropy (so 0 is perfect)."""
    entropy = -(target * target.clamp_min(1e-8).log()).sum(1)
    return (-(target * logits.log_softmax(1)).sum(1) - entropy).mean()


def masked_l1(predicted: Tensor, target: Masked) -> Tensor:
    """Mean absolute error [B, K, h, w] where the target's weight says so."""
    error = (predicted - target.value).abs() * target.weight
    return error.sum() / (target.weight.sum() * predicted.shape[1]).clamp_min(1)


def masked_binary(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy over the weighted entries."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * weight).sum() / weight.sum().clamp_min(1)


def affinity_loss(embedding: Tensor, ids: Tensor, sharpness: Tensor) -> Tensor:
    """Pairwise same-or-not of tokens: embedding [B, E, g, g], ids [B, g, g], sharpness a positive scalar.

    The probability of "same" is sigmoid(sharpness * (1 - squared distance)); same and other pairs weigh equally.
    """
    points, flat = embedding.flatten(2).transpose(1, 2), ids.flatten(1)
    same = flat.unsqueeze(1) == flat.unsqueeze(2)
    norms = points.square().sum(-1)
    distance = norms.unsqueeze(1) + norms.unsqueeze(2) - 2 * points @ points.transpose(1, 2)
    loss = F.binary_cross_entropy_with_logits(sharpness * (1 - distance), same.float(), reduction="none")
    return 0.5 * (loss[same].mean() + loss[~same].mean()) if bool((~same).any()) else loss.mean()


def contrastive_loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP, Radford et al. 2021): images and texts [B, E], row i belongs to row i."""
    logits = log_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
