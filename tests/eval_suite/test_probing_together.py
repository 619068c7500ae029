"""What is not added up image by image (recall, PCK, accuracies, box AP, heads) is the same from two processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_detection import Shades, coloured_boxes, probe
from test_metrics_detection import scene
from test_probes_ceiling_and_floor import PROBES
from toy_world import Oracle, ToyData
from two_processes import said_by_two

from eval_suite import processes
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.detection import SIZES, Boxes, box_ap
from eval_suite.readers.contracts import LabelledData
from eval_suite.results import Result
from eval_suite.suite import takes_part
from teachers.contracts import Features


class Foggy(Oracle):
    """An oracle behind noise that is fixed by the image, so that no metric is at its ceiling or its floor."""

    def forward(self, images: torch.Tensor) -> Features:
        summary, spatial = super().forward(images)
        fog = torch.sin(1e4 * torch.cos(1e3 * torch.arange(1.0, spatial[0].numel() + 1)))
        shift = torch.sin(37.0 * (images * torch.arange(1.0, images[0].numel() + 1).view_as(images[0])).sum((1, 2, 3)))
        noise = torch.sin(fog[None] * 50.0 * (1.0 + shift[:, None]))
        return Features(summary + 0.9 * noise[:, : summary.shape[1]], spatial + 1.1 * noise.view_as(spatial))


def found_by(name: str) -> list[Result]:
    """The results of a probe as the suite runs it, in this process."""
    task, data = PROBES[name], ToyData()
    backbone = ProbedBackbone(Foggy(), batch_size=4)
    return task.run_on(backbone, {"toy": data}, 0) if takes_part(task, backbone, data) else []


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "vlm")) for n in PROBES])
def test_a_probe_in_two_processes(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    alone = found_by(name)
    first, second = said_by_two(found_by, tmp_path, name)
    assert second == [] and len(first) == len(alone) > 0
    for ours, theirs in zip(alone, first, strict=True):  # the same batches in the same order: no tolerance
        assert (theirs.key, theirs.value, theirs.stderr, theirs.n) == (ours.key, ours.value, ours.stderr, ours.n)
        assert ours.value > 0 and (ours.value < 100 or not ours.higher_is_better)


def boxes_of(images: list[tuple[Boxes, Boxes]]) -> list[float]:
    """AP of every size, each process having looked at its own part of the images."""
    own = [images[row][0] for row in processes.own_rows(len(images))]
    found = [boxes for part in processes.all_say(own) for boxes in part]
    return [box_ap(found, [truth for _, truth in images], size).value for size in SIZES]


@pytest.mark.parametrize("adversarial", [False, True])
def test_box_ap_of_what_two_processes_found(adversarial: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    images = [scene(rng, whole=adversarial, ties=adversarial) for _ in range(31)]
    alone = boxes_of(images)
    first, second = said_by_two(boxes_of, tmp_path, images)
    assert first == second == alone and 0 < alone[0] < 100


def detected(data: LabelledData, cache: Path) -> Result:
    """With a trained detector in the cache, what is left is to look at the test images."""
    task = probe(epochs=12, learning_rate=2e-3, channels=32, side=128)
    return task.run(ProbedBackbone(Shades(), cache=cache), data, 0)[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_trained_detector_in_two_processes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    given = (coloured_boxes(tmp_path / "data", 48, 11), tmp_path / "cache")
    alone = detected(*given)
    for result in said_by_two(detected, tmp_path, *given):
        assert (result.value, result.stderr) == (alone.value, alone.stderr)
    assert alone.value > 35 and len(list(given[1].rglob("*.pt"))) == 1  # it was trained once
