"""Classification of frozen summaries: weighted nearest neighbours, zero-shot, accuracies."""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from eval_suite.metrics.score import Score, clustered_mean, mean_class_share, score_of


def knn_predict(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Class of each of `test` [M, S] by a vote of the k nearest of `train` [N, S] (labels int [N]) -> int64 [M].

    Cosine similarity, vote weight exp(similarity / temperature): DINO's and RADIO's protocol.
    """
    if len(train) < k:
        raise UserError(f"kNN with k={k} needs at least {k} training images, got {len(train)}; lower k or use more")
    for name, features in (("training", train), ("test", test)):
        if not torch.isfinite(features).all():
            raise UserError(f"the {name} features hold NaN or infinite values; check the backbone and its images")
    train, labels = F.normalize(train.float(), dim=1), labels.long()
    votes = [_vote(part, train, labels, classes, k, temperature) for part in test.float().split(chunk)]
    return torch.cat(votes) if votes else labels.new_zeros(0)


def _vote(part: Tensor, train: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    similarity, index = (F.normalize(part, dim=1) @ train.T).topk(k, dim=1)
    weight = ((similarity - 1.0) / temperature).exp()  # minus 1: the same vote, without overflow at small temperatures
    tally = torch.zeros(len(part), classes, dtype=weight.dtype, device=weight.device)
    return tally.scatter_add_(1, labels[index], weight).argmax(1)


def zero_shot_weights(prompts: Tensor) -> Tensor:
    """Embeddings of T prompts for each class [C, T, S] -> a unit vector for each class [C, S] (CLIP, section 3.1.4)."""
    return F.normalize(F.normalize(prompts.float(), dim=-1).mean(1), dim=-1)


def cosine_logits(images: Tensor, weights: Tensor) -> Tensor:
    """Cosine similarity of image summaries [N, S] and class vectors [C, S] -> [N, C]."""
    return F.normalize(images.float(), dim=1) @ F.normalize(weights.float(), dim=1).T


def top1(predictions: Tensor, labels: Tensor) -> Score:
    """Share of predictions int [N] that equal the label int [N], percent."""
    score = clustered_mean(predictions.cpu() == labels.cpu(), None, scale=100.0)
    return score.with_floor(100.0 * float(torch.bincount(labels.cpu().long()).max()) / len(labels))


def top_k(logits: Tensor, labels: Tensor, k: int) -> Score:
    """Share of images whose label int [N] is among the k largest of their logits [N, C], percent."""
    best = logits.topk(k, dim=1).indices.cpu()
    score = clustered_mean((best == labels.cpu()[:, None]).any(1), None, scale=100.0)
    counts = torch.bincount(labels.cpu().long(), minlength=k)
    return score.with_floor(100.0 * int(counts.topk(k).values.sum()) / len(labels))


def mean_class_accuracy(predictions: Tensor, labels: Tensor, classes: int) -> Score:
    """Mean over the classes that occur of the share of their images that are right, percent."""
    member = F.one_hot(labels.cpu().long(), classes).double()
    hit = member * (predictions.cpu() == labels.cpu())[:, None]
    floor = 100.0 / int((member.sum(0) > 0).sum())
    return score_of(torch.cat([hit, member], 1), mean_class_share, len(labels)).with_floor(floor)
