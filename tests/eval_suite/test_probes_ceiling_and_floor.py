"""An oracle that encodes the labels reaches the ceiling of every metric, a constant backbone its floor."""

import pytest
from toy_world import Constant, Oracle, ToyData, probed

from eval_suite.probes.base import ProbeNode
from eval_suite.probes.classification import KnnProbe, ZeroShotProbe
from eval_suite.probes.correspondence import KeypointProbe, TwoViewProbe
from eval_suite.probes.dense import SegmentationProbe
from eval_suite.probes.geometry import DepthProbe, NormalsProbe
from eval_suite.probes.multitask import MultitaskProbe
from eval_suite.probes.retrieval import RetrievalProbe
from eval_suite.probes.vlm import VlmProbe
from teachers.contracts import Backbone

TRAINED = {"steps": 150, "batch": 8, "label_size": 8}
PROBES: dict[str, ProbeNode] = {
    "knn": KnnProbe(probe="knn", name="knn", data="toy", k=5),
    "zero_shot": ZeroShotProbe(probe="zero_shot", name="zero_shot", data="toy", templates=("a {} one", "the {}")),
    "segmentation": SegmentationProbe(probe="segmentation", name="seg", data="toy", labels="semantic", **TRAINED),
    "depth": DepthProbe(probe="depth", name="depth", data="toy", fit_size=4, metrics=("rmse", "d1")),
    "normals": NormalsProbe(probe="normals", name="normals", data="toy", fit_size=4),
    "two_view": TwoViewProbe(probe="two_view", name="two_view", data="toy", pixels=(4.0,), cells=4),
    "keypoints": KeypointProbe(probe="keypoints", name="keypoints", data="toy", alpha=0.2, smallest=1, cells=8),
    "retrieval": RetrievalProbe(probe="retrieval", name="retrieval", data="toy", ranks=(1, 5)),
    "multitask": MultitaskProbe(
        probe="multitask",
        name="mt",
        group="pascal_context",
        data="toy",
        tasks={"semantic": 1, "saliency": 5, "depth": 1, "normals": 10},
        hidden=24,
        steps=150,
        batch=8,
        label_size=4,
        learning_rate=1e-2,
    ),
    "vlm": VlmProbe(
        probe="vlm", name="vlm", data="toy", side=4, merge=1, width=32, layers=2, steps=150, batch=16, asked=2
    ),
}
# metric -> (at least, or at most for errors) for the oracle, and (at most, or at least) for the constant one
BOUNDS = {
    ("knn", "top1"): (95, 50),
    ("zero_shot", "top1"): (100, 50),
    ("segmentation", "miou"): (98, 20),
    ("depth", "rmse"): (0.1, 0.8),
    ("depth", "d1"): (99, 60),
    ("normals", "mean"): (2, 40),
    ("two_view", "recall_4px"): (100, 10),
    ("keypoints", "pck_0.2"): (100, 55),
    ("retrieval", "text_to_image_recall1"): (100, 5),
    ("retrieval", "image_to_text_recall1"): (100, 5),
    ("retrieval", "text_to_image_recall5"): (100, 25),
    ("retrieval", "image_to_text_recall5"): (100, 25),
    ("multitask", "semantic_miou"): (95, 20),
    ("multitask", "saliency_maxf"): (95, 40),
    ("multitask", "depth_rmse"): (0.25, 0.8),
    ("multitask", "normals_mean"): (5, 40),
    ("vlm", "colour"): (90, 50),
}


@pytest.fixture(scope="module")
def data() -> ToyData:
    return ToyData()


def results_of(probe: ProbeNode, backbone: Backbone, data: ToyData) -> dict[str, tuple[float, bool]]:
    found = probe.run(probed(backbone), data, seed=0)
    assert all(result.group == probe.group and result.task == probe.name and result.seed == 0 for result in found)
    assert all(result.n and result.stderr is not None for result in found)
    return {result.metric: (result.value, result.higher_is_better) for result in found}


@pytest.mark.parametrize("name", list(PROBES))
def test_oracle_reaches_ceiling_and_constant_stays_at_floor(name: str, data: ToyData) -> None:
    best, worst = (results_of(PROBES[name], backbone, data) for backbone in (Oracle(), Constant()))
    wanted = {metric for probe, metric in BOUNDS if probe == name}
    assert set(best) == set(worst) == wanted
    for metric in wanted:
        ceiling, floor = BOUNDS[name, metric]
        value, higher = best[metric]
        low = worst[metric][0]
        if higher:
            assert value >= ceiling and low <= floor, (metric, value, low)
        else:
            assert value <= ceiling and low >= floor, (metric, value, low)
