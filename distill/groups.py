"""Which arms of an ablation can train on one and the same pass of the teachers."""

import json
from collections.abc import Iterable, Sequence
from typing import TypeVar

from distill.recipe import Recipe

Item = TypeVar("Item")


def upstream(recipe: Recipe) -> str:
    """Everything that decides which images the teachers see and what they say of them, as one string.

    Upsamplers, adapters, weights, losses, student, optimiser and the student's seed are downstream: arms that differ in
    those alone share every teacher forward. The engine counts as upstream, for precision and threads move the last bit.
    """
    teachers = {name: [node.backbone, node.chunk] for name, node in recipe.teachers.items()}
    plain = recipe.model_dump(mode="json", include={"seed", "data", "normaliser", "engine"})
    return json.dumps(plain | {"teachers": teachers, "batch_size": recipe.optim.batch_size}, sort_keys=True)


def group(items: Iterable[tuple[Item, Recipe]], most: int | None = None) -> list[list[Item]]:
    """Items of equal `upstream`, in the order they come, in groups of at most `most` (None: any number)."""
    groups: dict[str, list[Item]] = {}
    for item, recipe in items:
        groups.setdefault(upstream(recipe), []).append(item)
    return [part for members in groups.values() for part in split(members, most or len(members))]


def split(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Pieces of at most `size`, in order."""
    return [list(items[first : first + size]) for first in range(0, len(items), size)]
