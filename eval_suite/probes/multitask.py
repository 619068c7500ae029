"""PASCAL-Context and NYUDv2 style probe: one convolution head learns several dense tasks at once."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from common.recipes import Pixels, Rate
from eval_suite.features import ProbedBackbone
from eval_suite.maps import best_class, unit
from eval_suite.metrics.boundaries import NYUD, PASCAL, Boundaries
from eval_suite.metrics.depth import Depth
from eval_suite.metrics.normals import Normals
from eval_suite.metrics.saliency import Saliency
from eval_suite.metrics.segmentation import Segmentation
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.heads import ConvHead, batches, seeded, shrink_labels, train
from eval_suite.probes.losses import balanced_loss, class_loss, depth_loss, edge_loss, normal_loss
from eval_suite.readers.contracts import TEST, TRAIN, DenseImages, LabelledData
from eval_suite.readers.label_files import BY_ANNOTATOR
from eval_suite.results import Result

CLASSES, SALIENCY, DEPTH, NORMALS, EDGE = "classes", "saliency", "depth", "normals", "edge"
REPORTED = {
    CLASSES: ("miou", True),
    SALIENCY: ("maxf", True),
    DEPTH: ("rmse", False),
    NORMALS: ("mean", False),
    EDGE: ("odsf_py", True),
}
BY_PEOPLE = "odsf_by_annotator_py"  #: odsf_py where each person's drawing judges by itself: not the same number
FARTHEST = 80.0  #: metres; what lies behind does not count
LEVELS = 240  #: of a kept probability: every threshold of the saliency metric, k / 20, is one of them
TASKS = {
    "semantic": CLASSES,
    "kind": CLASSES,
    "part": CLASSES,
    "saliency": SALIENCY,
    "depth": DEPTH,
    "normals": NORMALS,
    "edge": EDGE,
}


class MultitaskProbe(ProbeNode):
    """3x3 conv, BN, GELU, then 1x1 per task, trained on the weighted sum of the tasks' losses.

    Loss kinds and weights follow the harness the paper used (semseg 1, parts 2, saliency 5, normals 10, depth 1);
    the backbone is frozen here, and labels are judged at their own resolution, finer than the token grid.
    """

    probe: Literal["multitask"]
    subset: str | None = None  #: only images of this group of the data, e.g. indoor
    tasks: dict[str, Annotated[float, Field(gt=0)]]  #: label name -> loss weight
    hidden: int = Field(default=64, gt=0)  #: channels of the shared convolution
    steps: int = Field(gt=0)  #: updates of the heads
    batch: int = Field(default=16, gt=0)  #: images of an update
    label_size: Pixels = 56  #: side of the labels it learns from
    learning_rate: Rate = 2e-3  #: at the start
    weight_decay: float = Field(default=1e-4, ge=0)  #: of the heads

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: dict[str, float]) -> dict[str, float]:
        for name in tasks:
            if name not in TASKS:
                raise ValueError(f"no task {name}; known: {', '.join(TASKS)}")
        if not tasks:
            raise ValueError("at least one task")
        return tasks

    def needs(self) -> list[Need]:
        return [Need("dense", split, tuple(self.tasks)) for split in (TRAIN, TEST)]

    def test_set(self, data: LabelledData, seed: int) -> str:
        return super().test_set(data, seed) + ("" if self.subset is None else f":{self.subset}")

    def tested(self, data: LabelledData) -> DenseImages:
        return self._images(data, TEST)

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        learn, judge = self._images(data, TRAIN), self._images(data, TEST)
        head = self._fit(backbone.features(learn.images).spatial[learn.rows], learn, seed)
        spatial = backbone.features(judge.images).spatial[judge.rows]
        return self._judge(backbone, head, spatial, judge, seed)

    def _images(self, data: LabelledData, split: str) -> DenseImages:
        images = data.dense(split)
        return images if self.subset is None else images.subset(self.subset)

    def _fit(self, spatial: Tensor, learn: DenseImages, seed: int) -> "ScaledHead":
        with seeded(seed):
            head = ScaledHead(spatial, learn, self.tasks, self.hidden)
        generator = torch.Generator().manual_seed(seed)
        size = (self.label_size, self.label_size)

        def loss_of(batch: Tensor) -> Tensor:
            outputs = head(spatial[batch], size)
            losses = [
                weight * _loss(task, outputs[task], learn.labels(task)[batch], size)
                for task, weight in self.tasks.items()
            ]
            return torch.stack(losses).sum()

        train(
            head,
            loss_of,
            batches(len(spatial), self.batch, self.steps, generator),
            steps=self.steps,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        return head

    @torch.no_grad()
    def _judge(
        self, backbone: ProbedBackbone, head: "ScaledHead", spatial: Tensor, judge: DenseImages, seed: int
    ) -> list[Result]:
        metrics = {task: _metric(task, judge, self.group) for task in self.tasks}
        kept: dict[str, list[Tensor]] = {}
        for rows in torch.arange(len(spatial)).split(50):
            outputs: dict[tuple[int, ...], dict[str, Tensor]] = {}  # by size: most labels share one
            for task, metric in metrics.items():
                truth = judge.labels(_judged_by(task, judge))[rows]
                size = (truth.shape[-2], truth.shape[-1])
                if size not in outputs:
                    outputs[size] = head(spatial[rows], size)
                answer = _answer(task, outputs[size][task])
                metric.update(answer, truth)
                if backbone.predictions is not None:
                    kept.setdefault(f"{task}/predicted", []).append(_compact(task, answer))
                    kept.setdefault(f"{task}/labels", []).append(truth)
        results = []
        for task, metric in metrics.items():
            key, higher = REPORTED[TASKS[task]]
            classes = judge.names[task] if TASKS[task] == CLASSES else ()
            named = _reported(task, judge)
            score = metric.scores()[key]
            results.append(self.result(named, score, seed, higher_is_better=higher, classes=classes))
        arrays = {name: torch.cat(parts) for name, parts in kept.items()}
        told = {task: self._scored_as(task, judge) for task in self.tasks}
        self.keep(backbone, "several", judge.images, judge.rows, lambda: arrays, tasks=told)
        return results

    def _scored_as(self, task: str, judge: DenseImages) -> dict[str, Any]:
        """What `predictions.SCORERS` needs to score a task again: its kind, that kind's options, and our metric's
        name."""
        kind = TASKS[task]
        options: dict[str, Any] = {
            CLASSES: {"kind": "segmentation", "classes": len(judge.names.get(task, ()))},
            SALIENCY: {"kind": "saliency", "levels": LEVELS},
            DEPTH: {"kind": "depth", "farthest": FARTHEST},
            NORMALS: {"kind": "normals"},
            EDGE: {"kind": "boundaries", "farthest": NYUD if self.group == "nyudv2" else PASCAL},
        }
        return options[kind] | {"names": {REPORTED[kind][0]: _reported(task, judge)}}


class ScaledHead(torch.nn.Module):
    """A convolution head whose depth is read in metres around the mean of the training set."""

    def __init__(
        self,
        spatial: Tensor,
        learn: DenseImages,
        tasks: Mapping[str, float],
        hidden: int,
    ) -> None:
        super().__init__()
        self.head = ConvHead(spatial, hidden, {task: _outputs(task, learn) for task in tasks})
        depth = _valid_depth(learn) if DEPTH in tasks else torch.ones(2)
        self.register_buffer("depth_mean", depth.mean())
        self.register_buffer("depth_scale", depth.std().clamp(min=1e-3))

    def forward(self, spatial: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        outputs = self.head(spatial, size)
        if DEPTH in outputs:
            outputs[DEPTH] = outputs[DEPTH] * self.depth_scale + self.depth_mean
        return outputs


def _judged_by(task: str, images: DenseImages) -> str:
    """The label that judges a task: every person's drawing where a set has them, else what was learnt from."""
    each = f"{task}{BY_ANNOTATOR}"
    return each if each in images.maps else task


def _reported(task: str, images: DenseImages) -> str:
    """What a task's result is called."""
    return f"{task}_{BY_PEOPLE if _judged_by(task, images) != task else REPORTED[TASKS[task]][0]}"


def _compact(task: str, answer: Tensor) -> Tensor:
    """An answer as it is kept: classes and probabilities in a byte, the rest in two."""
    kind = TASKS[task]
    if kind == CLASSES:
        return answer.byte()
    if kind == SALIENCY:
        return (answer * LEVELS).floor().byte()
    return (unit(answer) if kind == NORMALS else answer).half()


def _outputs(task: str, images: DenseImages) -> int:
    kind = TASKS[task]
    return len(images.names[task]) if kind == CLASSES else 3 if kind == NORMALS else 1


def _valid_depth(images: DenseImages) -> Tensor:
    depth = images.labels(DEPTH)[torch.arange(len(images.rows))].float()
    valid = depth[depth > 0]
    return valid if len(valid) > 1 else torch.ones(2)


def _loss(task: str, output: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
    if TASKS[task] == NORMALS:
        return normal_loss(output, torch.nn.functional.interpolate(labels.float(), size=size, mode="nearest-exact"))
    target = shrink_labels(labels, size)
    return {CLASSES: class_loss, SALIENCY: balanced_loss, DEPTH: depth_loss, EDGE: edge_loss}[TASKS[task]](
        output, target
    )


def _metric(task: str, images: DenseImages, group: str) -> Boundaries | Segmentation | Saliency | Depth | Normals:
    kind = TASKS[task]
    if kind == EDGE:
        return Boundaries(farthest=NYUD if group == "nyudv2" else PASCAL)
    if kind == CLASSES:
        return Segmentation(len(images.names[task]))
    if kind == SALIENCY:
        return Saliency()
    return Depth(pool="pixel", max_depth=FARTHEST) if kind == DEPTH else Normals(pool="pixel")


def _answer(task: str, output: Tensor) -> Tensor:
    """What the metric of the task reads: classes [b, h, w], a probability, metres, or vectors [b, 3, h, w]."""
    kind = TASKS[task]
    if kind == CLASSES:
        return best_class(output)
    if kind in (SALIENCY, EDGE):
        return output[:, 0].sigmoid()
    return output[:, 0] if kind == DEPTH else output
