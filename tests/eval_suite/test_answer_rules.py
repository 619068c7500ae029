"""Scoring rules of the vision-language benchmarks: the published cases, odd replies, every rule on its own."""

import pytest
from sklearn.metrics import f1_score
from test_readers_layouts import EXPECTED

from common.errors import UserError
from eval_suite.metrics.answer_rules import RULES, letter_of, llava_yes_no, mme_reply, score_replies, vqa_accuracy
from eval_suite.metrics.answer_words import vqa_words
from eval_suite.metrics.mmmu_replies import choice_of, open_right
from eval_suite.readers.contracts import AskedQuestion


def asked(
    answer: str, *, kind: str = "k", row: int = 0, others: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> AskedQuestion:
    return AskedQuestion(row, kind, "?", answer, others, options)


def value(rule: str, replies: list[str], questions: list[AskedQuestion], metric: str | None = None) -> float:
    found = score_replies(rule, replies, questions)
    return (found[metric] if metric else next(iter(found.values()))).value


@pytest.mark.parametrize(("equal", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_leaves_each_answer_out_in_turn(equal: int, expected: float) -> None:
    answers = ["cat"] * equal + [f"dog{n}" for n in range(10 - equal)]
    assert vqa_accuracy("A cat.", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("said", "same"),
    [
        ("The Dog", "dog"), ("two", "2"), ("None", "0"), ("dont", "don't"), ("1,000", "1000"), ("$3.50.", "$3.50"),
        ("black-and-white", "black and white"), ("yes , indeed !", "yes indeed"), ("U.S.A.", "usa"),
        ("an  apple\n", "apple"),
    ],
)  # fmt: skip
def test_answers_are_compared_as_the_vqa_server_does(said: str, same: str) -> None:
    assert vqa_words(said) == vqa_words(same)


@pytest.mark.parametrize("left,right", [("were", "we're"), ("3.5", "35"), ("dog", "dogs"), ("well", "we'll")])
def test_different_answers_stay_different(left: str, right: str) -> None:
    assert vqa_words(left) != vqa_words(right)


def test_anls_relaxed_and_gqa_cases() -> None:
    assert value("anls", ["hallo", "xyz"], [asked("hello"), asked("hello")]) == pytest.approx(40.0)
    assert value("anls", ["1996"], [asked("in 1996", others=("1996",))]) == 100.0
    assert (
        value("relaxed", ["104", "106", "0.5", "Red"], [asked("100"), asked("100"), asked("50%"), asked("red")]) == 75.0
    )
    assert value("relaxed", ["0", "0.04"], [asked("0"), asked("0")]) == 50.0  # a gold 0 is compared as text
    halves = score_replies("relaxed", ["1", "3"], [asked("1", kind="human"), asked("2", kind="augmented", row=1)])
    assert {name: score.value for name, score in halves.items()} == {
        "relaxed_accuracy": 50.0, "relaxed_accuracy_human": 100.0, "relaxed_accuracy_augmented": 0.0,
    }  # fmt: skip
    assert value("gqa", ["The Left.", "Left!"], [asked("left"), asked("left")]) == 50.0


def test_pope_strict_and_llavas_word_search_differ() -> None:
    replies = ["Yes", "No, there is not.", "There is no dog. Yes", "maybe"]
    truth = [
        asked("yes", kind="random"),
        asked("no", kind="random"),
        asked("no", kind="popular"),
        asked("no", kind="popular"),
    ]
    told = [llava_yes_no(reply) for reply in replies]
    assert told == ["yes", "no", "no", "yes"]
    expected = 100 * f1_score([1, 0, 0, 0], [int(word == "yes") for word in told])
    assert value("pope_llava", replies, truth, "f1") == pytest.approx(expected)
    assert value("pope", replies, truth, "f1") == pytest.approx(100 * 2 / 5)  # three unclear replies to a "no"
    assert value("pope", replies, truth, "accuracy") == 25.0
    assert value("pope_llava", replies, truth, "f1_mean_of_subsets") == pytest.approx((100.0 + 0.0) / 2)


def test_mme_pairs_and_sums() -> None:
    both = [asked("Yes", kind="existence"), asked("No", kind="existence")]
    assert value("mme", ["Yes, it is", "No."], both, "perception") == 200.0
    assert value("mme", ["Yes", "yes"], both, "perception") == 50.0
    both += [asked("Yes", kind="code_reasoning"), asked("No", kind="code_reasoning")]
    whole = score_replies("mme", ["yes", "no", "y", "n"], both)
    assert {name: score.value for name, score in whole.items()} == {"perception": 200.0, "cognition": 200.0}
    assert [mme_reply(text) for text in ("Y", "Nope", "The yes", "yesterday")] == ["yes", "no", "other", "yes"]
    with pytest.raises(UserError, match=r'unknown MME category "existance" .did you mean "existence"'):
        score_replies("mme", ["yes"], [asked("Yes", kind="existance")])


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("B", "B"), ("B.", "B"), ("(C)", "C"), ("A: leaf", "A"), ("The answer is B.", "B"), ("root", "B"), ("Because", ""),
     ("E", ""), ("", ""), ("D)", "D"), ("Apple", ""), ("a leaf", "A")],
)  # fmt: skip
def test_letters_of_options(reply: str, letter: str) -> None:
    assert letter_of(reply, ("leaf", "root", "stem", "seed")) == letter


def test_choices_open_questions_and_text_in_images() -> None:
    options = ("1", "2")
    questions = [asked("B", options=options), asked("Monet", row=1)]
    assert value("letter_or_exact", ["B", "monet."], questions) == 100.0
    assert value("letter", ["B", "A"], [asked("B", options=options)] * 2) == 50.0
    assert value("ocrbench", ["the word is CENTRE"], [asked("Centre")]) == 100.0
    assert value("ocrbench", ["a+b", "A + B"], [asked("a + b", kind="HME100k")] * 2) == 100.0
    assert value("exact", ["Two "], [asked("2", others=("two",))]) == 100.0


def test_every_benchmark_has_a_rule_and_counts_must_agree() -> None:
    assert {rule for rule, _ in EXPECTED.values()} <= set(RULES)
    with pytest.raises(UserError, match=r'unknown scoring rule "anl" .did you mean "anls"'):
        score_replies("anl", ["x"], [asked("x")])
    with pytest.raises(UserError, match="1 replies to 2 questions"):
        score_replies("vqa", ["x"], [asked("x")] * 2)


def test_questions_about_one_image_are_one_draw() -> None:
    questions = [asked("yes", row=row) for row in (0, 0, 1, 1, 2, 2)]
    score = score_replies("gqa", ["yes", "yes", "no", "no", "yes", "yes"], questions)["exact_match"]
    assert score.n == 6 and score.samples is not None and score.samples.units.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("B", "B"), ("(A)", "A"), ("(A) or rather (C).", "C"), ("I say B", "B"), ("Answer: C.", "C"), ("B. the root", "B"),
     ("it grows out of the root of the plant", "B"), ("the root", ""), ("", ""),
     ("a plant with a leaf and a root", "B")],
)  # fmt: skip
def test_mmmus_letters(reply: str, letter: str) -> None:
    assert choice_of(reply, ("leaf", "root", "stem")) == letter


@pytest.mark.parametrize(
    ("reply", "answers", "right"),
    [("7", ["7"], True), ("The answer is 7.", ["7"], True), ("x = 3\nso it is 1,250", ["1250"], True),
     ("17", ["7"], False), ("0.333", ["0.33"], True), ("It is Claude Monet.", ["monet"], True),
     ("Manet", ["monet"], False), ("5 m", ["7", "5"], True), ("x", ["x"], True), ("extra", ["x"], False),
     ("is x y", ["x"], True), ("1e3", ["1000"], True)],
)  # fmt: skip
def test_mmmus_open_questions(reply: str, answers: list[str], right: bool) -> None:
    assert open_right(reply, answers) is right


def test_ai2d_and_seed_read_letters_as_lmms_eval_does() -> None:
    options = ("leaf", "root")
    questions = [asked("B", options=options)] * 6
    replies = ["B", "b)", "B. root", "root", "The answer is B.", " B.leaf"]
    assert value("ai2d", replies, questions, "exact_match") == pytest.approx(100 * 4 / 6)
    assert value("seed", replies, questions, "accuracy") == pytest.approx(100 * 4 / 6)
    assert value("seed", ["Because"], questions[:1]) == 100.0  # the quirk: its first character is taken


def test_anls_compares_single_spaces_over_the_texts_as_they_stand() -> None:
    assert value("anls", ["a  b"], [asked("a b")]) == 100.0
    assert value("anls", ["a  c"], [asked("a b")]) == pytest.approx(75.0)  # one edit over four characters, not three
