"""A student in training, with what goes on beside its weights: its draws, the shifts, its moving average."""

from dataclasses import dataclass

import torch

from common.keyed_tensors import Draws
from distill.losses.shift_equivariance import Shifts
from distill.recipe import Recipe
from distill.schedule import student_patch
from distill.student.ema import MovingAverage
from distill.student.model import Student


@dataclass(frozen=True)
class TrainedStudent:
    """Told of every update: `begin` before anything of it, `update_average` once the weights have changed."""

    student: Student
    shifts: Shifts | None
    average: MovingAverage | None

    def begin(self, update: int) -> None:
        """What comes now belongs to update number `update` (1, 2, ...)."""
        self.student.begin(update)
        if self.shifts is not None:
            self.shifts.begin(update)

    def update_average(self) -> None:
        """The average's step towards the student; all processes must call it."""
        if self.average is not None:
            self.average.update()


def build_trained_student(student: Student, recipe: Recipe, rank: int, device: torch.device) -> TrainedStudent:
    """A student that is not on its engine yet, as the recipe trains it, in process number `rank`."""
    student.draws = Draws(recipe.student_seed, rank)
    student.returns_backbone = recipe.loss.mesa > 0
    shifts = Shifts(recipe.seed, rank, student_patch(recipe.student)) if recipe.loss.shift else None
    average = None if recipe.ema.decay is None else MovingAverage(student, recipe.ema.decay, device)
    return TrainedStudent(student, shifts, average)
