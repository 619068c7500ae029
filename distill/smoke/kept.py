"""Rows of earlier starts: a teacher or student that went through is kept, so that an interrupted smoke goes on.

A file is named by everything that its rows depend on. Recipes that show a teacher the same sizes share its rows.
"""

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from common.digests import digest_value, short
from common.errors import UserError
from common.json_files import read_json_object, write_json
from distill.planning.counting import Cost
from distill.recipe import Recipe
from distill.recipe_models import TeacherNode
from distill.schedule import schedule, student_patch
from distill.smoke.measured import Part

FOLDER = "smoke"  #: below the recipe's `out`


def kept_file(recipe: Recipe, name: str, depends: Any) -> Path:
    """Where the rows of a teacher, or of the student, are kept."""
    return Path(recipe.out) / FOLDER / f"{name}-{short(digest_value([name, machine(), depends]), 12)}.json"


def machine() -> str:
    """What the parts run on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads of a CPU"


def depends_of_teacher(recipe: Recipe, name: str, *, bf16: bool) -> Any:
    """What a teacher is shown anywhere in the schedule, and what sharpens it."""
    passes = [part for stage in schedule(recipe) for part in stage.passes if name in part.teachers]
    shown = [[_node(part.teachers[name]), [list(size) for size in part.sizes]] for part in passes]
    return [shown, student_patch(recipe.student), bf16, torch.__version__]


def _node(node: TeacherNode) -> dict[str, Any]:
    """The node without adapters that are there for other upsamplers: recipes differ in them."""
    used = node.denoise or node.adapters.get(node.upsampler)
    return node.model_dump(mode="json", exclude={"adapters"}) | {"adapter": used}


def depends_of_student(small: Recipe) -> Any:
    """The recipe of the student's smoke, wherever it runs."""
    return [small.model_dump(mode="json", exclude={"name", "out"}), torch.__version__]


def keep(path: Path, parts: Iterable[Part]) -> None:
    """Write the rows of a teacher or student that went through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"parts": [asdict(part) for part in parts]})


def read_kept(path: Path) -> list[Part]:
    """The rows; none where there is no file. UserError where it holds something else."""
    if not path.is_file():
        return []
    try:
        return [_part(row) for row in read_json_object(path)["parts"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no rows of a smoke ({error}); delete it, and they are measured again") from error


def _part(row: dict[str, Any]) -> Part:
    costs = {name: row[name] and Cost(**row[name]) for name in ("real", "planned")}
    return Part(**{field.name: row[field.name] for field in fields(Part)} | costs)
