"""Captions: several ways to tell what stands out in the picture, true and specific enough to find it among others."""

from collections.abc import Callable

import numpy as np

from imagery.scenes.phrases import glyph_words, side_words, with_article
from imagery.scenes.scene import ObjectFacts
from imagery.scenes.vocab import MATERIAL_WORDS
from imagery.scenes.world import World

_CANDIDATES = 5  # objects a caption may name
_NAMED = 4  # objects a caption does name at most


def captions(world: World, facts: list[ObjectFacts], rng: np.random.Generator) -> list[str]:
    """Five paraphrases; each names the main object and two or three of the next largest clear ones."""
    ranked = sorted((fact for fact in facts if fact.clear), key=lambda fact: -fact.pixels)
    main_instance = world.main + 1
    main = [fact for fact in facts if fact.instance == main_instance]
    others = [fact for fact in ranked if fact.instance != main_instance][: _CANDIDATES - len(main)]
    return [write(world, main, _choose(others, rng), rng) for write in _TEMPLATES]


def _choose(others: list[ObjectFacts], rng: np.random.Generator) -> list[ObjectFacts]:
    count = min(len(others), int(rng.integers(2, _NAMED)))
    return [others[index] for index in rng.permutation(len(others))[:count]]


def _noun(fact: ObjectFacts, rng: np.random.Generator, size: str = "") -> str:
    """ "large red striped box with the letter K"; the pattern is told two times in three, a readable glyph always."""
    material = MATERIAL_WORDS[fact.material] if rng.random() < 0.67 else ""
    words = " ".join(word for word in (size, fact.colour, material, fact.kind) if word)
    return words + (f" with the {glyph_words(fact.glyph)}" if fact.glyph_readable else "")


def _placed(fact: ObjectFacts, rng: np.random.Generator, size: str = "") -> str:
    return f"{with_article(_noun(fact, rng, size))} {side_words(fact.x)}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _ground(world: World) -> str:
    surface = "floor" if world.room is not None else "ground"
    return f"{world.ground_colour} {MATERIAL_WORDS[world.ground_pattern]} {surface}"


def _where(world: World) -> str:
    return "indoors" if world.room is not None else "outdoors"


def _listing(world: World, main: list[ObjectFacts], others: list[ObjectFacts], rng: np.random.Generator) -> str:
    parts = [_placed(fact, rng, "large") for fact in main] + [_placed(fact, rng) for fact in others]
    return f"{_where(world)}, {_join(parts)}" if parts else _empty(world)


def _on_ground(world: World, main: list[ObjectFacts], others: list[ObjectFacts], rng: np.random.Generator) -> str:
    parts = [with_article(_noun(fact, rng, "large")) for fact in main] + [
        with_article(_noun(fact, rng)) for fact in others
    ]
    return f"{_join(parts)} on {_ground(world)}" if parts else _empty(world)


def _relations(world: World, main: list[ObjectFacts], others: list[ObjectFacts], rng: np.random.Generator) -> str:
    """Tells the others by where they are seen from the main object."""
    if not main:
        return _listing(world, main, others, rng)
    parts = [f"{with_article(_noun(fact, rng))} {_relation(fact, main[0])}" for fact in others]
    start = f"{_where(world)}, {with_article(_noun(main[0], rng, 'large'))}"
    return f"{start} with {_join(parts)}" if parts else start


def _relation(fact: ObjectFacts, main: ObjectFacts) -> str:
    return "to its left" if fact.x < main.x else "to its right"


def _picture(world: World, main: list[ObjectFacts], others: list[ObjectFacts], rng: np.random.Generator) -> str:
    parts = [_placed(fact, rng) for fact in others] + [_placed(fact, rng, "large") for fact in main]
    return f"a picture taken {_where(world)} of {_join(parts)}" if parts else _empty(world)


def _short(world: World, main: list[ObjectFacts], others: list[ObjectFacts], rng: np.random.Generator) -> str:
    parts = [f"{fact.colour} {fact.kind}" for fact in main + others]
    return f"a scene {_where(world)} with {_join([with_article(part) for part in parts])}" if parts else _empty(world)


def _empty(world: World) -> str:
    return f"{_where(world)}, nothing but {_ground(world)}"


_Template = Callable[[World, list[ObjectFacts], list[ObjectFacts], np.random.Generator], str]
_TEMPLATES: tuple[_Template, ...] = (_listing, _on_ground, _relations, _picture, _short)
