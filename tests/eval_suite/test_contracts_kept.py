"""The checks that users call from their own tests: ours pass, and each broken part is named."""

from dataclasses import replace

import pytest
import torch
from test_own_parts import my_parts  # noqa: F401
from toy_world import Oracle, Squares, ToyData, cells_of

from eval_suite.conformance import check_images, check_probe, check_reader
from eval_suite.probes.classification import KnnProbe
from eval_suite.readers.contracts import ClassifiedImages
from eval_suite.readers.nodes import ReaderNode
from teachers.conformance import check_backbone
from teachers.contracts import Backbone, Features
from teachers.registry import load_backbone

KNN = KnnProbe(probe="knn", name="k", data="toy", k=1)


class Toy(ReaderNode):
    reader: str = "toy"

    def open(self, name: str) -> ToyData:
        return ToyData()


def test_ours_pass() -> None:
    data = check_reader(Toy(), ["classes", "dense", "captions", "pairs", "keypoints"])
    assert check_probe(KNN, data, Oracle())[0].value == 100
    check_backbone(load_backbone("tiny:dino"))
    check_backbone(load_backbone("tiny:sam"), batch=2)


def test_a_broken_reader_is_named() -> None:
    class Wrong(ToyData):
        def classes(self, split: str) -> ClassifiedImages:
            good = super().classes(split)
            return replace(good, labels=good.labels + len(good.names))

    class WrongNode(Toy):
        def open(self, name: str) -> ToyData:
            return Wrong()

    with pytest.raises(AssertionError, match="labels are numbers of names"):
        check_reader(WrongNode(), ["classes"])

    class Drifting(Squares):
        def read(self, rows: torch.Tensor) -> torch.Tensor:
            return self.pixels[: len(rows)]

    with pytest.raises(AssertionError, match="order of rows"):
        check_images(Drifting("d", cells_of(5, 0)))


def test_a_probe_that_does_not_repeat_is_named() -> None:
    class Rolling(KnnProbe):
        def run(self, backbone, data, seed):
            found = super().run(backbone, data, seed)
            return [result.model_copy(update={"value": float(torch.rand(()))}) for result in found]

    with pytest.raises(AssertionError, match="two runs with one seed differ"):
        check_probe(Rolling(probe="knn", name="k", data="toy", k=1), ToyData(), Oracle())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: Features(None, f.spatial), "summary is None"),
        (lambda f: Features(f.summary, f.spatial[..., :-1]), "the spec says"),
        (lambda f: Features(f.summary, f.spatial.double()), "not float32"),
        (lambda f: Features(f.summary, f.spatial * float("nan")), "not finite"),
        (lambda f: Features(f.summary, f.spatial - f.spatial.mean(0)), "images beside it"),
        (lambda f: Features(f.summary, f.spatial + torch.rand(())), "shown again"),
        (lambda f: Features(f.summary, torch.ones_like(f.spatial)), "the same map"),
        (lambda f: tuple(f), "not Features"),
    ],
)
def test_a_broken_backbone_is_named(change, message: str) -> None:
    inner = load_backbone("tiny:dino")

    class Broken(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.spec = inner.spec

        def forward(self, images: torch.Tensor) -> Features:
            return change(inner(images))

    with pytest.raises(AssertionError, match=message):
        check_backbone(Broken().eval())
