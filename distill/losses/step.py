"""One training step as an object: images in, loss and report out. Nothing else in the loop knows a teacher."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from distill.losses.align import Grid, common_grid, resize_map
from distill.losses.losses import position_loss, spatial_loss, summary_loss
from distill.losses.shift_equivariance import Shifts, overlap_mean
from distill.losses.teacher_dropping import Loss, drop, per_image
from distill.recipe import Recipe
from distill.schedule import Pass, schedule
from distill.student.ema import mesa
from distill.student.model import BACKBONE
from teachers.contracts import Features

Predict = Callable[[Tensor], Mapping[str, Features]]
Reduction = Callable[[Loss, Tensor, Tensor], Tensor]
STUDENT, AVERAGE = "_student", "_average"  #: viewers of shifted crops beside the teachers


class Average(Protocol):
    """The student's moving average, as far as MESA asks it."""

    def features(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class StepResult:
    """`loss` is the sum of `report`, which holds the very tensors that were summed ("clip/spatial", ...), detached."""

    loss: Tensor
    report: dict[str, Tensor]


class DistillStep:
    """images [B, 3, H, W] in [0, 1] -> StepResult. `student` and `targets` both map images to Features per teacher.

    dispersions: of every teacher's summaries (`distill.targets.dispersion`), needed by the angular loss alone.
    part: the pass it is for, None for the first of the recipe's schedule. scale: multiplies every term
    (`training.data.Role`). shifts: where everyone's crops lie, for a recipe with loss.shift; images are canvases.
    average: the student's moving average, for one with loss.mesa; the student then shows its `BACKBONE` too.
    """

    def __init__(
        self,
        student: Predict,
        targets: Predict,
        recipe: Recipe,
        dispersions: Mapping[str, float] | None = None,
        part: Pass | None = None,
        scale: float = 1.0,
        shifts: Shifts | None = None,
        average: Average | None = None,
    ) -> None:
        self.student = student
        self.targets = targets
        part = part or schedule(recipe)[0].passes[0]
        self.aligns = part.aligns
        self.partition = part.partition
        self.shifts = shifts
        self.average = average
        self.mesa_weight = recipe.loss.mesa
        self.scale = scale
        self.weights = {name: teacher.weight for name, teacher in part.teachers.items()}
        known = dispersions or {}
        self.summary_losses = {
            name: summary_loss(recipe.loss, known.get(name)) for name, weight in self.weights.items() if weight.summary
        }
        self.spatial_loss = spatial_loss(recipe.loss)
        self.position_loss = position_loss(recipe.loss) if recipe.loss.shift else None
        self.drop_teachers = recipe.loss.drop_teachers

    def __call__(self, images: Tensor) -> StepResult:
        """Teachers' targets, the student's answer, and the weighted losses between them."""
        return self.loss(images, self.make_targets(images))

    def make_targets(self, images: Tensor) -> Mapping[str, Features]:
        """The teachers' targets for these images; `loss` is then for the same ones."""
        if self.shifts:
            self.shifts.next_batch(self.partition)
        return self.targets(images)

    def loss(self, images: Tensor, targets: Mapping[str, Features]) -> StepResult:
        """The student's answer, compared with what `make_targets` gave for the same images."""
        shown = self.shifts.cut(images, STUDENT, self.partition) if self.shifts else images
        seen = (shown.shape[-2], shown.shape[-1])
        answers = dict(self.student(shown))
        body = answers.pop(BACKBONE, None)
        if self.drop_teachers:
            each = {name: self._terms(name, answers[name], targets[name], per_image, seen) for name in self.weights}
            terms = drop(each, self.drop_teachers)
        else:
            each = {name: self._terms(name, answers[name], targets[name], batch_mean, seen) for name in self.weights}
            terms = {f"{name}/{kind}": term for name, kinds in each.items() for kind, term in kinds.items()}
        if self.mesa_weight and body is not None:
            terms["mesa"] = self.mesa_weight * self._mesa(body.spatial, images, seen)
        if self.scale != 1:
            terms = {name: self.scale * term for name, term in terms.items()}
        loss = torch.stack(list(terms.values())).sum()
        for answer in self._unused(answers):
            loss = loss + 0 * answer.float().mean()
        return StepResult(loss, {name: term.detach() for name, term in terms.items()})

    def _unused(self, answers: Mapping[str, Features]) -> list[Tensor]:
        """What the student says to teachers that do not ask for it in this pass; their heads take a gradient of zero.

        A parameter without any gradient stops DistributedDataParallel, and each optimiser does something else with it.
        """
        asked = {name: (weight.summary, weight.spatial) for name, weight in self.weights.items()}
        return [
            answer
            for name, features in answers.items()
            for answer, weight in zip(features, asked.get(name, (0, 0)), strict=True)
            if answer is not None and not weight
        ]

    def _terms(
        self, name: str, answer: Features, target: Features, reduce: Reduction, pixels: Grid
    ) -> dict[str, Tensor]:
        weight = self.weights[name]
        terms = {}
        if weight.summary:
            assert answer.summary is not None and target.summary is not None  # their heads and teachers have one
            terms["summary"] = weight.summary * reduce(self.summary_losses[name], answer.summary, target.summary)
        if weight.spatial:
            ours, theirs = answer.spatial, target.spatial
            sizes = (ours.shape[-2], ours.shape[-1]), (theirs.shape[-2], theirs.shape[-1])
            grid = common_grid(self.aligns[name], *sizes)
            resized = resize_map(ours, grid), resize_map(theirs, grid)
            terms["spatial"] = weight.spatial * (
                self._shifted(self.position_loss, name, *resized, pixels, reduce)
                if self.shifts is not None and self.position_loss is not None
                else reduce(self.spatial_loss, *resized)
            )
        return terms

    def _shifted(
        self, loss: Loss, viewer: str, ours: Tensor, theirs: Tensor, pixels: Grid, reduce: Reduction
    ) -> Tensor:
        """The loss where the student and `viewer` saw the same place (equation 1), over maps of a common grid."""
        if self.shifts is None:
            raise ValueError("nothing is shifted")
        patches = self.shifts.between(STUDENT, viewer, self.partition, len(ours))
        tokens_a_patch = torch.tensor(ours.shape[-2:]) * self.shifts.patch / torch.tensor(pixels)
        each = overlap_mean(loss, ours, theirs, patches * tokens_a_patch)
        return each if reduce is per_image else each.mean()

    def _mesa(self, ours: Tensor, images: Tensor, pixels: Grid) -> Tensor:
        """Distance to what the moving average says of the same images, or of crops of its own (equation 2)."""
        if self.average is None:
            raise ValueError("loss.mesa needs the moving average")
        if self.shifts is None:
            return mesa(ours, self.average.features(images)).mean()
        theirs = self.average.features(self.shifts.cut(images, AVERAGE, self.partition))
        return self._shifted(mesa, AVERAGE, ours, theirs, pixels, batch_mean)


def batch_mean(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of the whole batch, a scalar."""
    return loss(student, teacher)
