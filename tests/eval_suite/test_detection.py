"""COCO boxes with a frozen backbone: it learns from colours, it can't from nothing, and goes on where it stopped."""

import dataclasses
from pathlib import Path

import layout_fixtures as make
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_linear_protocols import Colours
from test_readers_layouts import opened
from toy_world import Constant, probed

from common.errors import UserError
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.detection import box_ap
from eval_suite.probes.detection import DetectionProbe, labelled, rate
from eval_suite.probes.detector import SimpleFeaturePyramid, frozen_faster_rcnn
from eval_suite.readers.contracts import LabelledData
from teachers.contracts import BackboneSpec, Features

KINDS = ((220, 40, 40), (40, 60, 220))


def coloured_boxes(root: Path, train: int, test: int) -> LabelledData:
    """COCO files of grey pictures with one to three red or blue rectangles."""
    rng = np.random.default_rng(0)
    categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
    for split, count in (("train2017", train), ("val2017", test)):
        images, notes = [], []
        for number in range(count):
            width, height = (64, 64) if number % 2 else (64, 48)
            picture = Image.new("RGB", (width, height), (128, 128, 128))
            for _ in range(int(rng.integers(1, 4))):
                kind, (w, h) = int(rng.integers(0, 2)), rng.integers(14, 26, 2).tolist()
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                if any(
                    abs(x - n["bbox"][0]) < 26 and abs(y - n["bbox"][1]) < 26 and n["image_id"] == number for n in notes
                ):
                    continue
                ImageDraw.Draw(picture).rectangle([x, y, x + w - 1, y + h - 1], fill=KINDS[kind])
                notes.append(
                    {"id": len(notes) + 1, "image_id": number, "category_id": categories[kind]["id"], "iscrowd": 0,
                     "bbox": [x, y, w, h], "area": w * h, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
                )  # fmt: skip
            images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
            (root / split).mkdir(parents=True, exist_ok=True)
            picture.save(root / split / f"{number}.png")
        data = {"images": images, "annotations": notes, "categories": categories}
        make.dump(root / "annotations" / f"instances_{split}.json", data)
    return opened("coco", root, instances="annotations/instances_{split}.json")


class Shades(Colours):
    """Colours in 32 channels: the pyramid's finest level, where small boxes are looked up, keeps a quarter of them."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = dataclasses.replace(self.spec, spatial_dim=32)
        self.mix = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))

    def forward(self, images: torch.Tensor) -> Features:
        return Features(None, torch.einsum("dc,bchw->bdhw", self.mix, super().forward(images).spatial))


class Blank(Shades):
    """As large a map, and nothing in it."""

    def forward(self, images: torch.Tensor) -> Features:
        return Features(None, torch.ones_like(super().forward(images).spatial))


def probe(**fields: object) -> DetectionProbe:
    return DetectionProbe(
        probe="detection", name="coco", data="coco", **{"side": 64, "epochs": 1, "batch": 4, "channels": 16, **fields}
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_boxes_are_found_by_colour_and_not_without(tmp_path: Path) -> None:
    data = coloured_boxes(tmp_path, 48, 12)
    task = probe(epochs=12, learning_rate=2e-3, channels=32, side=128)
    best, worst = (task.run(probed(backbone), data, 0)[0] for backbone in (Shades(), Blank()))
    assert best.value > 35 and worst.value < 10, (best.value, worst.value)
    assert best.stderr is not None


def test_one_epoch_from_files_and_going_on(tmp_path: Path) -> None:
    data = coloured_boxes(tmp_path / "coco", 4, 2)
    task = probe(epochs=2, channels=8, metrics=("all", "small"))
    whole = task.run(probed(Colours()), data, 0)
    assert [result.metric for result in whole] == ["ap", "ap_small"] and whole[0].group == "detection"
    assert whole[0].protocol == "frozen-fasterrcnn (epochs=2, batch=4, channels=8, side=64)"

    class Stopping(Colours):
        most = 1

        def forward(self, images: torch.Tensor) -> Features:
            self.most -= 1
            if self.most < 0:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        task.run(ProbedBackbone(Stopping(), cache=tmp_path / "c"), data, 0)  # in the second epoch
    rest = Stopping()
    rest.most = 1 + 2
    assert [r.value for r in task.run(ProbedBackbone(rest, cache=tmp_path / "c"), data, 0)] == [r.value for r in whole]


def test_perfect_boxes_score_100_and_labels_keep_their_crowds(tmp_path: Path) -> None:
    data = opened("coco", make.coco(tmp_path), instances="annotations/instances_{split}.json")
    found = data.instances("test")
    truth = [labelled(found, row) for row in range(2)]
    said = [type(boxes)(boxes.corners, boxes.classes, np.ones(len(boxes.classes))) for boxes in truth]
    assert box_ap(said, truth).value == pytest.approx(100.0)
    assert truth[1].crowd.tolist() == [True] and len(labelled(found, 1, crowds=False).classes) == 0
    assert truth[0].areas.tolist() == [400.0, 16.0]
    nothing = opened("coco", tmp_path, instances="annotations/instances_{split}.json", limit={"train": 1})
    for thing in nothing.instances("train").objects:
        thing.clear()  # a set without boxes
    with pytest.raises(UserError, match="no labelled box to learn from"):
        empty = nothing.instances("train")
        probe()._fit(probed(Colours()), type(empty)(empty.images, [[]], empty.names), 0)


def test_the_pyramid_has_five_levels_and_the_backbone_does_not_learn() -> None:
    maps = SimpleFeaturePyramid(12, 256)(torch.randn(2, 12, 4, 6))
    assert [tuple(part.shape) for part in maps.values()] == [
        (2, 256, 16, 24), (2, 256, 8, 12), (2, 256, 4, 6), (2, 256, 2, 3), (2, 256, 1, 2),
    ]  # fmt: skip

    class Learnt(Constant):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            one = (1.0, 1.0, 1.0)
            self.spec = BackboneSpec(
                "l", "test", 8, 6, None, (32, 32), True, (0.5,) * 3, one, "none", "test", "sha256:2"
            )

        def forward(self, images: torch.Tensor) -> Features:
            self.seen = images
            return Features(
                None, self.weight * torch.ones(len(images), 6, images.shape[-2] // 8, images.shape[-1] // 8)
            )

    backbone = Learnt()
    detector = frozen_faster_rcnn(probed(backbone), 3, 32, seed=0, channels=16).train()
    assert not any(parameter is backbone.weight for parameter in detector.parameters())
    target = {"boxes": torch.tensor([[2.0, 2, 20, 20]]), "labels": torch.tensor([1])}
    sum(detector([torch.ones(3, 24, 48)], [target]).values()).backward()
    assert backbone.weight.grad is None and backbone.seen.shape == (1, 3, 32, 32)
    assert torch.allclose(backbone.seen[0, :, :16], torch.ones(3, 16, 32))  # the long side fits
    assert torch.allclose(backbone.seen[0, :, 16:], torch.full((3, 16, 32), 0.5))  # padding has the backbone's mean
    again = frozen_faster_rcnn(probed(Learnt()), 3, 32, seed=0, channels=16)
    assert all(torch.equal(a, b) for a, b in zip(detector.parameters(), again.parameters(), strict=True))


def test_the_rate_warms_up_and_drops_in_the_last_twelfth() -> None:
    assert rate(0, 90_000) == pytest.approx(1e-3) and rate(250, 90_000) == 1.0
    assert rate(82_499, 90_000) == 1.0 and rate(82_500, 90_000) == 0.1
    assert rate(10, 100) == 1.0
