"""`start_from`: a new run begins with the student of another, with its heads and, if asked, its optimiser's state."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from distill.recipe import Recipe
from distill.recipe_models import StudentNode
from distill.student.model import Student
from distill.student.starting_weights import Start, find_start
from distill.targets.targets import Targets
from distill.training.checkpoint import STATE
from distill.training.engine_state import EngineState, read_student

#: Of a teacher's node: where its weights are, and how they are run, not what is asked of them.
WHERE = ("spec", "weights", "pretrained", "digest", "licence", "chunk", "max_memory", "trust_remote_code")


@dataclass(frozen=True)
class Beginning:
    """Where a new run begins: the weights of `start`, and of a checkpoint of the same teachers all that goes along."""

    start: Start
    whole: bool  #: whether heads and normalisers go along: they do for the same teachers with the same weights

    @property
    def statistics(self) -> Path | None:
        """What the normalisers are taken from; None: estimated anew."""
        return self.start.path if self.whole else None


def find_beginning(recipe: Recipe, targets: Targets) -> Beginning | None:
    """What the recipe starts from, None for nothing. UserError where it is not there or cannot do what is asked."""
    if recipe.start_from is None:
        return None
    start = find_start(recipe.start_from)
    whole = start.checkpoint and _same_teachers(start, recipe, targets)
    if recipe.start_optimiser and not whole:
        what = "has other teachers" if start.checkpoint else "is no checkpoint"
        raise UserError(f"start_optimiser: {start.path} {what}, so the optimiser's state does not fit")
    return Beginning(start, whole)


def student_node(recipe: Recipe, beginning: Beginning | None) -> StudentNode:
    """The recipe's student, with the weights it begins with."""
    if beginning is None:
        return recipe.student
    return recipe.student.model_copy(update={"weights": str(beginning.start.path)})


def begin_with_heads(student: Student, beginning: Beginning) -> str:
    """Put the heads in where they go along and fit; returns what to say of it."""
    text = f"beginning with the weights of {beginning.start.path}"
    if not beginning.whole:
        return f"{text}; heads and normalisers are new"
    theirs, own = read_student(beginning.start.path), student.state_dict()
    heads = {name: tensor for name, tensor in theirs.items() if not name.startswith("vit.")}
    fit = {name: t for name, t in heads.items() if name in own and own[name].shape == t.shape}
    student.load_state_dict(fit, strict=False)
    new = sorted({name.split(".")[1] for name in own if not name.startswith("vit.") and name not in fit})
    return f"{text}, its heads and normalisers" + (f"; new heads for {', '.join(new)}" if new else "")


def begin_with_optimiser(engine: EngineState, beginning: Beginning) -> None:
    """Weights and moments as they were; UserError where the engine or the student is another one."""
    try:
        engine.restore(beginning.start.path, random=False)
    except (RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"start_optimiser: the optimiser's state of {beginning.start.path} does not fit this run ({reason}); "
            "leave start_optimiser out to take the weights alone"
        ) from error


def _same_teachers(start: Start, recipe: Recipe, targets: Targets) -> bool:
    identity: dict[str, Any] = json.loads((start.path / STATE).read_text(encoding="utf-8"))["identity"]
    wanted = {key: value for key, value in targets.digests().items() if key.startswith("digest of teacher ")}
    return all(identity.get(key) == value for key, value in wanted.items()) and all(
        _asked(identity, name) == _asked(recipe.fingerprint(), name) for name in targets.teachers
    )


def _asked(identity: Mapping[str, Any], teacher: str) -> dict[str, Any]:
    """What a teacher's node says besides where its weights are: another level of the same weights is another map."""
    prefix = f"teachers.{teacher}.backbone."
    asked = {name.removeprefix(prefix): value for name, value in identity.items() if name.startswith(prefix)}
    return {name: value for name, value in asked.items() if name not in WHERE}
