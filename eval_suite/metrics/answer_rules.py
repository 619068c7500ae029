"""How each vision-language benchmark scores replies: one pure function a rule, replies in, named scores out.

Where two harnesses differ the rule says whose it is: `pope` is lmms-eval's strict yes or no, `pope_llava` LLaVA's word
search. Ratios are percent.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from common.errors import UserError, unknown
from eval_suite.metrics.answer_words import vqa_words
from eval_suite.metrics.answers import anls, exact, mean_answer, mme_score, relaxed, yes_no_f1
from eval_suite.metrics.mmmu_replies import choice_of, open_right
from eval_suite.metrics.score import Score

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "ocr")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
HANDWRITTEN_FORMULA = "HME100k"
REPLIES_TRIED = 6  #: common answers that are tried as the reply of a model that sees nothing


class Asked(Protocol):
    """What a rule reads of a question."""

    @property
    def row(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def others(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> tuple[str, ...]: ...


Rule = Callable[[Sequence[str], Sequence[Asked]], dict[str, Score]]


def score_replies(rule: str, replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    """Replies scored by the named rule; UserError for an unknown one or where the counts differ."""
    if rule not in RULES:
        raise unknown("scoring rule", rule, RULES)
    if len(replies) != len(questions) or not questions:
        raise UserError(f"{len(replies)} replies to {len(questions)} questions")
    found, blind = RULES[rule](replies, questions), blind_replies(rule, questions)
    return {name: score.with_floor(blind[name]) for name, score in found.items()}


def blind_replies(rule: str, questions: Sequence[Asked]) -> dict[str, float]:
    """What a rule gives to one reply to every question, the best for each score among the most common answers."""
    answers = Counter(answer for item in questions for answer in (item.answer, *item.others))
    replies = [answer for answer, _ in answers.most_common(REPLIES_TRIED)]
    found = [RULES[rule]([reply] * len(questions), questions) for reply in replies]
    return {name: max(scores[name].value for scores in found) for name in found[0]}


def vqa_accuracy(reply: str, answers: Sequence[str]) -> float:
    """TextVQA, VQAv2: each human answer is left out in turn, min(1, matches among the rest / 3), averaged."""
    said, humans = vqa_words(reply), [vqa_words(answer) for answer in answers]
    matches = humans.count(said)
    return sum(min(1.0, (matches - (human == said)) / 3) for human in humans) / len(humans)


def letter_of(reply: str, options: Sequence[str]) -> str:
    """The option a reply names by its text or by its letter; "" where it names none, or may name two.

    By text: the whole reply is one option's text, articles, case and punctuation aside. By letter: alone, "(B)", "B.
    ...", "B: ...", "answer is B", "option B". A and I that are words of a sentence ("A red cube", "I see ...") are no
    letters, nor is one that the reply calls wrong ("option B is wrong, ..."). Marks of emphasis and brackets around all
    of it are nothing. Where text and a marked letter name different options, or lines begin with different letters,
    none counts.
    """
    letters, plain = [chr(ord("A") + at) for at in range(len(options))], reply.strip()
    text = re.sub(r"[*`$]", "", plain).strip().removeprefix("[").removesuffix("]")
    named = {*_named(text, letters), *_by_text(plain, letters, options)} or _before_word(text, letters, options)
    return named.pop() if len(named) == 1 else ""


#: a letter at the start that nothing but an option's name can be: alone, in brackets, or before a mark
_MARKED = re.compile(r"\((?P<in>[A-Z])\)|(?P<bare>[A-Z])(?:[.):]+(?=\s|$)|\s*$|\n)")
#: what follows a letter is neither that it is wrong nor another letter beside it ("B or C", "B, C")
_NOT_WRONG = (
    r"(?!\s+(?:is|are|was|does|would)(?:\s+not\b|n't\b|\s+(?:\w+\s+)?(?:wrong|incorrect|false|out)\b))"
    r"(?!\s*(?:,|/|or\b|and\b)\s*(?:or\s+|and\s+)?\(?[A-Z]\)?(?:[\s.,;:!?]|$))"
)
#: a letter before a word: "B is right" ("A" and "I" only before a verb that an article or pronoun cannot precede)
_BEFORE_WORD = re.compile(rf"(?P<plain>[B-HJ-Z]){_NOT_WRONG}[\s,]|(?P<word>[AI]){_NOT_WRONG} (?:is|because|since)\b")
#: a line that begins with an option's letter and a mark
_LINE = re.compile(r"^\s*(?:\((?P<in>[A-Z])\)|(?P<bare>[A-Z])[.):]+(?=\s|$))", re.MULTILINE)
#: "the answer is B", "Answer: (B)", "option B"
_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice))(?i:\s+is)?\s*:?\s*"
    r"(?:\((?P<in>[A-Z])\)|(?P<word>[A-Z])(?=[.,:;!?)]|\s*$|\n)|(?P<plain>[B-HJ-Z])(?=\s)|(?P<verb>[AI])(?=\s+(?:is|or|and)\b))"
    + _NOT_WRONG
)


def _named(text: str, letters: Sequence[str]) -> set[str]:
    """Letters that nothing but the name of an option can be."""
    matches = [match for match in (_MARKED.match(text), *_LINE.finditer(text), *_NAMED.finditer(text)) if match]
    return {letter for match in matches for letter in match.groups() if letter in letters}


def _before_word(text: str, letters: Sequence[str], options: Sequence[str]) -> set[str]:
    """The letter that a reply begins with, where what follows makes it one: "B is right", "A red cube" of option A."""
    found = _BEFORE_WORD.match(text)
    if found:
        return {letter for letter in found.groups() if letter in letters}
    if text[:1] in letters and text[1:2] == " ":
        own = _words(options[letters.index(text[0])])
        return {text[0]} if own and own == _words(text[2:]) else set()
    return set()


def _by_text(reply: str, letters: Sequence[str], options: Sequence[str]) -> set[str]:
    """Options whose text the reply is: word for word, else but for articles, or behind their own "B. "."""
    behind = re.match(r"(?:\(?[A-Z]\)|[A-Z][.:])\s*(?=\S)", reply)
    texts = [reply] + ([reply[behind.end() :]] if behind else [])
    for plain in (str.strip, _plain, _words):
        same = {
            letter
            for letter, option in zip(letters, options, strict=True)
            if plain(option) and plain(option) in [plain(text) for text in texts]
        }
        if same:
            return same
    return set()


def _words(text: str) -> str:
    """Plain words without articles."""
    return " ".join(word for word in _plain(text).split() if word not in ("a", "an", "the"))


def mme_reply(reply: str) -> str:
    """yes, no or other: the whole reply, one letter, or its first four characters."""
    text = reply.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def llava_yes_no(reply: str) -> str:
    """LLaVA's POPE rule: the text before the first period is "no" if it holds the word no or not, else "yes"."""
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "no", "not") for word in words) else "yes"


def ocr_right(reply: str, answers: Sequence[str], kind: str) -> bool:
    """OCRBench: an answer occurs in the reply; formulas are compared without spaces."""
    said = reply.lower().strip().replace("\n", " ")
    if kind == HANDWRITTEN_FORMULA:
        said = said.replace(" ", "")
        return any(answer.strip().replace("\n", " ").replace(" ", "") in said for answer in answers)
    return any(answer.lower().strip().replace("\n", " ") in said for answer in answers)


def _answers(item: Asked) -> list[str]:
    return [item.answer, *item.others]


def _rows(questions: Sequence[Asked]) -> Tensor:
    return torch.tensor([item.row for item in questions])


def _mean(values: Sequence[float], questions: Sequence[Asked]) -> Score:
    return mean_answer(torch.tensor([float(value) for value in values], dtype=torch.float64), _rows(questions))


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def _exact(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    right = torch.stack([exact([reply], [one])[0] for reply, item in zip(replies, questions, strict=True)
                         for one in [_nearest_answer(reply, _answers(item))]])  # fmt: skip
    return {"exact_match": mean_answer(right, _rows(questions))}


def _nearest_answer(reply: str, answers: Sequence[str]) -> str:
    """The answer the reply equals, else the first."""
    return next((one for one in answers if float(exact([reply], [one])[0]) == 1), answers[0])


def _vqa(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    values = [vqa_accuracy(reply, _answers(item)) for reply, item in zip(replies, questions, strict=True)]
    return {"vqa_accuracy": _mean(values, questions)}


def _anls(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    return {"anls": mean_answer(anls(replies, [_answers(item) for item in questions]), _rows(questions))}


def _relaxed(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    """ChartQA: overall, and the human and augmented halves where both are asked."""
    right = relaxed(replies, [item.answer for item in questions])
    out = {"relaxed_accuracy": mean_answer(right, _rows(questions))}
    kinds = sorted({item.kind for item in questions})
    for kind in kinds if len(kinds) > 1 else ():
        keep = torch.tensor([item.kind == kind for item in questions])
        out[f"relaxed_accuracy_{kind}"] = mean_answer(right[keep], _rows(questions)[keep])
    return out


def _gqa(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    right = [_plain(reply) == _plain(item.answer) for reply, item in zip(replies, questions, strict=True)]
    return {"exact_match": _mean(right, questions)}


def _pope(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    """F1 of "yes" over all questions (lmms-eval), and the mean of the subsets' F1 (as LLaVA's paper reports)."""
    truth = [item.answer for item in questions]
    out = {"f1": yes_no_f1(replies, truth, _rows(questions))}
    right = [
        reply.strip().lower().strip(".") == item.answer.lower() for reply, item in zip(replies, questions, strict=True)
    ]
    out["accuracy"] = _mean(right, questions)
    kinds = sorted({item.kind for item in questions})
    if len(kinds) > 1:
        parts = [[at for at, item in enumerate(questions) if item.kind == kind] for kind in kinds]
        each = [yes_no_f1([replies[at] for at in part], [truth[at] for at in part], None).value for part in parts]
        out["f1_mean_of_subsets"] = Score(sum(each) / len(each), len(questions), None)
    return out


def _pope_llava(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    return _pope([llava_yes_no(reply) for reply in replies], questions)


def _mme(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    """Sums of the category scores (0..200 each); UserError for a category that MME does not have."""
    out: dict[str, Score] = {}
    sums: dict[str, list[Score]] = {}
    for kind in sorted({item.kind for item in questions}):
        part = [at for at, item in enumerate(questions) if item.kind == kind]
        right = torch.tensor([mme_reply(replies[at]) == questions[at].answer.lower().strip(".") for at in part])
        name = kind.lower()
        whole = "perception" if name in PERCEPTION else "cognition" if name in COGNITION else None
        if whole is None:
            raise unknown("MME category", kind, (*PERCEPTION, *COGNITION))
        sums.setdefault(whole, []).append(mme_score(right, _rows([questions[at] for at in part])))
    for whole, parts in sums.items():
        errors = [part.stderr for part in parts]
        stderr = None if None in errors else sum(error**2 for error in errors if error is not None) ** 0.5
        out[whole] = Score(sum(part.value for part in parts), sum(part.n for part in parts), stderr)
    return out


def _letter(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    right = [letter_of(reply, item.options) == item.answer for reply, item in zip(replies, questions, strict=True)]
    return {"accuracy": _mean(right, questions)}


def _ai2d(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    """lmms-eval's AI2D: "B. ..." names B, any other reply has to be the letter itself but for case and punctuation."""
    right = []
    for reply, item in zip(replies, questions, strict=True):
        found = re.match(r"\s*([A-Z])\.", reply)
        right.append(_plain(found[1] if found else reply) == item.answer.lower())
    return {"exact_match": _mean(right, questions)}


def _seed(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    """lmms-eval's SEED-Bench: the first character of the reply is the option, case aside."""
    right = [reply.strip()[:1].upper() == item.answer for reply, item in zip(replies, questions, strict=True)]
    return {"accuracy": _mean(right, questions)}


def _mmmu(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    """MMMU: options as its authors read them out of a reply, open questions by phrase or number."""
    right = [
        choice_of(reply, item.options) == item.answer if item.options else open_right(reply, _answers(item))
        for reply, item in zip(replies, questions, strict=True)
    ]
    return {"accuracy": _mean(right, questions)}


def _letter_or_exact(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    """An option's letter, or for open questions the answer in words."""
    right = [
        letter_of(reply, item.options) == item.answer
        if item.options
        else any(_plain(reply) == _plain(a) for a in _answers(item))
        for reply, item in zip(replies, questions, strict=True)
    ]
    return {"accuracy": _mean(right, questions)}


def _ocrbench(replies: Sequence[str], questions: Sequence[Asked]) -> dict[str, Score]:
    """Percent of the questions right; the published number is their count out of 1000."""
    right = [ocr_right(reply, _answers(item), item.kind) for reply, item in zip(replies, questions, strict=True)]
    return {"accuracy": _mean(right, questions)}


RULES: dict[str, Rule] = {
    "exact": _exact,
    "vqa": _vqa,
    "anls": _anls,
    "relaxed": _relaxed,
    "gqa": _gqa,
    "pope": _pope,
    "pope_llava": _pope_llava,
    "mme": _mme,
    "letter": _letter,
    "letter_or_exact": _letter_or_exact,
    "ai2d": _ai2d,
    "seed": _seed,
    "mmmu": _mmmu,
    "ocrbench": _ocrbench,
}
