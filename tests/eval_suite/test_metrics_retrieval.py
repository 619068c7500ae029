"""Recall at K against torchmetrics' hit rate; several captions an image; ties."""

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate

from common.errors import UserError
from eval_suite.metrics.retrieval import hit_probability, recall_at_k


def diagonal(images: int, captions: int) -> tuple[torch.Tensor, torch.Tensor]:
    owner = torch.arange(images).repeat_interleave(captions)
    return (owner[None, :] == torch.arange(images)[:, None]).double(), owner


def test_diagonal_is_perfect_both_ways() -> None:
    result = recall_at_k(*diagonal(10, 5), k=1)
    assert (result.text_to_image.value, result.image_to_text.value) == (100.0, 100.0)
    assert (result.text_to_image.n, result.image_to_text.n) == (50, 10)


def test_one_misplaced_caption() -> None:
    similarity, owner = diagonal(10, 5)
    similarity[:, 7] = 0.0
    similarity[4, 7] = 0.9  # below the other image's own captions, so that image still finds one of its own
    result = recall_at_k(similarity, owner, k=1)
    assert result.text_to_image.value == pytest.approx(98.0)
    assert result.image_to_text.value == pytest.approx(100.0)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_equals_torchmetrics_hit_rate(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    similarity = torch.randn(12, 36, generator=generator)
    owner = torch.cat([torch.arange(12), torch.randint(0, 12, (24,), generator=generator)])
    positive = owner[None, :] == torch.arange(12)[:, None]
    result = recall_at_k(similarity, owner, k)
    for ours, scores, hits in (
        (result.image_to_text, similarity, positive),
        (result.text_to_image, similarity.T, positive.T),
    ):
        query = torch.arange(len(scores))[:, None].expand_as(scores)
        outside = RetrievalHitRate(top_k=k)(scores.flatten(), hits.flatten(), indexes=query.flatten())
        assert ours.value == pytest.approx(100 * float(outside), abs=1e-4)


@pytest.mark.parametrize("k", [1, 3])
def test_a_backbone_that_says_the_same_of_everything_scores_chance(k: int) -> None:
    _, owner = diagonal(20, 5)
    result = recall_at_k(torch.full((20, 100), 0.3), owner, k)
    assert result.text_to_image.value == pytest.approx(100 * k / 20)
    miss = np.prod([(95 - drawn) / (100 - drawn) for drawn in range(k)])
    assert result.image_to_text.value == pytest.approx(100 * (1 - miss))


def test_ties_equal_the_average_over_random_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (6, 15), generator=generator).double()
    positive = torch.rand(6, 15, generator=generator) < 0.25
    positive[:, 0] = True
    hits = torch.zeros(6, dtype=torch.float64)
    for _ in range(4000):
        shuffled = scores + 1e-6 * torch.rand(scores.shape, generator=generator, dtype=torch.float64)
        hits += positive.gather(1, shuffled.topk(3, dim=1).indices).any(1)
    torch.testing.assert_close(hit_probability(scores, positive, 3), hits / 4000, atol=0.03, rtol=0)


def test_bad_input_is_refused() -> None:
    similarity, owner = diagonal(4, 2)
    with pytest.raises(UserError, match="a caption for each"):
        recall_at_k(similarity, torch.zeros(8, dtype=torch.long), 1)
    with pytest.raises(UserError, match="not finite"):
        recall_at_k(similarity * float("nan"), owner, 1)
