"""Linear probe of semantic segmentation: how much of the label map do single tokens carry?"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from common.recipes import Pixels, Rate
from eval_suite.features import ProbedBackbone
from eval_suite.maps import best_class
from eval_suite.metrics.segmentation import Segmentation
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.heads import LinearHead, batches, seeded, shrink_labels, train
from eval_suite.probes.losses import class_loss
from eval_suite.readers.contracts import TEST, TRAIN, DenseImages, LabelledData
from eval_suite.results import Result


class SegmentationProbe(ProbeNode):
    """Normalisation and a 1x1 convolution on the last map, logits resized to the labels; mIoU over the whole set.

    RADIO's ADE20K head. It is convex and trained to a learning rate of zero on standardised features; labels are
    judged at their own resolution, finer than the token grid.
    """

    probe: Literal["segmentation"]
    group: str = "dense"
    labels: str  #: which label maps
    steps: int = Field(default=300, gt=0)  #: updates of the head
    batch: int = Field(default=16, gt=0)  #: images of an update
    label_size: Pixels = 56  #: side of the labels it learns from
    learning_rate: Rate = 1e-2  #: at the start; it falls to zero
    weight_decay: float = Field(default=1e-4, ge=0)  #: of the head

    def needs(self) -> list[Need]:
        return [Need("dense", split, (self.labels,)) for split in (TRAIN, TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        learn, judge = data.dense(TRAIN), data.dense(TEST)
        head = self._fit(backbone.features(learn.images).spatial[learn.rows], learn, seed)
        spatial = backbone.features(judge.images).spatial[judge.rows]
        return [self._judge(backbone, head, spatial, judge, seed)]

    def _fit(self, spatial: Tensor, learn: DenseImages, seed: int) -> LinearHead:
        maps, size = learn.labels(self.labels), (self.label_size, self.label_size)
        with seeded(seed):
            head = LinearHead(spatial, len(learn.names[self.labels]))
        generator = torch.Generator().manual_seed(seed)
        train(
            head,
            lambda batch: class_loss(head(spatial[batch], size), shrink_labels(maps[batch], size)),
            batches(len(spatial), self.batch, self.steps, generator),
            steps=self.steps,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        return head

    @torch.no_grad()
    def _judge(
        self, backbone: ProbedBackbone, head: LinearHead, spatial: Tensor, judge: DenseImages, seed: int
    ) -> Result:
        maps, names = judge.labels(self.labels), judge.names[self.labels]
        metric, kept = Segmentation(len(names)), []
        for rows in torch.arange(len(spatial)).split(50):
            truth = maps[rows]
            predicted = best_class(head(spatial[rows], (truth.shape[-2], truth.shape[-1])))
            metric.update(predicted, truth)
            if backbone.predictions is not None:
                kept.append(torch.stack([predicted.byte(), truth.byte()]))
        self.keep(
            backbone,
            "segmentation",
            judge.images,
            judge.rows,
            lambda: dict(zip(("predicted", "labels"), torch.cat(kept, 1), strict=True)),
            classes=len(names),
            names=names,
        )
        return self.result("miou", metric.scores()["miou"], seed, classes=names)
