"""Questions with one-word answers that the picture decides, balanced so that knowing the usual answer helps little.

An object that is tiny, half hidden or cut off (not `clear`) is never asked about, and a question that it could decide
otherwise is not asked.
"""

import numpy as np

from imagery.scenes.phrases import NUMBER_WORDS, Query, unique_query, with_article
from imagery.scenes.scene import ObjectFacts, Question
from imagery.scenes.vocab import COLOURS, KINDS

_NAMES = (("kind",), ("colour", "kind"), ("material", "kind"), ("colour", "material", "kind"))
_COUNT_WEIGHTS = (1.2, 1.1, 1.1, 1.5, 4.0)  # large counts are rare, so they are asked when they occur
_SIDE_GAP = 0.08  # of the width, between two objects that are left and right of each other
_DEPTH_GAP = 0.6  # metres, between one in front and one behind


def questions(facts: list[ObjectFacts], rng: np.random.Generator) -> list[Question]:
    """Up to nine: two each on existence, colour, relation and glyphs, one count; fewer where a scene has none."""
    clear = [fact for fact in facts if fact.clear]
    if len(clear) < 2:
        return []
    found: list[Question | None] = []
    for ask in (_existence, _existence, _count, _colour, _colour, _relation, _relation, _glyph, _glyph):
        found.append(ask(clear, facts, rng))
    asked = {question.question: question for question in found if question is not None}
    return list(asked.values())


def _pick(items: list[ObjectFacts], rng: np.random.Generator) -> ObjectFacts:
    return items[rng.integers(len(items))]


def _existence(clear: list[ObjectFacts], facts: list[ObjectFacts], rng: np.random.Generator) -> Question | None:
    """Both answers combine attributes of objects that are there; for "no" the combination is of two objects."""
    attribute = "colour" if rng.random() < 0.6 else "material"
    wanted = bool(rng.random() < 0.5)
    for _ in range(30):
        first = _pick(clear, rng)
        second = first if wanted else _pick(clear, rng)
        query = Query(kind=second.kind, **{attribute: getattr(first, attribute)})
        if wanted or not any(query.matches(fact) for fact in facts):
            return Question("existence", f"is there {with_article(query.phrase())}?", "yes" if wanted else "no")
    return None


def _count(clear: list[ObjectFacts], facts: list[ObjectFacts], rng: np.random.Generator) -> Question | None:
    """Counts objects of a kind, a colour or a pattern that occurs; nought is asked of one that does not."""
    queries = [Query(kind=kind) for kind in KINDS] + [Query(colour=colour) for colour in COLOURS]
    by_answer: dict[int, list[Query]] = {}
    for query in queries:
        sure = sum(query.matches(fact) for fact in clear)
        if sure == sum(query.matches(fact) for fact in facts) and sure < len(NUMBER_WORDS):
            by_answer.setdefault(sure, []).append(query)
    if not by_answer:
        return None
    answers = sorted(by_answer)
    weights = np.array([_COUNT_WEIGHTS[answer] for answer in answers])
    answer = answers[int(rng.choice(len(answers), p=weights / weights.sum()))]
    query = by_answer[answer][rng.integers(len(by_answer[answer]))]
    return Question("count", f"how many {query.plural()} are there?", NUMBER_WORDS[answer])


def _colour(clear: list[ObjectFacts], facts: list[ObjectFacts], rng: np.random.Generator) -> Question | None:
    for index in rng.permutation(len(clear)):
        query = unique_query(clear[index], facts, (("kind",), ("material", "kind")))
        if query is not None:
            return Question("colour", f"what colour is the {query.phrase()}?", clear[index].colour)
    return None


def _relation(clear: list[ObjectFacts], facts: list[ObjectFacts], rng: np.random.Generator) -> Question | None:
    choice = rng.random()
    if choice < 0.2:
        return _closest(clear, facts, rng)
    for _ in range(8):
        first, second = _pick(clear, rng), _pick(clear, rng)
        names = [unique_query(fact, facts, _NAMES) for fact in (first, second)]
        if first is second or names[0] is None or names[1] is None:
            continue
        one, other = names[0].phrase(), names[1].phrase()
        if choice < 0.6:
            if abs(first.x - second.x) > _SIDE_GAP:
                text = f"is the {one} left or right of the {other}?"
                return Question("relation", text, "left" if first.x < second.x else "right")
        elif abs(first.distance - second.distance) > _DEPTH_GAP:
            text = f"is the {one} in front of or behind the {other}?"
            return Question("relation", text, "front" if first.distance < second.distance else "behind")
    return None


def _closest(clear: list[ObjectFacts], facts: list[ObjectFacts], rng: np.random.Generator) -> Question | None:
    """Asked when the closest object is clear and every other one, however small, is at least 20 cm farther."""
    ranked = sorted(facts, key=lambda fact: fact.distance)
    if not ranked[0].clear or ranked[1].distance - ranked[0].distance < 0.2:
        return None
    if rng.random() < 0.5:
        return Question("relation", "what is the closest object?", ranked[0].kind)
    return Question("relation", "what colour is the closest object?", ranked[0].colour)


def _glyph(clear: list[ObjectFacts], facts: list[ObjectFacts], rng: np.random.Generator) -> Question | None:
    readable = [fact for fact in clear if fact.glyph_readable]
    for index in rng.permutation(len(readable)):
        query = unique_query(readable[index], facts, _NAMES)
        if query is not None:
            text = f"which character is on the {query.phrase()}?"
            return Question("glyph", text, readable[index].glyph)
    return None
