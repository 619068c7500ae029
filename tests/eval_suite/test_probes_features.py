"""One pass of the backbone, shared; what is wrong with features is said by name."""

import pytest
import torch
from torch import Tensor
from toy_world import GRID, SIZE, Dumb, Oracle, Squares, ToyData, cells_of, probed

from common.errors import UserError
from eval_suite import features
from eval_suite.probes.classification import KnnProbe, ZeroShotProbe
from eval_suite.probes.retrieval import RetrievalProbe
from teachers.contracts import Features


class Layered(Dumb):
    """A backbone that shows its eight blocks: block b says b everywhere."""

    num_blocks = 8

    def intermediate(self, images: Tensor, blocks: list[int]) -> list[Tensor]:
        return [torch.full((len(images), self.spec.spatial_dim, GRID, GRID), float(block)) for block in blocks]


def test_features_are_extracted_once_and_in_order() -> None:
    backbone, data = Dumb(), ToyData(train=20)
    shared = probed(backbone)
    first = shared.features(data.sources["train"])
    again = shared.features(data.dense("train").images)
    assert again is first
    assert backbone.calls == 2  # 20 images in batches of 16
    expected = data.sources["train"].cells * 40 / 255
    assert torch.allclose(first.spatial[:, 0], expected.float())
    assert first.summary is None


def test_of_a_large_set_only_vectors_are_kept_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data, images = ToyData(20, 10), ToyData(20, 10).sources["train"]
    whole = probed(Oracle())
    assert whole.vectors(images) is whole.features(images)  # a small set: maps and all, once
    tasks = (
        KnnProbe(probe="knn", name="knn", data="toy", k=5, vector="summary_or_mean"),
        ZeroShotProbe(probe="zero_shot", name="zero", data="toy", templates=("a {}",)),
        RetrievalProbe(probe="retrieval", name="retrieval", data="toy", ranks=(1,)),
    )
    expected = [task.run(probed(backbone), data, 0)[0].value for task in tasks for backbone in (Oracle(),)]
    without = KnnProbe(probe="knn", name="knn", data="toy", k=5, vector="summary_or_mean").run(probed(Dumb()), data, 0)
    monkeypatch.setattr(features, "MAPS_KEPT", 0)
    few = probed(Oracle())
    assert [task.run(few, data, 0)[0].value for task in tasks] == expected
    assert not few._tables and few.vectors(images).spatial.shape == (20, 20, 1, 1)
    assert torch.equal(few.vectors(images).summary, whole.features(images).summary)
    assert tasks[0].run(probed(Dumb()), data, 0)[0].value == without[0].value


def test_no_gradient_and_eval_mode() -> None:
    backbone = Oracle().train()
    table = probed(backbone).features(Squares("x", cells_of(3, 0)))
    assert not backbone.training
    assert not table.spatial.requires_grad


def test_forgotten_features_are_extracted_again() -> None:
    backbone, data = Dumb(), ToyData(train=4)
    shared = probed(backbone)
    shared.features(data.sources["train"])
    shared.forget(data.sources["train"])
    shared.features(data.sources["train"])
    assert backbone.calls == 2


def test_nan_features_name_the_image_and_the_backbone() -> None:
    with pytest.raises(UserError, match=r"toy gives NaN .* train\[18\].*float32"):
        # the second batch starts at image 16
        shared = probed(_PoisonSecondBatch(2))
        shared.features(ToyData(train=20).sources["train"])


class _PoisonSecondBatch(Dumb):
    def forward(self, images: Tensor) -> Features:
        self.calls += 1
        spatial = torch.zeros(len(images), 6, GRID, GRID)
        if self.calls == 2:
            spatial[self.poison, 0, 0, 0] = float("inf")
        return Features(None, spatial)


def test_four_layers_are_at_the_quarters_of_the_depth() -> None:
    layers = probed(Layered()).layers(Squares("x", cells_of(3, 0)))
    assert [float(layer.mean()) for layer in layers] == [1.0, 3.0, 5.0, 7.0]
    assert all(layer.shape == (3, Dumb().spec.spatial_dim, GRID, GRID) for layer in layers)


def test_a_backbone_without_layers_says_what_to_set() -> None:
    with pytest.raises(UserError, match="layers: last"):
        probed(Dumb()).layers(Squares("x", cells_of(3, 0)))


def test_a_convolutional_backbone_says_why_its_layers_do_not_do() -> None:
    class Pyramid(Layered):
        def intermediate(self, images: Tensor, blocks: list[int]) -> list[Tensor]:
            return [layer[:, : 1 + number] for number, layer in enumerate(super().intermediate(images, blocks))]

    with pytest.raises(UserError, match=r"inner layers of 1, .* channels; this probe is for a ViT"):
        probed(Pyramid()).layers(Squares("x", cells_of(3, 0)))


def test_images_are_fitted_to_a_fixed_size_backbone() -> None:
    """A 64 px source reaches a 32 px backbone at 32 px."""

    class Larger(Squares):
        def read(self, rows: Tensor) -> Tensor:
            return super().read(rows).repeat_interleave(2, 2).repeat_interleave(2, 3)

    seen: list[tuple[int, ...]] = []

    class Watching(Dumb):
        def forward(self, images: Tensor) -> Features:
            seen.append(tuple(images.shape))
            assert images.min() >= 0 and images.max() <= 1
            return super().forward(images)

    probed(Watching()).features(Larger("large", cells_of(5, 0)))
    assert seen == [(5, 3, SIZE, SIZE)]
