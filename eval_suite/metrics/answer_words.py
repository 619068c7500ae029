"""Making answers comparable as the VQA evaluation server does: articles, number words, contractions, punctuation."""

import re

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = dict(
    zip(
        ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        ("0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"),
        strict=True,
    )
)
_NOT = ("ain", "aren", "can", "couldn", "didn", "doesn", "don", "hadn", "hasn", "haven", "isn", "mightn", "mustn",
        "needn", "oughtn", "shan", "shouldn", "wasn", "weren", "won", "wouldn")  # fmt: skip
_HAVE = ("could", "might", "must", "should", "would", "they", "you", "we", "i", "who")
_OTHERS = ("he's", "she's", "that's", "there's", "what's", "where's", "who's", "let's", "how's", "when's", "why's",
           "you're", "they're", "who're", "what're", "you'll", "they'll", "that'll", "who'll", "what'll",
           "you'd", "they'd", "who'd", "that'd", "how'd", "where'd", "i'm", "ma'am", "o'clock", "y'all", "'tis",
           "'twas")  # fmt: skip
_SPELLED = (*(f"{word}'t" for word in _NOT), *(f"{word}'ve" for word in _HAVE), *_OTHERS)
#: spelled without its apostrophe -> with it; words that are words of their own (were, well, ill, ...) are left alone
CONTRACTIONS = {word.replace("'", ""): word for word in _SPELLED}
PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_LONE_PERIOD = re.compile(r"(?<!\d)\.(?!\d)|(?<!\d)\.(?=\d)|(?<=\d)\.(?!\d)")


def vqa_words(answer: str) -> str:
    """An answer as the VQA evaluation compares it.

    Lower case; thousands separators go; punctuation goes where it stands beside a space (or the answer has a thousands
    separator) and becomes a space between letters; periods stay inside numbers only; number words become digits;
    articles go; contractions get their apostrophe.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip().lower()
    separated = _COMMA_IN_NUMBER.search(text) is not None
    for mark in dict.fromkeys(PUNCTUATION.findall(text)):
        beside_space = f"{mark} " in text or f" {mark}" in text
        text = text.replace(mark, "" if beside_space or separated else " ")
    text = _LONE_PERIOD.sub("", text)
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
