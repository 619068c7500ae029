"""Words for objects and places, shared by captions and questions."""

from collections.abc import Sequence
from dataclasses import dataclass

from imagery.scenes.scene import ObjectFacts
from imagery.scenes.vocab import MATERIAL_WORDS

NUMBER_WORDS = ("zero", "one", "two", "three", "four")


@dataclass(frozen=True)
class Query:
    """A description that fits objects: each attribute either fixed or, as None, free."""

    kind: str | None = None
    colour: str | None = None
    material: str | None = None

    def matches(self, fact: ObjectFacts) -> bool:
        """Whether the description fits this object."""
        return (
            self.kind in (None, fact.kind)
            and self.colour in (None, fact.colour)
            and self.material in (None, fact.material)
        )

    def phrase(self) -> str:
        """The words without an article, such as "red striped ball"."""
        material = MATERIAL_WORDS[self.material] if self.material else None
        return " ".join(word for word in (self.colour, material, self.kind or "object") if word)

    def plural(self) -> str:
        """The words for several, such as "red boxes"."""
        phrase = self.phrase()
        return phrase + ("es" if phrase.endswith("x") else "s")


def unique_query(fact: ObjectFacts, seen: Sequence[ObjectFacts], allowed: Sequence[tuple[str, ...]]) -> Query | None:
    """The first of the attribute lists in `allowed` that fits this object and no other one in sight, even in part."""
    for names in allowed:
        query = Query(**{name: getattr(fact, name) for name in names})
        if sum(query.matches(other) for other in seen) == 1:
            return query
    return None


def with_article(phrase: str) -> str:
    """ "a ball", "an orange box"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def glyph_words(glyph: str) -> str:
    """ "digit 7" or "letter K"."""
    return f"{'digit' if glyph.isdigit() else 'letter'} {glyph}"


def side_words(x: float) -> str:
    """Where a share of the picture's width lies."""
    return "on the left" if x < 0.37 else "on the right" if x > 0.63 else "in the middle"
