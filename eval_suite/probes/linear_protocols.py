"""Linear segmentation exactly as it is published: RADIO's, DINOv2's and DINOv3's schedules, sliding windows.

They differ in weight decay, length, schedule and dropout, which moves ADE20K by points; so each has a name, the name
stands in the result, and whatever is changed stands behind it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from common.errors import UserError
from common.lr_schedule import half_cosine, progress, warm_up
from common.progress import ProgressBar
from eval_suite import processes
from eval_suite.features import ProbedBackbone
from eval_suite.maps import resize_map
from eval_suite.metrics.segmentation import Segmentation
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.crops import keep_ratio, training_crop
from eval_suite.probes.heads import seeded
from eval_suite.probes.losses import class_loss
from eval_suite.probes.windows import slide
from eval_suite.read_ahead import ahead
from eval_suite.readers.contracts import TEST, TRAIN, DenseImages, LabelledData
from eval_suite.readers.image_files import READERS
from eval_suite.results import Result
from teachers.contracts import fit_images


@dataclass(frozen=True)
class Schedule:
    """One published recipe of the linear head on the last patch tokens."""

    steps: int
    batch: int
    weight_decay: float
    dropout: float
    decay: Literal["poly", "cosine"]
    learning_rate: float = 1e-3
    warmup: int = 1500
    warmup_from: float = 1e-6
    crop: int = 512
    stride: int = 341

    def rate(self, step: int, steps: int) -> float:
        """Share of the learning rate at a step of `steps`; warm-up shrinks with a shorter run."""
        warm = self.warmup * steps // self.steps
        if step < warm:
            return warm_up(step, warm, start=self.warmup_from)
        return 1 - progress(step, warm, steps) if self.decay == "poly" else half_cosine(step, warm, steps)


SCHEDULES = {
    "radio-linear": Schedule(steps=80_000, batch=16, weight_decay=0.0, dropout=0.0, decay="poly"),
    "dinov2-linear": Schedule(steps=40_000, batch=16, weight_decay=1e-4, dropout=0.0, decay="poly"),
    "dinov3-linear": Schedule(steps=40_000, batch=16, weight_decay=1e-3, dropout=0.1, decay="cosine"),
}


class Originals(Protocol):
    """Images or labels that can be had one by one at their own size."""

    def original(self, row: int) -> Tensor: ...


class LinearSegmentationProbe(ProbeNode):
    """BatchNorm and a 1x1 convolution, trained on random crops at full resolution, tested in sliding windows.

    `steps`, `batch`, `crop`, `stride` change the published schedule; the result's protocol then says so.
    """

    spread: ClassVar[bool] = True

    probe: Literal["linear_segmentation"]
    group: str = "dense"
    labels: str = "semantic"  #: which label maps
    protocol: Literal["radio-linear", "dinov2-linear", "dinov3-linear"]  #: whose published schedule
    steps: int | None = Field(default=None, gt=0)  #: updates; None: the protocol's
    batch: int | None = Field(default=None, gt=0)  #: crops of an update; None: the protocol's
    crop: int | None = Field(default=None, gt=0)  #: side in px of crops and windows; None: the protocol's
    stride: int | None = Field(default=None, gt=0)  #: px between windows in the test; None: the protocol's

    def needs(self) -> list[Need]:
        return [Need("dense", split, (self.labels,)) for split in (TRAIN, TEST)]

    @property
    def named_protocol(self) -> str:
        """The protocol's name, and behind it what was changed."""
        changed = [f"{name}={value}" for name in ("steps", "batch", "crop", "stride") if (value := getattr(self, name))]
        return self.protocol + (f" ({', '.join(changed)})" if changed else "")

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        learn, judge = data.dense(TRAIN), data.dense(TEST)
        for images in (learn, judge):
            originals_of(images, self.labels)
        head = self._fit(backbone, learn, seed)
        score = self._judge(backbone, head, judge).scores()["miou"]
        return [self.result("miou", score, seed, protocol=self.named_protocol, classes=judge.names[self.labels])]

    def _fit(self, backbone: ProbedBackbone, learn: DenseImages, seed: int) -> nn.Module:
        schedule = SCHEDULES[self.protocol]
        steps, batch, crop = self.steps or schedule.steps, self.batch or schedule.batch, self.crop or schedule.crop
        images, labels = originals_of(learn, self.labels)
        with seeded(seed):
            head = linear_head(backbone.spec.spatial_dim, len(learn.names[self.labels]), schedule.dropout)
        head.to(backbone.device).train()
        optimiser = torch.optim.AdamW(head.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
        generator = torch.Generator().manual_seed(seed)
        made = ahead(_training_batches(learn, images, labels, (steps, batch, crop), generator))
        bar = ProgressBar(steps, self.named_protocol, "step", shown=backbone.progress, leave=False)
        for step, (pictures, truth) in enumerate(bar.over(made)):
            pictures, truth = pictures.to(backbone.device), truth.to(backbone.device)
            for group in optimiser.param_groups:
                group["lr"] = schedule.learning_rate * schedule.rate(step, steps)
            optimiser.zero_grad(set_to_none=True)
            with seeded(seed + step):  # dropout
                logits = head(shared_spatial(backbone, pictures))
            class_loss(resize_map(logits, (crop, crop)), truth).backward()
            optimiser.step()
        processes.same_everywhere(head)
        return head.eval()

    @torch.no_grad()
    def _judge(self, backbone: ProbedBackbone, head: nn.Module, judge: DenseImages) -> Segmentation:
        schedule = SCHEDULES[self.protocol]
        crop, stride = self.crop or schedule.crop, self.stride or schedule.stride
        images, labels = originals_of(judge, self.labels)
        metric = Segmentation(len(judge.names[self.labels]))

        def logits_of(window: Tensor) -> Tensor:
            return resize_map(head(spatial_of(backbone, window)), (window.shape[-2], window.shape[-1]))

        rows = processes.own_rows(len(judge.rows))
        for row in ProgressBar(len(rows), "windows", "image", shown=backbone.progress, leave=False).over(rows):
            picture, truth = images.original(int(judge.rows[row])).float() / 255, labels.original(row)
            picture = resize_map(picture[None], keep_ratio((picture.shape[-2], picture.shape[-1]), crop))[0]
            size = (truth.shape[-2], truth.shape[-1])
            metric.update(slide(logits_of, picture, metric.classes, crop, stride, size).argmax(0)[None], truth[None])
        processes.gather(metric)
        return metric


def _training_batches(
    learn: DenseImages, images: Originals, labels: Originals, counts: tuple[int, int, int], generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """`counts` = steps, batch, crop: crops [b, 3, crop, crop], classes [b, crop, crop]; files are read in threads."""
    steps, batch, crop = counts
    with ThreadPoolExecutor(READERS) as pool:
        for _ in range(steps):
            rows = torch.randint(len(learn.rows), (batch,), generator=generator).tolist()
            read = pool.map(lambda row: (images.original(int(learn.rows[row])), labels.original(row)), rows)
            pairs = [training_crop(image.float() / 255, classes, crop, generator) for image, classes in read]
            yield torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


def linear_head(width: int, classes: int, dropout: float) -> nn.Sequential:
    """BatchNorm, dropout of whole channels, 1x1 convolution with weights N(0, 0.01) and no offset at the start."""
    convolution = nn.Conv2d(width, classes, 1)
    nn.init.normal_(convolution.weight, std=0.01)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.BatchNorm2d(width), nn.Dropout2d(dropout), convolution)


def originals_of(images: DenseImages, label: str) -> tuple[Originals, Originals]:
    """Photographs and labels at their own size; UserError where the data holds them at one size only."""
    for part in (images.images, images.labels(label)):
        if not callable(getattr(part, "original", None)):
            raise UserError(
                f"{images.images.key} keeps its images at one size only; a sliding-window protocol needs them as they "
                "are: use data read from files, or the probe `segmentation`"
            )
    return images.images, images.labels(label)  # type: ignore[return-value]


@torch.no_grad()
def spatial_of(backbone: ProbedBackbone, images: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> the frozen map [B, C, h, w], float32; UserError where it is not finite."""
    spatial = backbone.backbone(fit_images(images.to(backbone.device), backbone.spec)).spatial.float()
    if not spatial.isfinite().all():
        raise UserError(f"{backbone.spec.name} gives NaN or infinite features; check its weights, or run it in float32")
    return spatial


def shared_spatial(backbone: ProbedBackbone, images: Tensor) -> Tensor:
    """The same of a batch whose forward pass all processes share; the head is trained alike in each of them."""
    return processes.split_forward(lambda part: [spatial_of(backbone, part)], images)[0]
