"""One training step as an object: images in, loss and report out. Nothing else in the loop knows a teacher."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.align import common_grid, resize_map
from distill.losses import SPATIAL_LOSSES, SUMMARY_LOSSES
from distill.recipe import Recipe
from teachers.contracts import Features

Predict = Callable[[Tensor], Mapping[str, Features]]


@dataclass(frozen=True)
class StepResult:
    """`loss` is the sum of `report`, which holds the very tensors that were summed ("clip/spatial", ...), detached."""

    loss: Tensor
    report: dict[str, Tensor]


class DistillStep:
    """images [B, 3, H, W] in [0, 1] -> StepResult. `student` and `targets` both map images to Features per teacher."""

    def __init__(self, student: Predict, targets: Predict, recipe: Recipe) -> None:
        self.student = student
        self.targets = targets
        self.align = recipe.align
        self.weights = {name: teacher.weight for name, teacher in recipe.teachers.items()}
        self.summary_loss = SUMMARY_LOSSES[recipe.loss.summary]
        self.spatial_loss = SPATIAL_LOSSES[recipe.loss.spatial]

    def __call__(self, images: Tensor) -> StepResult:
        """Teachers' targets, the student's answer, and the weighted losses between them."""
        return self.learn(images, self.look(images))

    def look(self, images: Tensor) -> Mapping[str, Features]:
        """What is to be learned from these images."""
        return self.targets(images)

    def learn(self, images: Tensor, targets: Mapping[str, Features]) -> StepResult:
        """The student's answer, compared with what `look` gave for the same images."""
        answers = self.student(images)
        terms: dict[str, Tensor] = {}
        for name in self.weights:
            terms |= self._terms(name, answers[name], targets[name])
        loss = torch.stack(list(terms.values())).sum()
        return StepResult(loss, {name: term.detach() for name, term in terms.items()})

    def _terms(self, name: str, answer: Features, target: Features) -> dict[str, Tensor]:
        weight = self.weights[name]
        terms = {}
        if weight.summary:
            terms[f"{name}/summary"] = weight.summary * self.summary_loss(answer.summary, target.summary)
        if weight.spatial:
            ours, theirs = answer.spatial, target.spatial
            grid = common_grid(self.align, tuple(ours.shape[-2:]), tuple(theirs.shape[-2:]))
            terms[f"{name}/spatial"] = weight.spatial * self.spatial_loss(
                resize_map(ours, grid), resize_map(theirs, grid)
            )
        return terms
