"""SAM COCO: the real decoder gives what the whole SamModel gives, objects are read and scored as COCO's tool would."""

from pathlib import Path

import layout_fixtures as make
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from test_readers_layouts import opened
from tiny_sam import CANVAS, tiny_sam
from toy_world import Dumb, ToyBackbone, probed
from transformers import SamImageProcessor, SamModel

from common.errors import UserError
from eval_suite.metrics.instance_masks import InstanceIou
from eval_suite.probes.sam_decoder import Canvas, load_sam_decoder
from eval_suite.probes.sam_instances import SamInstancesProbe, deepest
from eval_suite.text import AbsentError
from teachers.contracts import BackboneSpec, Features

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SamEncoder(ToyBackbone):
    """The tiny SAM's own image encoder as a backbone, before or after the neck, or behind an adaptor."""

    def __init__(self, model: SamModel, entry: str) -> None:
        super().__init__(24, 6)
        self.model, self.entry = model, entry
        width = 24 if entry == "neck" else 32
        size = (CANVAS, CANVAS)
        self.spec = BackboneSpec("sam", "test", 16, width, None, size, False, MEAN, STD, "none", "test", "sha256:s")

    def forward(self, images: torch.Tensor) -> Features:
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (MEAN, STD))
        encoder = self.model.vision_encoder
        hidden = encoder.patch_embed((images - mean) / std) + encoder.pos_embed
        for layer in encoder.layers:
            hidden = layer(hidden)
        return Features(None, hidden.movedim(-1, 1) if self.entry == "neck" else encoder.neck(hidden))


class Doubling(SamEncoder):
    """A student: its own features are half of SAM's, its adaptor makes them whole."""

    name = "sam"

    def forward(self, images: torch.Tensor) -> Features:
        return Features(None, super().forward(images).spatial / 2)

    def adaptor(self, name: str) -> "Doubling":
        if name != "sam":
            raise UserError(f"no adaptor {name}")
        return self

    def project(self, features: Features) -> Features:
        return Features(None, 2 * features.spatial)


def probe(folder: Path, **fields: object) -> SamInstancesProbe:
    given = {"adaptor": None, "decoder": str(folder), "side": CANVAS, "metrics": ("miou", "small", "medium"), **fields}
    return SamInstancesProbe(probe="sam_instances", name="sam_coco", data="coco", **given)


def by_the_library(model: SamModel, picture: np.ndarray, boxes: list[list[float]]) -> torch.Tensor:
    """Masks [n, H, W] of transformers' own processor and whole model."""
    processor = SamImageProcessor(size={"longest_edge": CANVAS}, pad_size={"height": CANVAS, "width": CANVAS})
    inputs = processor(picture, return_tensors="pt")
    scale = CANVAS / max(picture.shape[:2])
    with torch.no_grad():
        out = model(
            pixel_values=inputs["pixel_values"].float(), input_boxes=torch.tensor([boxes]).float() * scale,
            multimask_output=True,
        )  # fmt: skip
    whole = processor.post_process_masks(out.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])[0]
    return whole[torch.arange(len(boxes)), out.iou_scores[0].argmax(1)]


@pytest.mark.parametrize("entry", ["neck", "decoder"])
def test_the_decoder_alone_gives_what_the_whole_model_gives(tmp_path: Path, entry: str) -> None:
    model = tiny_sam(tmp_path / "sam")
    data = opened("coco", make.coco(tmp_path / "coco"), instances="annotations/instances_{split}.json")
    found = data.instances("test")
    picture = found.images.original(0)
    expected = by_the_library(model, picture.movedim(0, -1).numpy(), [list(thing.box) for thing in found.objects[0]])
    truth = torch.stack([thing.mask() for thing in found.objects[0]])
    ious = ((expected & truth).flatten(1).sum(1) / (expected | truth).flatten(1).sum(1)).double()
    assert float(ious.max()) > 0 and not torch.equal(expected[0], expected[1])
    project = probe(tmp_path / "sam", enters=entry)
    backbone = probed(SamEncoder(model, entry))
    ours = project._ious(
        backbone, project._head(backbone), load_sam_decoder(str(tmp_path / "sam")), found, 0, found.objects[0]
    )
    assert torch.allclose(ours, ious, atol=0.02)  # Pillow and torch interpolate a little differently


def test_results_protocol_adaptor_and_sizes(tmp_path: Path) -> None:
    model = tiny_sam(tmp_path / "sam")
    data = opened("coco", make.coco(tmp_path / "coco"), instances="annotations/instances_{split}.json")
    own = probe(tmp_path / "sam", metrics=("miou", "small")).run(probed(SamEncoder(model, "neck")), data, seed=0)
    student = probe(tmp_path / "sam", adaptor="sam", metrics=("miou", "small")).run(
        probed(Doubling(model, "neck")), data, seed=0
    )
    assert [result.metric for result in own] == ["miou", "miou_small"]
    assert own[0].value == student[0].value and own[0].n == 2 and own[0].stderr is not None
    assert own[0].protocol == "efficientvit-box (own features into the neck)"
    assert student[0].protocol == "efficientvit-box (sam into the neck)"
    other = probe(tmp_path / "sam", prompt="point", metrics=("miou",)).run(
        probed(SamEncoder(model, "neck")), data, seed=0
    )
    assert other[0].value != own[0].value
    with pytest.raises(UserError, match="no large object"):
        probe(tmp_path / "sam", metrics=("large",)).run(probed(SamEncoder(model, "neck")), data, seed=0)


def test_what_cannot_be_asked_says_so(tmp_path: Path) -> None:
    model = tiny_sam(tmp_path / "sam")
    data = opened("coco", make.coco(tmp_path / "coco"), instances="annotations/instances_{split}.json")
    with pytest.raises(AbsentError, match="no adaptor into SAM's space"):
        probe(tmp_path / "sam", adaptor="sam").run(probed(Dumb()), data, seed=0)
    with pytest.raises(AbsentError, match='no adaptor "other"'):
        probe(tmp_path / "sam", adaptor="other").run(probed(Doubling(model, "neck")), data, seed=0)
    with pytest.raises(UserError, match=r"neck reads 24 channels and the features have 32"):
        probe(tmp_path / "sam").run(probed(SamEncoder(model, "decoder")), data, seed=0)
    with pytest.raises(UserError, match="nowhere"):
        load_sam_decoder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="has no objects with masks"):
        probe(tmp_path / "sam").run(
            probed(SamEncoder(model, "neck")),
            opened("coco", tmp_path / "coco", captions="annotations/captions_{split}.json"),
            0,
        )


def test_perfect_masks_score_100_and_none_score_0() -> None:
    truth = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)) < 0.3
    for predicted, value in ((truth, 100.0), (torch.zeros_like(truth), 0.0), (~truth, 0.0)):
        metric = InstanceIou()
        metric.update(predicted, truth, [10.0, 2000.0, 9216.0])
        metric.update(predicted[:0], truth[:0], [])  # an image without objects
        assert {score.value for score in metric.scores().values()} == {value}


def test_iou_of_masks_agrees_with_pycocotools_and_sizes_are_split() -> None:
    rng = np.random.default_rng(0)
    metric, ious, sizes = InstanceIou(), [], []
    for _ in range(7):
        count = int(rng.integers(1, 5))
        found, truth = (rng.random((2, count, 23, 31)) < rng.random((2, count, 1, 1))).astype(np.uint8)
        areas = rng.choice([5.0, 1023, 1024, 1025, 9215, 9216, 9217, 1e5], count)
        metric.update(torch.from_numpy(found).bool(), torch.from_numpy(truth).bool(), areas.tolist())
        for one, other in zip(found, truth, strict=True):
            coded = [coco_masks.encode(np.asfortranarray(mask)) for mask in (one, other)]
            ious.append(float(coco_masks.iou(coded[:1], coded[1:], [0])[0, 0]))
        sizes += areas.tolist()
    ious, sizes = np.array(ious), np.array(sizes)
    expected = {
        "miou": ious, "small": ious[sizes <= 1024], "medium": ious[(sizes >= 1024) & (sizes <= 9216)],
        "large": ious[sizes >= 9216],
    }  # fmt: skip
    for name, score in metric.scores().items():
        assert score.value == pytest.approx(100 * expected[name].mean())


def test_objects_are_read_with_boxes_masks_and_crowds(tmp_path: Path) -> None:
    data = opened("coco", make.coco(tmp_path), instances="annotations/instances_{split}.json")
    found = data.instances("train")
    assert found.names == ("person", "toothbrush") and [len(part) for part in found.objects] == [2, 1]
    first, crowd = found.objects[0][0], found.objects[1][0]
    assert first.box == (10, 10, 30, 30) and int(first.mask().sum()) == 400 and not first.crowd
    assert (
        crowd.crowd and crowd.mask().shape == (make.HEIGHT, make.WIDTH) and int(crowd.mask().sum()) == 4 * make.HEIGHT
    )


def test_a_canvas_takes_points_there_and_masks_back() -> None:
    canvas = Canvas(60, 80, 128)
    assert canvas.inner == (96, 128)
    square = canvas.image(torch.ones(3, 60, 80), (0.5, 0.25, 0.0))
    assert square.shape == (1, 3, 128, 128) and bool((square[..., :96, :] == 1).all())
    assert square[0, :, 100, 5].tolist() == [0.5, 0.25, 0.0]
    assert canvas.points(torch.tensor([10.0, 20.0])).tolist() == [16.0, 32.0]
    assert canvas.points(torch.tensor([[0.0, 0.0, 80.0, 60.0]])).tolist() == [[0, 0, 128, 96]]
    low = torch.full((1, 32, 32), -1.0)
    low[:, 4:12, 8:20] = 1.0
    back = canvas.back(low) > 0
    rows, columns = back[0].nonzero().unbind(1)
    assert (int(rows.min()), int(rows.max()) + 1) == (10, 30) and (int(columns.min()), int(columns.max()) + 1) == (
        20,
        50,
    )


def test_the_deepest_point_of_a_mask() -> None:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[5:16, 3:14] = True
    mask[10, 14:28] = True  # a thin arm
    assert deepest(mask).tolist() == [8.0, 10.0]


SIDE = CANVAS // 16  #: cells of the tiny SAM's grid


def corners(rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Two opposite quarters of a box, one pair or the other, so that a box alone says half: cells [8, 8], box."""
    h, w = (2 * rng.integers(1, 4, 2)).tolist()
    y, x = int(rng.integers(0, SIDE - h + 1)), int(rng.integers(0, SIDE - w + 1))
    cells = np.zeros((SIDE, SIDE), dtype=np.uint8)
    left = bool(rng.integers(0, 2))
    cells[y : y + h // 2, x : x + w // 2] = cells[y + h // 2 : y + h, x + w // 2 : x + w] = left
    cells[y : y + h // 2, x + w // 2 : x + w] = cells[y + h // 2 : y + h, x : x + w // 2] = not left
    return cells, (x, y, x + w, y + h)


class Painted(ToyBackbone):
    """Mean red of each cell in all channels (an oracle of painted objects), or nothing of the picture."""

    def __init__(self, sees: bool) -> None:
        super().__init__(24, 6)
        size, ones = (CANVAS, CANVAS), (1.0, 1.0, 1.0)
        self.sees = sees
        self.spec = BackboneSpec("painted", "test", 16, 24, None, size, False, ones, ones, "none", "test", "sha256:p")

    def forward(self, images: torch.Tensor) -> Features:
        red = (
            torch.nn.functional.avg_pool2d(images[:, :1], 16) if self.sees else torch.zeros(len(images), 1, SIDE, SIDE)
        )
        signs = torch.where(torch.arange(24) % 2 == 0, 1.0, -1.0).view(1, 24, 1, 1)
        return Features(None, (2 * red - 1) * signs)


def learn_decoder(folder: Path, backbone: Painted, steps: int) -> None:
    """Train the tiny SAM's neck and decoder on the backbone's features of painted objects, and save it."""
    model = tiny_sam(folder)
    torch.manual_seed(0)
    model.init_weights()
    for parameter in (*model.mask_decoder.parameters(), *model.vision_encoder.neck.parameters()):
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rng = np.random.default_rng(1)
    for _ in range(steps):
        drawn = [corners(rng) for _ in range(12)]
        cells = torch.from_numpy(np.stack([part[0] for part in drawn])).float()
        pictures = cells[:, None].repeat(1, 3, 1, 1).repeat_interleave(16, 2).repeat_interleave(16, 3)
        embedding = model.vision_encoder.neck(backbone(pictures).spatial.movedim(1, -1))
        boxes = 16.0 * torch.tensor([part[1] for part in drawn])[:, None]
        masks = model(image_embeddings=embedding, input_boxes=boxes, multimask_output=True).pred_masks[:, 0]
        target = cells[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(masks)
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(masks, target).backward()
        optimiser.step()
    model.save_pretrained(folder)


def painted_coco(root: Path, count: int) -> Path:
    """COCO files of red objects on black, each in a picture of its own, masks as plain runs."""
    rng = np.random.default_rng(2)
    images, notes = [], []
    for number in range(count):
        cells, (x0, y0, x1, y1) = corners(rng)
        mask = cells.repeat(16, 0).repeat(16, 1)
        (root / "val2017").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([255 * mask, 0 * mask, 0 * mask], -1)).save(root / "val2017" / f"{number}.png")
        flat = mask.T.flatten()
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]]))).tolist()
        runs = np.diff([0, *edges]).tolist()
        box = [16 * side for side in (x0, y0, x1 - x0, y1 - y0)]
        notes.append(
            {"id": number + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()), "bbox": box,
             "segmentation": {"counts": runs, "size": [CANVAS, CANVAS]}}
        )  # fmt: skip
        images.append({"id": number, "file_name": f"{number}.png", "height": CANVAS, "width": CANVAS})
    data = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "thing"}]}
    make.dump(root / "annotations" / "instances_val2017.json", data)
    return root


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_decoder_that_sees_the_objects_finds_them_and_a_blind_one_guesses(tmp_path: Path) -> None:
    data = opened("coco", painted_coco(tmp_path / "coco", 24), instances="annotations/instances_{split}.json")
    values = {}
    for sees in (True, False):
        folder = tmp_path / f"sam{sees}"
        learn_decoder(folder, Painted(sees), steps=250)
        values[sees] = probe(folder, metrics=("miou",)).run(probed(Painted(sees)), data, seed=0)[0].value
    assert values[True] > 85 and values[False] < 60, values
