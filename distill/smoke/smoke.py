"""A recipe once through at its true size, on whatever machine this is: what runs, how long, in how much memory.

Teachers are measured one after another, so that the largest decides the memory and not their sum; the student then
trains against stand-ins of their widths and grids, which is all it sees of them.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from common.errors import UserError
from distill.recipe import Recipe
from distill.smoke.measured import Part, as_table
from distill.smoke.student_parts import student_parts
from distill.smoke.teacher_parts import teacher_parts
from distill.training.engine import wants_bf16

STUDENT = "student"


def smoke(recipe: Recipe, only: list[str]) -> str:
    """The table, whose rows are printed as they come. only: teachers, or "student"; empty: all of them."""
    known = [STUDENT, *recipe.teachers]
    for name in only:
        if name not in known:
            raise UserError(f"--part {name}: the parts of {recipe.name} are {', '.join(known)}")
    parts = []
    for part in _parts(recipe, only or known):
        print(as_table("", [part]).splitlines()[-1], flush=True)
        parts.append(part)
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads of a CPU"
    return as_table(f"{recipe.name}, one image a partition, {kind}", parts)


def _parts(recipe: Recipe, names: list[str]) -> Iterator[Part]:
    bf16 = wants_bf16(recipe.engine, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for name in names:
        if name == STUDENT:
            yield from student_parts(recipe, Path(recipe.out))
        else:
            yield from teacher_parts(recipe, name, bf16=bf16)
