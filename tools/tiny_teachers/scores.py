"""How rich and how useful a tiny teacher's features are, on scenes it never saw: what its card states."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teachers.tiny.model import TinyNetwork
from tools.tiny_teachers import targets
from tools.tiny_teachers.cache import SceneCache
from tools.tiny_teachers.crops import Crops, take_crops


def rankme(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of [N, C], centred (Garrido et al. 2023, eq. 2)."""
    return _exp_entropy(torch.linalg.svdvals((features - features.mean(0)).double()))


def effective_rank(features: Tensor) -> float:
    """The same over variances (squared singular values): how many directions carry the energy."""
    return _exp_entropy(torch.linalg.svdvals((features - features.mean(0)).double()).square())


def _exp_entropy(values: Tensor) -> float:
    share = values / values.sum().clamp_min(1e-12)
    return float((-(share * share.clamp_min(1e-12).log()).sum()).exp())


def ridge(inputs: Tensor, outputs: Tensor, strength: float = 1e-2) -> Tensor:
    """Weights [C + 1, K] of the standard-scaled ridge regression from [N, C + 1] (last column 1) to [N, K]."""
    inputs = inputs.double()
    gram = inputs.T @ inputs / len(inputs)
    gram += strength * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, inputs.T @ outputs.double() / len(inputs)).float()


def mean_iou(predicted: Tensor, truth: Tensor, classes: int) -> float:
    """Data-set mIoU over the classes that occur in `truth`, both int64 [...]."""
    confusion = torch.bincount((truth * classes + predicted).flatten(), minlength=classes**2).view(classes, classes)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    present = confusion.sum(1) > 0
    return float((confusion.diagonal()[present] / union[present]).mean())


class Encoded(NamedTuple):
    """Whole scenes through a network: tokens [N, g*g, C], summaries [N, S] or None, and their labels."""

    tokens: Tensor
    summary: Tensor | None
    crops: Crops


@torch.no_grad()
def encode(network: TinyNetwork, cache: SceneCache, rows: np.ndarray) -> Encoded:
    """Run whole scenes through the network in eval mode."""
    architecture = network.architecture
    windows = np.tile(np.array([0, 0, cache.size]), (len(rows), 1))
    crops = take_crops(cache, rows, windows, architecture.image_size, architecture.patch)
    parts = [network(piece) for piece in crops.images.split(64)]
    tokens = torch.cat([part.spatial for part in parts]).flatten(2).transpose(1, 2)
    summaries = [part.summary for part in parts if part.summary is not None]
    return Encoded(tokens, torch.cat(summaries) if summaries else None, crops)


def dense_scores(fit: Encoded, held: Encoded, classes: int, coarse: int) -> dict[str, float]:
    """Rank of the held-out tokens, and ridge probes from one token to its 2 x 2 sub-cells, fitted on `fit`."""
    flat = held.tokens.flatten(0, 1)
    mean, std = fit.tokens.mean((0, 1)), fit.tokens.std((0, 1)).clamp_min(1e-6)
    x, y = (_with_one((e.tokens - mean) / std) for e in (fit, held))

    def probe(fit_map: Tensor, held_map: Tensor) -> Tensor:
        weights = ridge(x, _cells(fit_map))
        return _uncells(y @ weights, held_map.shape)

    scores = {"rankme": rankme(flat), "effective_rank": effective_rank(flat)}
    for name, field, count in (("miou_fine", "semantic", classes), ("miou_coarse", "coarse", coarse)):
        shares = [targets.histogram(getattr(e.crops, field), count, 2) for e in (fit, held)]
        scores[name] = 100 * mean_iou(probe(*shares).argmax(1), shares[1].argmax(1), count)
    for name, make in (("depth_r2", targets.log_depth), ("normals_r2", targets.normals)):
        maps = [make(e.crops, 2) for e in (fit, held)]
        scores[name] = _r2(probe(maps[0].value, maps[1].value), maps[1])
    borders = [targets.edges(targets.segments(e.crops), 2) for e in (fit, held)]
    scores["edge_r2"] = _r2(probe(*borders), targets.Masked(borders[1], torch.ones_like(borders[1])))
    return {name: round(value, 4) for name, value in scores.items()}


def _with_one(tokens: Tensor) -> Tensor:
    flat = tokens.flatten(0, 1)
    return torch.cat([flat, torch.ones(len(flat), 1)], dim=1)


def _cells(maps: Tensor) -> Tensor:
    """[N, K, 2g, 2g] -> [N*g*g, K*4]."""
    return F.pixel_unshuffle(maps, 2).flatten(2).transpose(1, 2).flatten(0, 1)


def _uncells(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """[N*g*g, K*4] -> [N, K, 2g, 2g]."""
    grid = shape[-1] // 2
    return F.pixel_shuffle(rows.view(shape[0], grid, grid, -1).permute(0, 3, 1, 2), 2)


def _r2(predicted: Tensor, target: targets.Masked) -> float:
    weight = target.weight.expand_as(target.value)
    mean = (target.value * weight).sum((0, 2, 3), keepdim=True) / weight.sum((0, 2, 3), keepdim=True).clamp_min(1)
    residual = ((predicted - target.value).square() * weight).sum()
    return float(1 - residual / ((target.value - mean).square() * weight).sum().clamp_min(1e-9))


@torch.no_grad()
def text_scores(
    network: TinyNetwork, held: Encoded, captions: list[list[str]], classes: Sequence[Sequence[str]], labels: Tensor
) -> dict[str, float]:
    """Retrieval recall both ways (first caption of each of N scenes) and zero-shot top-1 with `classes`' prompts."""
    if network.text is None or held.summary is None:
        raise ValueError("text scores need a text tower and a summary")
    images = F.normalize(held.summary, dim=-1)
    similarity = images @ F.normalize(network.text.encode([row[0] for row in captions]), dim=-1).T
    scores = {"gallery": float(len(images))}
    for name, matrix in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        rank = (matrix > matrix.diagonal().unsqueeze(1)).sum(1)
        scores |= {f"{name}_recall@{k}": round(100 * float((rank < k).float().mean()), 2) for k in (1, 5, 10)}
    prompts = torch.stack([F.normalize(network.text.encode(list(row)), dim=-1).mean(0) for row in classes])
    hit = (images @ F.normalize(prompts, dim=-1).T).argmax(1) == labels
    return scores | {
        "zero_shot_top1": round(100 * float(hit.float().mean()), 2),
        "zero_shot_classes": float(len(classes)),
    }
