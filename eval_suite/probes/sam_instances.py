"""SAM COCO: masks of labelled objects from SAM's decoder, fed by the backbone's adaptor into SAM (EfficientViT-SAM)."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from common.errors import UserError
from common.progress import ProgressBar
from eval_suite import processes
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.instance_masks import InstanceIou
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.sam_decoder import Canvas, Entry, SamDecoder, load_sam_decoder
from eval_suite.readers.contracts import TEST, InstanceImages, InstanceObject, LabelledData
from eval_suite.results import Result
from eval_suite.text import AbsentError
from teachers.contracts import Features, capability, fit_images

PROMPTED_AT_ONCE = 64


class SamInstancesProbe(ProbeNode):
    """IoU of the mask that SAM's decoder gives for each object's labelled box (or the point deepest inside its mask).

    `adaptor` is the student's head into SAM's space, null where the backbone is SAM itself; `enters` says where its
    features join SAM: before the neck, as agglomerative students learn them, or after it. Every annotation of at least
    one pixel counts, crowds too, and weighs the same (EfficientViT-SAM's evaluation).
    """

    spread: ClassVar[bool] = True

    probe: Literal["sam_instances"]
    group: str = "dense"
    decoder: str = "facebook/sam-vit-huge"  #: hub name or folder of the SAM whose decoder it is
    adaptor: str | None  #: the student's answer for which teacher goes into the decoder; None: the backbone's own map
    enters: Entry = "neck"  #: where the map enters SAM: before its neck, or in its decoder
    prompt: Literal["box", "point"] = "box"  #: what the decoder is told about each object
    side: int = Field(default=1024, gt=0)  #: pixels of the square the backbone sees
    #: which numbers are reported
    metrics: tuple[Literal["miou", "small", "medium", "large"], ...] = Field(default=("miou",), min_length=1)

    def needs(self) -> list[Need]:
        return [Need("instances", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        project = self._head(backbone)
        judge = data.instances(TEST)
        if not callable(getattr(judge.images, "original", None)):
            raise UserError(f"{judge.images.key} has no photographs at their own size; read COCO from its files")
        metric = InstanceIou()
        decoder = load_sam_decoder(self.decoder).to(backbone.device)
        rows = processes.own_rows(len(judge.objects))
        for row in ProgressBar(len(rows), self.name, "image", shown=backbone.progress, leave=False).over(rows):
            objects = [thing for thing in judge.objects[row] if thing.area >= 1]
            ious = self._ious(backbone, project, decoder, judge, row, objects)
            metric.add_ious(ious, [thing.area for thing in objects])
        processes.gather(metric)
        scores = metric.scores()
        if empty := [name for name in self.metrics if math.isnan(scores[name].value)]:
            raise UserError(f"{judge.images.key} has no {empty[0]} object; take it out of the metrics of {self.name}")
        protocol = f"efficientvit-{self.prompt} ({self.adaptor or 'own features'} into the {self.enters})"
        names = {"miou": "miou", **{size: f"miou_{size}" for size in ("small", "medium", "large")}}
        return [self.result(names[name], scores[name], seed, protocol=protocol) for name in self.metrics]

    def _head(self, backbone: ProbedBackbone) -> "Projection":
        if self.adaptor is None:
            return Projection(None)
        heads = capability(backbone.backbone, "adaptor")
        if heads is None:
            raise AbsentError(f"{backbone.spec.name} has no adaptor into SAM's space (SAM itself: adaptor: null)")
        try:
            return Projection(heads(self.adaptor))
        except UserError as error:
            raise AbsentError(f'{backbone.spec.name} has no adaptor "{self.adaptor}": {error}') from error

    @torch.no_grad()
    def _ious(
        self,
        backbone: ProbedBackbone,
        project: "Projection",
        decoder: SamDecoder,
        judge: InstanceImages,
        row: int,
        objects: Sequence[InstanceObject],
    ) -> Tensor:
        """IoU float64 [n] of the objects of one image."""
        if not objects:
            return torch.zeros(0, dtype=torch.float64)
        picture = judge.images.original(row).float().to(backbone.device) / 255  # type: ignore[attr-defined]
        height, width = picture.shape[-2:]
        canvas, prompted = Canvas(height, width, self.side), Canvas(height, width, decoder.canvas)
        square = fit_images(canvas.image(picture, backbone.spec.mean), backbone.spec)
        spatial = project(backbone.backbone(square)).spatial.float()
        if not spatial.isfinite().all():
            raise UserError(
                f"{backbone.spec.name} gives NaN or infinite features for {judge.images.name_of(row)}; "
                "check its weights, or run it in float32"
            )
        embedding = decoder.embed(spatial, self.enters)
        ious = []
        for at in range(0, len(objects), PROMPTED_AT_ONCE):
            part = objects[at : at + PROMPTED_AT_ONCE]
            truth = torch.stack([thing.mask() for thing in part]).to(backbone.device)
            found = prompted.back(self._prompted(decoder, embedding, prompted, part, truth)) > 0
            shared, union = ((found & truth).flatten(1).sum(1), (found | truth).flatten(1).sum(1))
            ious.append((shared.double() / union.clamp(min=1)).cpu())
        return torch.cat(ious)

    def _prompted(
        self, decoder: SamDecoder, embedding: Tensor, canvas: Canvas, objects: Sequence[InstanceObject], truth: Tensor
    ) -> Tensor:
        """Logits [n, 256, 256] for the prompts of some objects."""
        if self.prompt == "box":
            boxes = torch.tensor([thing.box for thing in objects], device=embedding.device)
            return decoder.masks(embedding, boxes=canvas.points(boxes))
        points = torch.stack([deepest(mask) for mask in truth]).to(embedding.device)
        return decoder.masks(embedding, points=canvas.points(points))


class Projection:
    """Backbone features -> features in SAM's space: through an adaptor, or as they are."""

    def __init__(self, adaptor: object | None) -> None:
        self._adaptor = adaptor

    def __call__(self, features: Features) -> Features:
        return features if self._adaptor is None else self._adaptor.project(features)  # type: ignore[attr-defined]


def deepest(mask: Tensor) -> Tensor:
    """(x, y) of the pixel of a mask bool [H, W] that is farthest from what is outside, the picture's edge included."""
    inside = torch.nn.functional.pad(mask, (1, 1, 1, 1)).cpu().numpy()
    depth = torch.from_numpy(distance_transform_edt(inside))[1:-1, 1:-1]
    at = int(depth.flatten().argmax())
    return torch.tensor([float(at % mask.shape[1]), float(at // mask.shape[1])])
