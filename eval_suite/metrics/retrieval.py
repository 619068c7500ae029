"""Image-text retrieval: recall at K in both directions, several captions an image."""

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Ranks:
    """Of each query [Q] how many of the gallery are more alike than its best positive, how many are as alike, and how
    many of those are positives: all that recall at any k hangs on."""

    ahead: Tensor
    ties: Tensor
    ours: Tensor

    def hit(self, k: int) -> Tensor:
        """Chance that a positive is among the k best, ties broken at random, [Q]."""
        places = (k - self.ahead).clamp(min=0)
        miss = torch.ones(len(places), dtype=torch.float64, device=places.device)
        for drawn in range(int(places.max())):  # draw the places out of the tied one by one, meeting no positive
            left = (self.ties - self.ours - drawn).clamp(min=0) / (self.ties - drawn).clamp(min=1)
            miss = torch.where(drawn < places, miss * left, miss)
        return 1.0 - miss


def ranks_of(scores: Tensor, positive: Tensor) -> Ranks:
    """scores [Q, G], and which of the gallery are positives, bool [Q, G]."""
    best = scores.masked_fill(~positive, float("-inf")).amax(1, keepdim=True)
    tied = scores == best
    return Ranks((scores > best).sum(1), tied.sum(1), (tied & positive).sum(1))


def both_ways(similarity: Tensor, owner: Tensor) -> tuple[Ranks, Ranks]:
    """similarity [I, T] of images and captions, owner int [T] the image of each caption -> the ranks of captions'
    images, and of images' captions."""
    images, captions = similarity.shape
    owner = owner.long().to(similarity.device)
    if owner.shape != (captions,) or len(torch.unique(owner)) != images:
        raise UserError(f"retrieval needs a caption for each of the {images} images and one owner per caption")
    if not torch.isfinite(similarity).all():
        raise UserError("a similarity is not finite; check the image and text features for NaN")
    positive = owner[None, :] == torch.arange(images, device=similarity.device)[:, None]
    return ranks_of(similarity.T, positive.T), ranks_of(similarity, positive)


def recall_of(ranks: tuple[Ranks, Ranks], owner: Tensor, k: int) -> Retrieval:
    """The ranks of `both_ways` -> recall at k both ways, with the floor of a backbone that says the same of everything.

    A query is right when any of its positives is in the top k (CLIP's rule, not the share of positives). Equal
    similarities count as drawn in random order, so a backbone that says the same of everything scores chance. The
    standard error draws images, each with all its captions; it leaves out that the gallery changes with them.
    """
    counts = torch.bincount(owner.long().cpu())
    captions, images = len(owner), len(counts)
    one, none = torch.ones(captions, dtype=torch.int64), torch.zeros(max(captions, images), dtype=torch.int64)
    blind_image = Ranks(none[:captions], one * images, one).hit(k)
    blind_text = Ranks(none[:images], torch.full((images,), captions), counts).hit(k)
    return Retrieval(
        clustered_mean(ranks[0].hit(k), owner, scale=100.0).with_floor(100.0 * float(blind_image.mean())),
        clustered_mean(ranks[1].hit(k), None, scale=100.0).with_floor(100.0 * float(blind_text.mean())),
    )


def recalls(ranks: tuple[Ranks, Ranks], owner: Tensor, at: Sequence[int]) -> dict[str, Score]:
    """Metric -> score at several k, both ways."""
    out = {}
    for k in at:
        found = recall_of(ranks, owner, k)
        out[f"text_to_image_recall{k}"] = found.text_to_image
        out[f"image_to_text_recall{k}"] = found.image_to_text
    return out


def recall_at_k(similarity: Tensor, owner: Tensor, k: int) -> Retrieval:
    """`recall_of` a table of similarities."""
    return recall_of(both_ways(similarity, owner), owner, k)


def hit_probability(scores: Tensor, positive: Tensor, k: int) -> Tensor:
    """Chance that a positive is among the k best of each row of scores [Q, G], ties broken at random -> [Q]."""
    return ranks_of(scores, positive).hit(k)
