"""Short answers: the worked values of each rule, and outside implementations where they exist."""

import random

import pytest
import torch
from sklearn.metrics import f1_score
from torchmetrics.text import EditDistance

from common.errors import UserError
from eval_suite.metrics import answers


def test_exact_ignores_case_space_and_closing_punctuation() -> None:
    said = ["Red.", "  two  cubes ", "no", "left"]
    assert answers.exact(said, ["red", "two cubes", "yes", "left "]).tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_vqa_over_ten_people(matches: int, expected: float) -> None:
    people = ["red"] * matches + ["blue"] * (10 - matches)
    assert float(answers.soft_vqa(["red"], [people])) == pytest.approx(expected)


def test_anls_values() -> None:
    assert float(answers.anls(["hallo"], [["hello"]])) == pytest.approx(0.8)
    assert float(answers.anls(["xyz"], [["hello"]])) == 0.0
    assert float(answers.anls(["xyz"], [["hello", "XYZ"]])) == 1.0


def test_edit_distance_equals_torchmetrics() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abc", k=rng.randint(0, 9))) for _ in range(60)]
    outside = EditDistance(reduction="none")(words[:30], words[30:])
    ours = [answers.edit_distance(left, right) for left, right in zip(words[:30], words[30:], strict=True)]
    assert ours == outside.int().tolist()


def test_relaxed_numbers() -> None:
    said, true = ["104", "106", "50%", "Paris", "0", "0.0", "-95"], ["100", "100", "0.5", "paris", "0", "0", "-100"]
    assert answers.relaxed(said, true).tolist() == [1, 0, 1, 1, 1, 0, 1]  # a gold 0 is compared as text


def test_yes_no_f1_equals_scikit_learn() -> None:
    rng = random.Random(1)
    said, true = rng.choices(["yes", "no"], k=80), rng.choices(["Yes", "no."], k=80)
    outside = f1_score([t == "Yes" for t in true], [s == "yes" for s in said])
    assert answers.yes_no_f1(said, true, None).value == pytest.approx(100 * outside)


def test_an_unclear_reply_is_wrong_either_way() -> None:
    good = answers.yes_no_f1(["yes", "yes", "no"], ["yes", "yes", "no"], None).value
    assert good == 100.0
    assert answers.yes_no_f1(["yes", "perhaps", "no"], ["yes", "yes", "no"], None).value == pytest.approx(200 / 3)
    assert answers.yes_no_f1(["yes", "yes", "perhaps"], ["yes", "yes", "no"], None).value == pytest.approx(80.0)


def test_mme_of_one_image() -> None:
    images = torch.tensor([4, 4])
    assert answers.mme_score(torch.tensor([1, 1]), images).value == pytest.approx(200.0)
    assert answers.mme_score(torch.tensor([1, 0]), images).value == pytest.approx(50.0)


def test_mean_answer_draws_images() -> None:
    scores, images = torch.tensor([1.0, 1, 1, 0, 0, 0, 1, 1, 1]), torch.arange(3).repeat_interleave(3)
    score = answers.mean_answer(scores, images)
    assert (score.value, score.n) == (pytest.approx(200 / 3), 9)
    assert score.stderr == pytest.approx(100 / 3)
    with pytest.raises(UserError, match="nothing to score"):
        answers.mean_answer(torch.tensor([]), torch.tensor([]))


def test_as_many_answers_as_predictions() -> None:
    with pytest.raises(UserError, match="1 predictions for 2 answers"):
        answers.exact(["a"], ["a", "b"])
