"""Published linear segmentation protocols: schedules, crops, windows, and that they tell features from none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_readers_layouts import opened
from toy_world import Constant, ToyBackbone, probed

from common.errors import UserError
from eval_suite.probes.crops import distort, keep_ratio, training_crop
from eval_suite.probes.linear_protocols import SCHEDULES, LinearSegmentationProbe, linear_head
from eval_suite.readers.contracts import IGNORE, DenseImages
from eval_suite.readers.image_files import MadeImages
from eval_suite.readers.scenes import ScenesNode
from teachers.contracts import BackboneSpec, Features

COLOURS = np.array([[220, 30, 30], [30, 200, 40], [40, 60, 220], [235, 235, 60]], np.uint8)


class Colours(ToyBackbone):
    """Mean colour of each patch, of any size that is a multiple of 8."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        ones = (1.0, 1.0, 1.0)
        self.spec = BackboneSpec("colours", "test", 8, 3, None, (32, 32), True, ones, ones, "none", "test", "sha256:2")

    def forward(self, images: torch.Tensor) -> Features:
        return Features(None, torch.nn.functional.avg_pool2d(images, 8))


def coloured(root: Path) -> DenseImages:
    """Photographs of coloured blocks, of two sizes, whose colour is the class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for number in range(count):
            cells = rng.integers(0, 4, (4, 4 + number % 2))
            classes = cells.repeat(16, 0).repeat(16, 1)
            for folder, values in (("images", COLOURS[classes]), ("labels", classes.astype(np.uint8))):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(root / folder / split / f"{number}.png")
    labels = {"semantic": {"files": "labels/{split}/*.png", "kind": "classes", "classes": 4}}
    return opened("dense_folders", root, images="images/{split}/*.png", labels=labels)


def probe(**changes: object) -> LinearSegmentationProbe:
    fields = {"protocol": "dinov2-linear", "steps": 150, "batch": 4, "crop": 64, "stride": 48, **changes}
    return LinearSegmentationProbe(probe="linear_segmentation", name="seg", data="toy", **fields)


def test_colour_features_reach_the_ceiling_and_constant_ones_the_floor(tmp_path: Path) -> None:
    data = coloured(tmp_path)
    best = probe().run(probed(Colours()), data, seed=0)[0]
    worst = probe(steps=10).run(probed(Constant()), data, seed=0)[0]
    assert best.value > 70 and worst.value < 20
    assert best.n == 4 and best.protocol == "dinov2-linear (steps=150, batch=4, crop=64, stride=48)"
    again = probe().run(probed(Colours()), data, seed=0)[0]
    assert again.value == best.value
    assert best.to_dict()["protocol"] == best.protocol


def test_every_protocol_runs_and_is_named(tmp_path: Path) -> None:
    data = coloured(tmp_path)
    names = {}
    for protocol in SCHEDULES:
        result = probe(protocol=protocol, steps=2).run(probed(Colours()), data, seed=0)[0]
        names[protocol] = result.protocol
    assert all(named and named.startswith(f"{protocol} (steps=2") for protocol, named in names.items())
    assert probe(steps=None, batch=None, crop=None, stride=None).named_protocol == "dinov2-linear"


def test_schedules_are_the_published_ones() -> None:
    radio, v2, v3 = (SCHEDULES[f"{name}-linear"] for name in ("radio", "dinov2", "dinov3"))
    assert (radio.steps, radio.weight_decay, v2.steps, v2.weight_decay, v3.weight_decay, v3.dropout) == (
        80_000, 0.0, 40_000, 1e-4, 1e-3, 0.1,
    )  # fmt: skip
    for schedule in (radio, v2, v3):
        assert schedule.rate(0, schedule.steps) == pytest.approx(1e-6)
        assert schedule.rate(1500, schedule.steps) == pytest.approx(1.0)
        assert schedule.rate(schedule.steps - 1, schedule.steps) < 1e-4
    half = 1500 + (40_000 - 1500) // 2
    assert v2.rate(half, 40_000) == pytest.approx(0.5, abs=1e-3) and v3.rate(half, 40_000) == pytest.approx(
        0.5, abs=1e-3
    )
    quarter = 1500 + (40_000 - 1500) // 4
    assert v2.rate(quarter, 40_000) == pytest.approx(0.75, abs=1e-3)
    assert v3.rate(quarter, 40_000) == pytest.approx(0.5 + 0.5 * 2**-0.5, abs=1e-3)


def test_a_linear_map_of_the_features_is_learnt_and_batch_norm_uses_its_running_statistics() -> None:
    generator = torch.Generator().manual_seed(0)
    features = 5 + 3 * torch.randn(64, 8, 6, 6, generator=generator)
    labels = torch.einsum("kc,nchw->nkhw", torch.randn(3, 8, generator=generator), features - 5).argmax(1)
    head = linear_head(8, 3, 0.0).train()
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(features), labels).backward()
        optimiser.step()
    head.eval()
    assert (head(features).argmax(1) == labels).float().mean() > 0.95
    one = head(features[:1])
    assert torch.allclose(one, head(features)[:1], atol=1e-5)  # what else is in the batch does not matter


def test_crops_keep_image_and_label_together() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 4, (3, 5), generator=generator).repeat_interleave(20, 0).repeat_interleave(20, 1)
    image = torch.from_numpy(COLOURS.astype(np.float32) / 255)[classes].movedim(-1, 0)
    shown = set()
    for _ in range(20):
        picture, labels = training_crop(image, classes.to(torch.uint8), 48, generator)
        assert picture.shape == (3, 48, 48) and labels.shape == (48, 48)
        assert float(picture.min()) >= 0 and float(picture.max()) <= 1
        padded = labels == IGNORE
        assert bool((picture[:, padded] == 0).all())
        shown |= {bool(padded.any())}
        for cls in labels[~padded].unique().tolist():  # a class keeps one colour, away from its borders
            spread = picture[:, labels == cls].flatten(1).std(1).max()
            assert float(spread) < 0.2
    assert shown == {True, False}  # small scales are padded, large ones are not


def test_scaling_keeps_the_ratio_and_bounds_the_long_side() -> None:
    assert keep_ratio((600, 800), 512) == (512, 683)
    assert keep_ratio((100, 1000), 512) == (205, 2048)  # the long side may be four times the short target


def test_distortion_is_seeded_and_changes_colours() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (distort(image, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    changed = [not torch.allclose(distort(image, torch.Generator().manual_seed(s)), image) for s in range(20)]
    assert sum(changed) > 10


def test_data_that_knows_one_size_only_is_refused() -> None:
    fields = {"train": 2, "test": 1, "pairs": 0, "points": 5, "size": 32, "label_stride": 1, "seed": 3, "workers": 1}
    scenes = ScenesNode(reader="scenes", **fields).open("scenes")
    with pytest.raises(UserError, match=r"at one size only.*the probe `segmentation`"):
        probe(labels="kind").run(probed(Colours()), scenes, seed=0)
    assert callable(MadeImages.original)
