"""Probe3D's depth and normals: a convolutional head on four frozen layers, trained for ten epochs, scored per image."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from common.errors import UserError
from common.lr_schedule import progress, warm_up
from common.progress import ProgressBar
from eval_suite import processes
from eval_suite.features import ProbedBackbone, quarter_layers
from eval_suite.metrics.depth import Depth
from eval_suite.metrics.normals import Normals
from eval_suite.metrics.score import Score
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.dpt import HIDDEN, KERNEL, DepthBins, Head, make_head
from eval_suite.probes.heads import seeded
from eval_suite.probes.long_training import KeptState, ahead, training_identity
from eval_suite.probes.probe3d_losses import depth_loss, normal_loss
from eval_suite.readers.contracts import TEST, TRAIN, DenseImages, LabelledData
from eval_suite.results import Result
from teachers.contracts import fit_images

HEADS: dict[str, Head] = {"probe3d-dpt": "dpt", "probe3d-linear": "linear", "probe3d-multiscale": "multiscale"}
EPOCHS, BATCH, RATE, WARMUP_EPOCHS, LEAST = 10, 8, 5e-4, 1.5, 0.01


class Probe3dDenseProbe(ProbeNode):
    """What both tasks share.

    The published protocol: AdamW 5e-4 with weight decay 0.01, batch 8, 10 epochs, warm-up for 1.5 of them, then a
    quarter of a cosine. `epochs`, `batch`, `hidden` (512), `kernel` (3) and `augment` change it and are named in the
    result. The order of images is shuffled (Probe3D's is fixed on one GPU and shuffled on several), maps are patch
    tokens without the class token ("dense"), images are resized to a multiple of the patch and not padded to it, and
    every backbone normalises as it was trained.
    """

    spread: ClassVar[bool] = True

    group: str = "3d"
    #: the head on maps of four layers: DPT's, linear, or at several scales
    protocol: Literal["probe3d-dpt", "probe3d-linear", "probe3d-multiscale"] = "probe3d-dpt"
    epochs: int | None = Field(default=None, gt=0)  #: None: the published 10
    batch: int | None = Field(default=None, gt=0)  #: images of an update; None: the published 8
    hidden: int | None = Field(default=None, gt=0)  #: channels of the head; None: the published 512
    kernel: int | None = Field(default=None, gt=0)  #: side of its convolutions; None: the published 3
    augment: Literal["none", "colour", "colour_crop"] = "colour_crop"  #: NYU: colour_crop, NAVI: colour

    label: ClassVar[str]
    outputs: ClassVar[int]

    def needs(self) -> list[Need]:
        return [Need("dense", split, (self.label,)) for split in (TRAIN, TEST)]

    @property
    def named_protocol(self) -> str:
        """The protocol's name, and behind it what was changed."""
        names = ("epochs", "batch", "hidden", "kernel")
        changed = [f"{name}={value}" for name in names if (value := getattr(self, name))]
        changed += [f"augment={self.augment}"] if self.augment == "none" else []
        return self.protocol + (f" ({', '.join(changed)})" if changed else "")

    mode: ClassVar[Literal["bilinear", "bicubic"]]  #: how answers are enlarged

    def coarse(self, head: nn.Module, layers: list[Tensor]) -> Tensor:
        """What the task predicts on the head's own grid, [B, K, h, w]."""
        out: Tensor = head(layers)
        return out

    def enlarged(self, coarse: Tensor, size: tuple[int, int]) -> Tensor:
        """The same at the labels' size, [B, K, *size]."""
        return F.interpolate(coarse, size=size, mode=self.mode, align_corners=True)

    def loss(self, answer: Tensor, labels: Tensor) -> Tensor:
        """A batch's loss."""
        raise NotImplementedError

    def fit(self, backbone: ProbedBackbone, learn: DenseImages, seed: int) -> nn.Module:
        """The trained head; goes on from the last whole epoch where `--cache` keeps one."""
        epochs, batch = self.epochs or EPOCHS, self.batch or BATCH
        with seeded(seed):
            head = make_head(
                HEADS[self.protocol], backbone.spec.spatial_dim, self.outputs, hidden=self.hidden or HIDDEN,
                kernel=self.kernel or KERNEL,
            )  # fmt: skip
        head.to(backbone.device).train()
        optimiser = torch.optim.AdamW(head.parameters(), lr=RATE)
        identity = training_identity(backbone, self, learn, (self.label,), seed) if backbone.cache else {}
        kept = KeptState(backbone.cache, identity)
        state = kept.load()
        if state is not None:
            head.load_state_dict(state["head"])
            optimiser.load_state_dict(state["optimiser"])
        each = max(1, len(learn.rows) // batch)
        for epoch in range(0 if state is None else int(state["epochs"]), epochs):
            order = torch.randperm(len(learn.rows), generator=torch.Generator().manual_seed(seed + epoch))
            steps = [Step(epoch * each + at, order[at * batch : (at + 1) * batch]) for at in range(each)]
            bar = ProgressBar(each, f"{self.name} epoch {epoch + 1}/{epochs}", "step", shown=backbone.progress)
            for step, pictures, labels in self._batches(learn, steps, seed):
                for group in optimiser.param_groups:
                    group["lr"] = RATE * rate(step, each, epochs)
                optimiser.zero_grad(set_to_none=True)
                size = (labels.shape[-2], labels.shape[-1])
                answer = self.enlarged(self.coarse(head, layers_of(backbone, pictures)), size)
                self.loss(answer, labels.to(backbone.device)).backward()
                optimiser.step()
                bar.update()
            bar.close()
            kept.save({"epochs": epoch + 1, "head": head.state_dict(), "optimiser": optimiser.state_dict()})
        processes.same_everywhere(head)
        return head.eval()

    def _batches(self, learn: DenseImages, steps: list["Step"], seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Step number, pictures [b, 3, H, W] in [0, 1] and labels, augmented; a step has random numbers of its own."""
        labels = learn.labels(self.label)

        def make(step: "Step") -> tuple[int, Tensor, Tensor]:
            pictures = learn.images.read(learn.rows[step.rows]).float() / 255
            generator = torch.Generator().manual_seed(1_000_003 * seed + step.number)
            return step.number, *augmented(pictures, labels[step.rows].float(), self.augment, generator)

        return ahead(make, steps)

    @torch.no_grad()
    def predictions(
        self, backbone: ProbedBackbone, head: nn.Module, judge: DenseImages, kept: list[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (answer [b, K, H, W], label) of this process' part of the images, on the CPU.

        Where predictions are kept, `kept` gets (answer on the head's grid, label in 16 bits).
        """
        rows, labels = (
            torch.tensor(list(processes.own_rows(len(judge.rows))), dtype=torch.int64),
            judge.labels(self.label),
        )

        def make(part: Tensor) -> tuple[Tensor, Tensor]:
            return judge.images.read(judge.rows[part]).float() / 255, labels[part].float()

        bar = ProgressBar(len(rows), f"{self.name} test", "image", shown=backbone.progress, leave=False)
        for pictures, truth in ahead(make, rows.split(self.batch or BATCH) if len(rows) else ()):
            coarse = self.coarse(head, inner_maps(backbone, pictures))
            if backbone.predictions is not None:
                kept.append((coarse.float().cpu(), truth.half()))
            yield self.enlarged(coarse, (truth.shape[-2], truth.shape[-1])).float().cpu(), truth
            bar.update(len(truth))
        bar.close()

    def keep_whole(
        self, backbone: ProbedBackbone, judge: DenseImages, kept: list[tuple[Tensor, Tensor]], farthest: float | None
    ) -> None:
        """Keep what all processes predicted, in the order of the images."""
        if backbone.predictions is None:
            return
        own = [torch.cat(part) for part in zip(*kept, strict=True)]
        parts = processes.to_first(dict(zip(("predicted", "labels"), own, strict=False)))
        if processes.rank() == 0:
            whole = {
                name: torch.cat([part[name] for part in parts if name in part]) for name in ("predicted", "labels")
            }
            self.keep(backbone, "probe3d", judge.images, judge.rows, lambda: whole, mode=self.mode, farthest=farthest)


class Probe3dDepthProbe(Probe3dDenseProbe):
    """Depth in 256 even bins; d1, d2, d3 and rmse as predicted (scale-aware), si_... after the best scale and shift."""

    probe: Literal["probe3d_depth"]
    nearest: float = Field(default=1e-3, gt=0)  #: metres of the first bin
    farthest: float = Field(default=10.0, gt=0)  #: of the last; what lies behind does not count. NAVI: 1
    #: which numbers are reported
    metrics: tuple[Literal["d1", "d2", "d3", "rmse", "si_d1", "si_d2", "si_d3", "si_rmse"], ...] = Field(
        default=("d1", "d2", "d3", "rmse", "si_d1", "si_d2", "si_d3", "si_rmse"), min_length=1
    )

    label: ClassVar[str] = "depth"
    outputs: ClassVar[int] = 256

    mode: ClassVar[Literal["bilinear", "bicubic"]] = "bilinear"

    def coarse(self, head: nn.Module, layers: list[Tensor]) -> Tensor:
        depth: Tensor = DepthBins(self.nearest, self.farthest).to(layers[0].device)(head(layers))
        return depth

    def loss(self, answer: Tensor, labels: Tensor) -> Tensor:
        return depth_loss(answer[:, 0], labels.masked_fill(labels > self.farthest, 0.0))

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        head = self.fit(backbone, data.dense(TRAIN), seed)
        plain = Depth(pool="image", max_depth=self.farthest)
        fitted = Depth(pool="image", max_depth=self.farthest, align="scale_shift")
        judge, kept = data.dense(TEST), list[tuple[Tensor, Tensor]]()
        for answer, truth in self.predictions(backbone, head, judge, kept):
            plain.update(answer[:, 0], truth)
            fitted.update(answer[:, 0], truth)
        self.keep_whole(backbone, judge, kept, self.farthest)
        scores: dict[str, Score] = {}
        for metric, prefix in ((plain, ""), (fitted, "si_")):
            processes.gather(metric)
            scores |= {prefix + name: score for name, score in metric.scores().items()}
        return [
            self.result(
                name, scores[name], seed, higher_is_better=not name.endswith("rmse"), protocol=self.named_protocol
            )
            for name in self.metrics
        ]


class Probe3dNormalsProbe(Probe3dDenseProbe):
    """Normals with a certainty; recall within 11.25, 22.5 and 30 degrees, and the rmse of the angle, per image."""

    probe: Literal["probe3d_normals"]
    #: which numbers are reported
    metrics: tuple[Literal["recall_11.25", "recall_22.5", "recall_30", "rmse"], ...] = Field(
        default=("recall_11.25", "recall_22.5", "recall_30", "rmse"), min_length=1
    )

    label: ClassVar[str] = "normals"
    outputs: ClassVar[int] = 4

    mode: ClassVar[Literal["bilinear", "bicubic"]] = "bicubic"

    def loss(self, answer: Tensor, labels: Tensor) -> Tensor:
        return normal_loss(answer, labels)

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        head = self.fit(backbone, data.dense(TRAIN), seed)
        metric = Normals(pool="image")
        judge, kept = data.dense(TEST), list[tuple[Tensor, Tensor]]()
        for answer, truth in self.predictions(backbone, head, judge, kept):
            metric.update(answer[:, :3], truth)
        self.keep_whole(backbone, judge, kept, None)
        processes.gather(metric)
        scores = metric.scores()
        return [
            self.result(name, scores[name], seed, higher_is_better=name != "rmse", protocol=self.named_protocol)
            for name in self.metrics
        ]


@dataclass(frozen=True)
class Step:
    """A step's number in the whole training and its rows."""

    number: int
    rows: Tensor


def rate(step: int, each: int, epochs: int) -> float:
    """Share of the learning rate: linear from 0.01 over 1.5 epochs, then cos(pi/2 progress) down to 0.01."""
    warm = min(WARMUP_EPOCHS, 0.15 * epochs) * each  # a shorter training warms up for as large a part of it
    if step < warm:
        return warm_up(step, warm, start=LEAST)
    return LEAST + (1 - LEAST) * math.cos(math.pi / 2 * progress(step, warm, epochs * each))


def augmented(
    pictures: Tensor, labels: Tensor, how: Literal["none", "colour", "colour_crop"], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pictures [b, 3, H, W] and labels [b, ..., H, W]: colours jittered by 0.2 four times in five, and every other time
    a square of 0.5 to 1 of the area, picked back to the full size (labels and pictures alike)."""
    if how == "none":
        return pictures, labels
    shown, known = [], []
    for picture, label in zip(pictures, labels, strict=True):
        if float(torch.rand((), generator=generator)) < 0.8:
            picture = jittered(picture, generator)
        if how == "colour_crop" and float(torch.rand((), generator=generator)) < 0.5:
            picture, label = square_crop(picture, label, generator)
        shown.append(picture)
        known.append(label)
    return torch.stack(shown), torch.stack(known)


def jittered(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation by 0.8 to 1.2, hue by -0.2 to 0.2, in a random order."""
    from torchvision.transforms.v2 import functional as colour  # torchvision takes seconds to import

    change = (2 * torch.rand(4, generator=generator) - 1) * 0.2
    for kind in torch.randperm(4, generator=generator).tolist():
        amount = float(change[kind])
        if kind == 3:
            picture = colour.adjust_hue(picture, amount)
        else:
            change_of = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation)[kind]
            picture = change_of(picture, 1 + amount)
    return picture


def square_crop(picture: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[3, H, W] and [..., h, w] -> the same sizes, out of a part of both with the aspect of the whole."""
    side = math.sqrt(0.5 + 0.5 * float(torch.rand((), generator=generator)))
    top, left = (torch.rand(2, generator=generator) * (1 - side)).tolist()

    def part(values: Tensor) -> Tensor:
        height, width = values.shape[-2:]
        rows = ((top + side * (torch.arange(height) + 0.5) / height) * height).long()
        columns = ((left + side * (torch.arange(width) + 0.5) / width) * width).long()
        return values[..., rows[:, None], columns]

    return part(picture), part(label)


@torch.no_grad()
def layers_of(backbone: ProbedBackbone, pictures: Tensor) -> list[Tensor]:
    """[B, 3, H, W] in [0, 1] -> four frozen maps [B, C, h, w] on the device; processes share the forward pass."""
    return processes.split_forward(lambda part: inner_maps(backbone, part), pictures)


@torch.no_grad()
def inner_maps(backbone: ProbedBackbone, pictures: Tensor) -> list[Tensor]:
    """The same in this process; UserError where a map is not finite."""
    intermediate, blocks = quarter_layers(backbone.backbone)
    maps = [layer.float() for layer in intermediate(fit_images(pictures.to(backbone.device), backbone.spec), blocks)]
    if not all(bool(layer.isfinite().all()) for layer in maps):
        raise UserError(f"{backbone.spec.name} gives NaN or infinite features; check its weights, or run it in float32")
    return maps
