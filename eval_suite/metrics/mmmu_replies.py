"""Reading MMMU replies as its authors do: a letter anywhere in a choice, a number or phrase in an open reply.

After the rules of MMMU's evaluation (MMMU-Benchmark/MMMU eval/eval_utils.py, which lmms-eval keeps). One is refused:
where no option can be read out of a reply they draw one at random; here that reply is wrong, and scores reproducible.
"""

import re
from collections.abc import Sequence

#: what comes after one of these is the answer of a sentence
INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def choice_of(reply: str, options: Sequence[str]) -> str:
    """The letter of the option a reply names, the last one where it names several; "" where none can be read.

    In this order: (A), a letter before a space, a letter before a period, and in replies of more than five words the
    text of an option.
    """
    letters = [chr(ord("A") + at) for at in range(len(options))]
    text = reply
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for shape, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in letters if shape.format(letter) in text]
        if found:
            return max(found, key=lambda letter: text.rfind(place.format(letter)))
    if len(text.split()) > 5:
        lower = text.lower()
        said = [letter for letter, option in zip(letters, options, strict=True) if option.lower() in lower]
        if said:
            return max(said, key=lambda letter: lower.rfind(options[letters.index(letter)].lower()))
    return ""


def open_right(reply: str, answers: Sequence[str]) -> bool:
    """Whether the answering part of a reply holds one of the answers: as text, or as a number to two decimals."""
    wanted = [value for answer in answers for value in comparable(answer)]
    phrases = _phrases(reply)
    said = [*phrases, *(number for phrase in phrases for number in _numbers(phrase))]
    for value in (value for one in said for value in comparable(one)):
        if isinstance(value, float):
            if value in wanted:
                return True
        elif any(isinstance(want, str) and want in value for want in wanted):
            return True
    return False


def comparable(text: str) -> list[str | float]:
    """A number rounded to two decimals, or lower-case text; one letter alone has to stand beside a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def _phrases(reply: str) -> list[str]:
    """What stands behind an indicator in each line, the shortest such tail; the whole reply where there is none."""
    whole = reply.strip().strip(".").lower()
    lines = whole.split("\n")
    out = []
    for at, line in enumerate(lines):
        marks = (*INDICATORS, "=") if at == len(lines) - 1 else INDICATORS
        tails = [line.split(mark)[-1].strip() for mark in marks if mark in line]
        shortest = min((tail for tail in tails if tail), key=len, default="")
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            out.append(shortest)
    return out or [whole]


def _numbers(text: str) -> list[str]:
    return [number for pattern in _NUMBERS for number in pattern.findall(text)]
