"""Do a reader and a probe of yours keep the contract? Call these from your own tests; they raise with what is wrong.

from eval_suite.conformance import check_probe, check_reader
check_reader(MyReader(reader="class:my_lab.MyReader", root="small/"), kinds=["classes"])
check_probe(MyProbe(probe="class:my_lab.MyProbe", name="mine", group="dense", data="d"), data, backbone)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eval_suite.features import ProbedBackbone
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.readers.contracts import IGNORE, TEST, TRAIN, ClassifiedImages, DenseImages, ImageSource, LabelledData
from eval_suite.readers.nodes import ReaderNode
from eval_suite.results import Result
from teachers.contracts import Backbone

FIRST = 4  #: images and labels that are read


def check_reader(node: ReaderNode, kinds: Sequence[str], splits: Sequence[str] = (TRAIN, TEST)) -> LabelledData:
    """AssertionError unless the data set opens, its images are uint8 [b, 3, H, W] of one size, and its labels fit them.

    kinds: what it claims to have, names of methods of `LabelledData` ("classes", "dense", ...). Returns the data set.
    """
    data = node.open("conformance")
    assert isinstance(data, LabelledData), f"open gives a {type(data).__name__}, not LabelledData"
    for kind in kinds:
        for split in splits:
            found = getattr(data, kind)(split)
            for source in _sources(found):
                check_images(source)
            if isinstance(found, ClassifiedImages):
                _check_classes(found)
            elif isinstance(found, DenseImages):
                _check_maps(found)
    return data


def check_images(source: ImageSource) -> None:
    """AssertionError unless a source reads what it should, in any order, the same each time."""
    assert len(source) > 0, f"{source.key} is empty"
    rows = torch.arange(min(FIRST, len(source)))
    images = source.read(rows)
    assert images.dtype == torch.uint8, f"{source.key} gives {images.dtype}, not uint8"
    assert images.ndim == 4 and len(images) == len(rows) and images.shape[1] == 3, f"{source.key}: {images.shape}"
    assert torch.equal(source.read(rows.flip(0)), images.flip(0)), f"{source.key} depends on the order of rows"


def check_probe(node: ProbeNode, data: LabelledData, backbone: Backbone, seed: int = 0) -> list[Result]:
    """AssertionError unless the probe says what it needs, runs, gives finite results of its own name, and repeats."""
    needs = node.needs()
    assert needs and all(isinstance(need, Need) for need in needs), "needs() lists what `run` asks of the data"
    first, second = (node.run(ProbedBackbone(backbone, batch_size=FIRST), data, seed) for _ in range(2))
    assert first, "run gives at least one result"
    for result in first:
        assert isinstance(result, Result), f"run gives a {type(result).__name__}, not eval_suite.results.Result"
        assert (result.group, result.task) == (node.group, node.name), "make results with self.result(...)"
        assert math.isfinite(result.value), f"{result.metric} is {result.value}"
    values = [[result.value for result in results] for results in (first, second)]
    assert values[0] == values[1], f"two runs with one seed differ: {values}"
    return first


def _sources(found: object) -> list[ImageSource]:
    return [part for part in vars(found).values() if isinstance(part, ImageSource)]


def _check_classes(found: ClassifiedImages) -> None:
    assert len(found.labels) == len(found.rows), "a label for each row"
    assert int(found.labels.min()) >= 0 and int(found.labels.max()) < len(found.names), "labels are numbers of names"


def _check_maps(found: DenseImages) -> None:
    rows = torch.arange(min(FIRST, len(found.rows)))
    for name in found.maps:
        labels: Tensor = found.maps[name][rows]
        assert len(labels) == len(rows), f"{name}: a map for each row"
        if name in found.names:
            counted = labels[labels != IGNORE]
            assert not len(counted) or int(counted.max()) < len(found.names[name]), f"{name}: a label without a name"
