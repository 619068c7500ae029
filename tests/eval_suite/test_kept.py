"""What is kept of a run: finished probes when it is interrupted, predictions when they are asked for."""

from collections.abc import Sequence
from pathlib import Path

import layout_fixtures as make
import numpy as np
import pytest
from test_probe3d_dense import LayeredOracle, depth_probe, normals_probe
from test_readers_layouts import opened
from toy_world import Constant, ToyData

from common.errors import guard
from eval_suite.__main__ import main
from eval_suite.features import ProbedBackbone
from eval_suite.finished import FinishedTasks
from eval_suite.predictions import TOLERANCE, Predictions, predictions_path, read_predictions, rescore
from eval_suite.probes.probe3d_views import Probe3dViewsProbe
from eval_suite.results import BackboneName, Metrics, read_metrics
from eval_suite.suite import load_suite, run_probes
from teachers.registry import load_backbone

SUITE = Path(__file__).parents[2] / "recipes" / "suites" / "embedded_debug.yaml"


def metrics_run(out: Path, *more: str) -> Metrics:
    command = ["run", "--backbone", "tiny:clip", "--suite", str(SUITE), "--out", str(out), *more]
    assert guard(main, command) == 0
    return read_metrics(out)


def values(metrics: Metrics, groups: Sequence[str]) -> dict[tuple[str, str, str], float]:
    return {result.key: result.value for result in metrics.results if result.group in groups}


def test_an_interrupted_run_goes_on_after_its_finished_probes(tmp_path: Path) -> None:
    suite = load_suite(SUITE).only(["classification"])
    folder = FinishedTasks.beside(tmp_path / "metrics.json")
    backbone, passes = load_backbone("tiny:clip"), []
    backbone.register_forward_hook(lambda *_: passes.append(1))
    first = next(run_probes(backbone, suite, progress=False, finished=folder))  # stopped after one probe
    assert len(passes) > 0 and len(list(folder.folder.glob("*/metrics.json"))) == 1
    seen = len(passes)
    again = next(run_probes(backbone, suite, progress=False, finished=folder))
    assert [one.to_dict() for one in again.results] == [one.to_dict() for one in first.results]
    assert len(passes) == seen and again.results[0].samples is not None  # nothing was looked at again
    changed = load_suite(SUITE, ["probes.knn.k=3"]).only(["classification"])
    other = next(run_probes(backbone, changed, progress=False, finished=folder))
    assert len(passes) > seen and other.results[0].made_by != first.results[0].made_by  # another protocol is no hit
    out = tmp_path / "metrics.json"
    whole = metrics_run(out, "--only", "classification")
    assert len(whole.results) == 2 and not folder.folder.exists()


def test_predictions_are_kept_when_asked_for_and_score_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "metrics.json"
    groups = ("classification", "dense", "3d", "retrieval", "pascal_context", "nyudv2", "vlm")
    chosen = [part for group in groups for part in ("--only", group)]
    plain = metrics_run(out, *chosen)
    assert not predictions_path(out).exists()
    kept = metrics_run(out, *chosen, "--keep-predictions")
    assert values(kept, groups) == values(plain, groups)  # keeping changes no number
    found = read_predictions(out)
    assert found is not None
    assert found.arrays["dense/kind"]["pictures"].shape == (12, 3, 64, 64)
    assert len(found.plain["vlm/vlm"]["replies"]) == len(found.plain["vlm/vlm"]["questions"])
    capsys.readouterr()
    assert guard(main, ["rescore", str(out)]) == 0
    said = capsys.readouterr().out
    assert "classification/knn/top1" in said and "dense/kind/miou" in said and "3d/keypoints/pck_0.1" in said
    assert all(f"{result.group}/{result.task}/{result.metric}" in said for result in kept.results)
    assert "vlm/vlm/main_colour" in said and "3d/depth/rmse" in said and "3d/two_view/recall_12px" in said
    found.arrays["classification/knn"]["predicted"] = np.zeros_like(found.arrays["classification/knn"]["predicted"]) - 1
    found.write(out)
    assert guard(main, ["rescore", str(out)]) == 2
    assert "do not come out again: classification/knn/top1" in capsys.readouterr().err
    predictions_path(out).write_bytes(b"PK\x03\x04 cut")
    assert guard(main, ["rescore", str(out)]) == 2
    assert "is damaged" in capsys.readouterr().err
    predictions_path(out).unlink()
    assert guard(main, ["rescore", str(out)]) == 2
    assert "--keep-predictions" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_what_probe3d_predicted_scores_again(task: str) -> None:
    """On the head's own grid; the scores are of the labels' full size."""
    probe = (depth_probe if task == "depth" else normals_probe)(epochs=2)
    kept = Predictions()
    backbone = ProbedBackbone(LayeredOracle(), batch_size=16, predictions=kept)
    results = tuple(probe.run(backbone, ToyData(), 0))
    assert kept.arrays[f"3d/{task}"]["labels"].dtype == np.float16
    whole = Metrics(schema=1, backbone=BackboneName(name="toy", digest="0"), suite="toy", results=results)
    lines = rescore(whole, kept)
    assert len(lines) == len(results) > 3
    for _, metric, before, after in lines:
        assert after == pytest.approx(before, rel=TOLERANCE, abs=1e-3), metric


def test_what_probe3d_matched_scores_again(tmp_path: Path) -> None:
    kept = Predictions()
    data = opened("scannet1500", make.scannet(tmp_path), points=20)
    task = Probe3dViewsProbe(probe="probe3d_views", name="views", data="toy", cells=24, kept=60, pixels=(20.0,))
    results = tuple(task.run(ProbedBackbone(Constant(), batch_size=16, predictions=kept), data, 0))
    assert all(result.floor is not None for result in results)
    whole = Metrics(schema=1, backbone=BackboneName(name="toy", digest="0"), suite="toy", results=results)
    assert [line[1] for line in rescore(whole, kept)] == ["recall_1cm", "recall_2cm", "recall_5cm", "recall_20px"]
    assert all(before == after for *_, before, after in rescore(whole, kept))
