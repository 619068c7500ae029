"""A recipe once through at its true size, on whatever machine this is: what runs, how long, in how much memory.

Teachers are measured one after another, so that the largest decides the memory and not their sum; the student then
trains against stand-ins of their widths and grids, which is all it sees of them.
"""

from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from distill.recipe import Recipe
from distill.smoke.kept import depends_of_student, depends_of_teacher, keep, kept_file, machine, read_kept
from distill.smoke.measured import Part, as_table, run_device
from distill.smoke.student_parts import smoke_recipe, student_parts
from distill.smoke.teacher_parts import teacher_parts
from distill.training.engine import wants_bf16

STUDENT = "student"


def smoke(recipe: Recipe, only: list[str]) -> str:
    """The table, whose rows are printed as they come. only: teachers, or "student"; empty: all of them.

    What an earlier start measured to its end is taken from there.
    """
    known = [STUDENT, *recipe.teachers]
    for name in only:
        if name not in known:
            raise UserError(f"--part {name}: the parts of {recipe.name} are {', '.join(known)}")
    parts: list[Part] = []
    for name in dict.fromkeys(only or [*recipe.teachers, STUDENT]):
        parts += _shown(recipe, name)
    return as_table(f"{recipe.name}, one image a partition, {machine()}", parts)


def _shown(recipe: Recipe, name: str) -> list[Part]:
    """The rows of a teacher or of the student: those of an earlier start, or measured now and kept."""
    device = run_device()
    bf16 = wants_bf16(recipe.engine, device)
    student = name == STUDENT
    small = smoke_recipe(recipe, Path(recipe.out)) if student else recipe
    path = kept_file(
        recipe, name, depends_of_student(small) if student else depends_of_teacher(recipe, name, bf16=bf16)
    )
    if made := read_kept(path):
        print(f"{name}: measured before, {path}; delete that file, and it is measured again", flush=True)
        return made
    found: Iterator[Part] = student_parts(small) if student else teacher_parts(recipe, name, device, bf16=bf16)
    for part in found:
        print(as_table("", [part]).splitlines()[-1], flush=True)
        made.append(part)
    keep(path, made)
    return made
