"""COCO boxes with a frozen backbone: a pyramid and a Faster R-CNN head are trained on its last map."""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from common.errors import UserError
from common.lr_schedule import warm_up
from common.progress import ProgressBar
from common.recipes import Rate
from eval_suite import processes
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.detection import Boxes, box_ap
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.detector import CHANNELS, frozen_faster_rcnn
from eval_suite.probes.long_training import KeptState, ahead, training_identity
from eval_suite.readers.contracts import TEST, TRAIN, InstanceImages, LabelledData
from eval_suite.results import Result

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

PROTOCOL = "frozen-fasterrcnn"
EPOCHS, BATCH, RATE, DECAY, CLIP = 12, 16, 1e-4, 1e-4, 1.0
WARMUP = 250  #: steps from a thousandth of the rate
LAST_TWELFTH = 11 / 12  #: from here on a tenth of the rate

Example = tuple[Tensor, dict[str, Tensor]]


class DetectionProbe(ProbeNode):
    """Box AP (mean over IoU 0.50 to 0.95) of all, small, medium and large objects.

    FeatSharp trains a DINO-DETR head in Detectron2 on a ViTDet pyramid; here a Faster R-CNN head of torchvision on the
    same pyramid, on a backbone that stays frozen: 12 epochs, batch 16, AdamW 1e-4, flips. Rows compare with each other,
    not with the paper's table. `epochs`, `batch`, `learning_rate`, `channels` and `side` change it and are named in the
    result.
    """

    spread: ClassVar[bool] = True

    probe: Literal["detection"]
    group: str = "detection"
    side: int = Field(default=1024, gt=0)  #: pixels of the square the image is padded to
    epochs: int | None = Field(default=None, gt=0)  #: None: the protocol's
    batch: int | None = Field(default=None, gt=0)  #: images of an update; None: the protocol's
    learning_rate: Rate | None = None  #: None: the protocol's
    channels: int | None = Field(default=None, gt=0)  #: of the pyramid, 256; the box head has four times as many
    #: sizes of objects whose AP is reported
    metrics: tuple[Literal["all", "small", "medium", "large"], ...] = Field(default=("all",), min_length=1)

    def needs(self) -> list[Need]:
        return [Need("instances", split) for split in (TRAIN, TEST)]

    @property
    def named_protocol(self) -> str:
        """The protocol's name, and behind it what was changed."""
        names = ("epochs", "batch", "learning_rate", "channels")
        changed = [f"{name}={value}" for name in names if (value := getattr(self, name))]
        changed += [f"side={self.side}"] if self.side != 1024 else []
        return PROTOCOL + (f" ({', '.join(changed)})" if changed else "")

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        learn, judge = data.instances(TRAIN), data.instances(TEST)
        for images in (learn, judge):
            if not callable(getattr(images.images, "original", None)):
                raise UserError(f"{images.images.key} has no photographs at their own size; read them from files")
        detector = self._fit(backbone, learn, seed)
        found = self._found(backbone, detector, judge)
        truth = [labelled(judge, row) for row in range(len(judge.objects))]
        names = {"all": "ap", **{size: f"ap_{size}" for size in ("small", "medium", "large")}}
        return [
            self.result(names[size], box_ap(found, truth, size), seed, protocol=self.named_protocol)
            for size in self.metrics
        ]

    def _fit(self, backbone: ProbedBackbone, learn: InstanceImages, seed: int) -> "FasterRCNN":
        epochs, batch, most = self.epochs or EPOCHS, self.batch or BATCH, self.learning_rate or RATE
        rows = torch.tensor(
            [row for row in range(len(learn.objects)) if len(labelled(learn, row, crowds=False).classes)]
        )
        if not len(rows):
            raise UserError(f"{learn.images.key} has no labelled box to learn from")
        detector = frozen_faster_rcnn(
            backbone, len(learn.names), self.side, seed=seed, channels=self.channels or CHANNELS
        )
        optimiser = torch.optim.AdamW(detector.parameters(), lr=most, weight_decay=DECAY)
        identity = training_identity(backbone, self, learn, (), seed) if backbone.cache else {}
        kept = KeptState(backbone.cache, identity)
        state = kept.load()
        if state is not None:
            detector.load_state_dict(state["detector"])
            optimiser.load_state_dict(state["optimiser"])
        each = max(1, len(rows) // batch)
        for epoch in range(0 if state is None else int(state["epochs"]), epochs):
            detector.train()
            order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + epoch))]
            steps = [(epoch * each + at, order[at * batch : (at + 1) * batch]) for at in range(each)]
            bar = ProgressBar(each, f"{self.name} epoch {epoch + 1}/{epochs}", "step", shown=backbone.progress)
            for number, examples in ahead(lambda step: (step[0], self._examples(learn, *step, seed)), steps):
                for group in optimiser.param_groups:
                    group["lr"] = most * rate(number, each * epochs)
                self._step(backbone, detector, optimiser, examples, seed=1_000_003 * seed + number)
                bar.update()
            bar.close()
            processes.same_everywhere(detector)
            kept.save({"epochs": epoch + 1, "detector": detector.state_dict(), "optimiser": optimiser.state_dict()})
        return detector.eval()

    def _examples(self, learn: InstanceImages, number: int, rows: Tensor, seed: int) -> list[Example]:
        """This process' part of a step: photographs [3, H, W] in [0, 1] with boxes and classes from 1, half flipped."""
        flips = torch.rand(len(rows), generator=torch.Generator().manual_seed(1_000_003 * seed + number)) < 0.5
        out = []
        for at in processes.own_rows(len(rows)):
            picture = learn.images.original(int(rows[at])).float() / 255  # type: ignore[attr-defined]
            boxes = labelled(learn, int(rows[at]), crowds=False)
            corners = torch.from_numpy(boxes.corners).float()
            if flips[at]:
                picture, width = picture.flip(-1), picture.shape[-1]
                corners = torch.stack([width - corners[:, 2], corners[:, 1], width - corners[:, 0], corners[:, 3]], 1)
            out.append((picture, {"boxes": corners, "labels": torch.from_numpy(boxes.classes).long() + 1}))
        return out

    def _step(
        self, backbone: ProbedBackbone, detector: "FasterRCNN", optimiser: torch.optim.Optimizer,
        examples: list[Example], *, seed: int,
    ) -> None:  # fmt: skip
        optimiser.zero_grad(set_to_none=True)
        if examples:
            pictures = [picture.to(backbone.device) for picture, _ in examples]
            targets = [{name: part.to(backbone.device) for name, part in target.items()} for _, target in examples]
            devices = [backbone.device] if backbone.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):  # proposals are sampled
                torch.manual_seed(seed)
                losses = detector(pictures, targets)
            loss = torch.stack(list(losses.values())).sum()
            if not loss.isfinite():
                raise UserError(f"{self.name}: the loss is not finite; set a smaller learning_rate")
            loss.backward()
        processes.average_gradients(detector)
        nn.utils.clip_grad_norm_(detector.parameters(), CLIP)
        optimiser.step()

    @torch.no_grad()
    def _found(self, backbone: ProbedBackbone, detector: "FasterRCNN", judge: InstanceImages) -> list[Boxes]:
        """Detections of every image, in the photographs' pixels."""
        rows = list(processes.own_rows(len(judge.objects)))
        bar = ProgressBar(len(rows), f"{self.name} test", "image", shown=backbone.progress, leave=False)
        found = []
        for picture in ahead(lambda row: judge.images.original(row).float() / 255, rows):  # type: ignore[attr-defined]
            out = detector([picture.to(backbone.device)])[0]
            boxes, labels, scores = (out[name].cpu().double().numpy() for name in ("boxes", "labels", "scores"))
            found.append(Boxes(boxes, labels.astype(np.int64) - 1, scores))
            bar.update()
        bar.close()
        return [boxes for part in processes.all_say(found) for boxes in part]


def labelled(images: InstanceImages, row: int, *, crowds: bool = True) -> Boxes:
    """The boxes of an image that have an extent, without crowds if they are to be learnt from."""
    kept = [
        thing for thing in images.objects[row]
        if thing.box[2] > thing.box[0] and thing.box[3] > thing.box[1] and (crowds or not thing.crowd)
    ]  # fmt: skip
    return Boxes(
        np.array([thing.box for thing in kept], dtype=float).reshape(-1, 4),
        np.array([thing.kind for thing in kept], dtype=np.int64),
        crowd=np.array([thing.crowd for thing in kept], dtype=bool),
        areas=np.array([thing.area for thing in kept], dtype=float),
    )


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: a warm-up of 250 steps (at most a tenth), a tenth of it in the last twelfth."""
    warm = min(WARMUP, steps // 10)
    if step < warm:
        return warm_up(step, warm, start=1e-3)
    return 1.0 if step < LAST_TWELFTH * steps else 0.1
