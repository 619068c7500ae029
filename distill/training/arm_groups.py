"""Which arms of an ablation can train on one and the same pass of the teachers."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from distill.recipe import Recipe
from distill.schedule import Pass, schedule, student_patch

Item = TypeVar("Item")


def upstream(recipe: Recipe) -> str:
    """Everything that decides which images the teachers see and what they say of them, as one string.

    Upsamplers, adapters, weights, losses, student, optimiser and the student's seed are downstream: arms that differ in
    those alone share every teacher forward. The engine counts as upstream, for precision and threads move the last bit.
    """
    teachers = {name: [node.backbone, node.chunk] for name, node in recipe.teachers.items()}
    plain = recipe.model_dump(mode="json", include={"seed", "data", "normaliser", "engine", "start_from"})
    # PHI-S is measured on what the first stage shows, and a student's patch decides what `match` and mosaics are.
    shown = {name: [str(node.input), node.mosaic] for name, node in recipe.teachers.items()}
    stages = [[stage.name, *(passed(part) for part in stage.passes), stage.by_ranks] for stage in schedule(recipe)]
    steps = [node.steps for node in recipe.stages.values()]  # without stages, an arm may train longer than another
    resolution = {"stages": stages, "steps": steps, "shown": shown, "patch": student_patch(recipe.student)}
    pieces = {"accumulate": recipe.optim.accumulate}  # teachers look at a micro-batch at a time
    shift = {"shift": recipe.loss.shift}  # everyone's crop of a canvas
    return json.dumps(plain | {"teachers": teachers} | resolution | pieces | shift, sort_keys=True)


def passed(part: Pass) -> list[Any]:
    """What a pass shows, and to whom: not what is made of it."""
    shown = {name: [str(node.input), node.mosaic, node.chunk] for name, node in part.teachers.items()}
    return [part.partition, part.sizes, part.batch_size, part.ranks, part.augment.model_dump(mode="json"), shown]


def group(items: Iterable[tuple[Item, Recipe]], most: int | None = None) -> list[list[Item]]:
    """Items of equal `upstream`, in the order they come, in groups of at most `most` (None: any number)."""
    groups: dict[str, list[Item]] = {}
    for item, recipe in items:
        groups.setdefault(upstream(recipe), []).append(item)
    return [part for members in groups.values() for part in split(members, most or len(members))]


def split(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Pieces of at most `size`, in order."""
    return [list(items[first : first + size]) for first in range(0, len(items), size)]
