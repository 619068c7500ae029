"""Scoring short answers: exact match, VQA soft accuracy, ANLS, relaxed numbers, yes/no F1, MME."""

import re
import string
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from common.errors import UserError
from eval_suite.metrics.score import Score, cluster_rows, clustered_mean, score_of

T = TypeVar("T")


def tidy(answer: str) -> str:
    """Lower case, single spaces, no punctuation at the ends."""
    return re.sub(r"\s+", " ", answer.strip().lower()).strip(string.punctuation + " ")


def exact(predictions: Sequence[str], answers: Sequence[str]) -> Tensor:
    """1 where the tidied prediction equals the tidied answer, else 0; [n]."""
    return _scores([tidy(said) == tidy(true) for said, true in _pairs(predictions, answers)])


def soft_vqa(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Tensor:
    """VQA accuracy [n]: leaving out each human answer in turn, min(1, matches / 3), averaged.

    Answers are compared after `tidy`; the contractions and number words of the EvalAI normaliser are not applied.
    """
    return _scores([_soft(tidy(said), [tidy(one) for one in many]) for said, many in _pairs(predictions, answers)])


def _soft(said: str, humans: list[str]) -> float:
    matches = humans.count(said)
    return sum(min(1.0, (matches - (human == said)) / 3) for human in humans) / len(humans)


def anls(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Tensor:
    """Normalised Levenshtein similarity [n]: the best over the answers, 0 when below one half (DocVQA, InfoVQA).

    As lmms-eval computes it: compared in lower case with single spaces, over the length of the longer one as it stands.
    """
    best = []
    for said, many in _pairs(predictions, answers):
        similarity = max(_similarity(said, true) for true in many)
        best.append(similarity if similarity >= 0.5 else 0.0)
    return _scores(best)


def _similarity(said: str, true: str) -> float:
    longest = max(len(said), len(true))
    left, right = (" ".join(text.lower().split()) for text in (said, true))
    return 1.0 - edit_distance(left, right) / longest if longest else 1.0


def edit_distance(left: str, right: str) -> int:
    """Levenshtein distance."""
    previous = list(range(len(right) + 1))
    for row, letter in enumerate(left, 1):
        current = [row]
        for column, other in enumerate(right, 1):
            replace = previous[column - 1] + (letter != other)
            current.append(min(previous[column] + 1, current[-1] + 1, replace))
        previous = current
    return previous[-1]


def relaxed(predictions: Sequence[str], answers: Sequence[str]) -> Tensor:
    """ChartQA's rule [n]: equal but for case, or a number within 5 % of the answer."""
    return _scores([_close(said, true) for said, true in _pairs(predictions, answers)])


def _close(said: str, true: str) -> bool:
    value, target = _number(said), _number(true)
    if value is not None and target:
        return abs(value - target) <= 0.05 * abs(target)
    return said.strip().lower() == true.strip().lower()


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def mean_answer(scores: Tensor, images: Tensor | None) -> Score:
    """Mean of per-question scores [n] in [0, 1], percent; questions about one image (int [n]) are one draw."""
    return clustered_mean(scores, images, scale=100.0)


def yes_no_f1(predictions: Sequence[str], answers: Sequence[str], images: Tensor | None) -> Score:
    """F1 of "yes", percent, over all questions (POPE); any reply but "yes" or "no" is a wrong one."""
    rows = torch.tensor([_yes_no(tidy(said), tidy(true)) for said, true in _pairs(predictions, answers)]).double()
    clusters = torch.arange(len(rows)) if images is None else images
    return score_of(cluster_rows(rows, clusters), _f1, len(rows), torch.unique(clusters))


def mme_score(correct: Tensor, images: Tensor) -> Score:
    """MME's category score, 0..200: percent of questions right plus percent of images with all questions right.

    correct [n] in {0, 1}, images int [n]. The standard error draws images.
    """
    correct = correct.double()
    counts = cluster_rows(torch.stack([correct, torch.ones_like(correct)], 1), images)
    whole = (counts[:, 0] == counts[:, 1]).double()
    rows = torch.cat([counts, whole[:, None], torch.ones_like(whole)[:, None]], 1)
    return score_of(rows, _mme, len(correct), torch.unique(images))


def _mme(sums: Tensor) -> Tensor:
    return 100.0 * (sums[..., 0] / sums[..., 1] + sums[..., 2] / sums[..., 3])


def _yes_no(said: str, true: str) -> tuple[bool, bool, bool]:
    """(hit, wrongly yes, missed yes); an unclear reply to a "no" is wrong, so it counts as a yes."""
    return said == "yes" == true, true == "no" and said != "no", true == "yes" and said != "yes"


def _f1(sums: Tensor) -> Tensor:
    hit, false, missed = sums.unbind(-1)
    return 100.0 * 2 * hit / (2 * hit + false + missed).clamp(min=1e-12)


def _pairs(predictions: Sequence[str], answers: Sequence[T]) -> list[tuple[str, T]]:
    if len(predictions) != len(answers) or not len(answers):
        raise UserError(f"{len(predictions)} predictions for {len(answers)} answers")
    return list(zip(predictions, answers, strict=True))


def _scores(values: Sequence[float]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)
