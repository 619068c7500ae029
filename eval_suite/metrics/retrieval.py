"""Image-text retrieval: recall at K in both directions, several captions an image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError
from eval_suite.metrics.score import Score, clustered_mean


@dataclass(frozen=True)
class Retrieval:
    """Recall at K, percent: of the image given a caption, and of any of its captions given an image."""

    text_to_image: Score
    image_to_text: Score


def recall_at_k(similarity: Tensor, owner: Tensor, k: int) -> Retrieval:
    """similarity [I, T] of images and captions, owner int [T] the image of each caption -> recall at k both ways.

    A query is right when any of its positives is in the top k (CLIP's rule, not the share of positives). Equal
    similarities count as drawn in random order, so a backbone that says the same of everything scores chance. The
    standard error draws images, each with all its captions; it leaves out that the gallery changes with them.
    """
    images, captions = similarity.shape
    owner = owner.long().to(similarity.device)
    if owner.shape != (captions,) or len(torch.unique(owner)) != images:
        raise UserError(f"retrieval needs a caption for each of the {images} images and one owner per caption")
    if not torch.isfinite(similarity).all():
        raise UserError("a similarity is not finite; check the image and text features for NaN")
    positive = owner[None, :] == torch.arange(images, device=similarity.device)[:, None]
    found_image = hit_probability(similarity.T, positive.T, k)
    found_text = hit_probability(similarity, positive, k)
    nothing = torch.zeros(1, max(images, captions))  # equal similarities: a blind backbone
    blind_image = hit_probability(nothing[:, :images], positive.T[:1].cpu(), k)
    blind_text = hit_probability(nothing[:, :captions].expand(images, -1), positive.cpu(), k)
    return Retrieval(
        clustered_mean(found_image, owner, scale=100.0).with_floor(100.0 * float(blind_image.mean())),
        clustered_mean(found_text, None, scale=100.0).with_floor(100.0 * float(blind_text.mean())),
    )


def hit_probability(scores: Tensor, positive: Tensor, k: int) -> Tensor:
    """Chance that a positive is among the k best of each row of scores [Q, G], ties broken at random -> [Q]."""
    best = scores.masked_fill(~positive, float("-inf")).amax(1, keepdim=True)
    ahead = (scores > best).sum(1)
    tied = scores == best
    ties, ours = tied.sum(1), (tied & positive).sum(1)
    places = (k - ahead).clamp(min=0)
    miss = torch.ones(len(scores), dtype=torch.float64, device=scores.device)
    for drawn in range(int(places.max())):  # draw the places one by one out of the tied without meeting a positive
        left = (ties - ours - drawn).clamp(min=0) / (ties - drawn).clamp(min=1)
        miss = torch.where(drawn < places, miss * left, miss)
    return 1.0 - miss
