"""Instance retrieval as revisited Oxford and Paris score it: average precision by trapezoids, junk removed."""

import torch
from torch import Tensor

from common.errors import UserError
from eval_suite.metrics.score import Score, clustered_mean


def average_precision(ranks: Tensor, positives: int) -> float:
    """AP of a query from the 0-based ranks of its found positives (ascending, junk already removed).

    The area under (recall, precision) by trapezoids, precision before a hit at rank 0 being 1; not the mean of the
    precisions at the hits.
    """
    total = 0.0
    for found, rank in enumerate(ranks.tolist()):
        before = 1.0 if rank == 0 else found / rank
        total += (before + (found + 1) / (rank + 1)) / 2
    return total / positives


def mean_average_precision(similarity: Tensor, positive: Tensor, junk: Tensor) -> Score:
    """similarity [Q, G], positive and junk bool [Q, G] -> mAP in percent over the queries that have a positive.

    Equal similarities keep the gallery's order. Junk images are taken out of the ranking.
    """
    if not torch.isfinite(similarity).all():
        raise UserError("a similarity is not finite; check the features for NaN")
    asked = positive.any(1).nonzero().flatten()
    if not len(asked):
        raise UserError("no query has a positive image at this difficulty")
    values = []
    for query in asked.tolist():
        order = similarity[query].argsort(descending=True, stable=True)
        order = order[~junk[query][order]]
        ranks = positive[query][order].nonzero().flatten()
        values.append(average_precision(ranks, int(positive[query].sum())))
    share = (positive[asked].sum(1) / (~junk[asked]).sum(1)).mean()  # of a ranking at random, nearly
    score = clustered_mean(torch.tensor(values, dtype=torch.float64), asked, scale=100.0)
    return score.with_floor(100.0 * float(share))
