"""Probing once: answers on disk are used again, and only for the same weights and the same suite."""

import json
from pathlib import Path

import pytest
import yaml

from distill.evaluation import probing
from distill.evaluation.probing import probe_once
from distill.evaluation.report import missing_anywhere, unusable
from eval_suite.results import Metrics, read_metrics, validate_metrics
from eval_suite.suite import Suite, load_suite
from teachers.contracts import Backbone
from teachers.registry import load_backbone


def metrics(**values: float) -> Metrics:
    """A metrics.json with one dense metric per name."""
    results = [
        {"group": "dense", "task": task, "metric": "miou", "value": value, "higher_is_better": True}
        for task, value in values.items()
    ]
    data = {"schema": 1, "backbone": {"name": "b", "digest": "d"}, "suite": "s", "results": results}
    return validate_metrics(data, "test")


@pytest.fixture
def student(trained: Path) -> Backbone:
    return load_backbone(f"run:{trained}")


@pytest.fixture
def suites(tmp_path: Path) -> list[Suite]:
    """Two that differ in a number, small enough to run."""
    path = tmp_path / "suite.yaml"
    node = {
        "name": "s",
        "data": {
            "d": {
                "reader": "scenes",
                "seed": 5,
                "points": 5,
                "label_stride": 2,
                "size": 32,
                "train": 12,
                "test": 8,
                "pairs": 2,
            }
        },
    }
    path.write_text(yaml.safe_dump(node | {"probes": {"knn": {"probe": "knn", "data": "d", "k": 2}}}), encoding="utf-8")
    return [load_suite(path), load_suite(path, ["probes.knn.k=3"])]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The suites that were really run."""
    ran: list[str] = []
    run = probing.recall_or_run
    monkeypatch.setattr(
        probing, "recall_or_run", lambda backbone, suite, progress: ran.append(suite.name) or run(backbone, suite)
    )
    return ran


def test_probed_once_per_weights_and_suite(
    student: Backbone, trained: Path, tmp_path: Path, suites: list[Suite], runs: list[str]
) -> None:
    path = probe_once("arm", student, suites[0], tmp_path / "arm")
    assert probe_once("arm", student, suites[0], tmp_path / "arm") == path and len(runs) == 1
    found = read_metrics(path)
    assert (found.backbone.name, found.backbone.digest) == ("arm", student.spec.digest)
    probe_once("arm", student, suites[1], tmp_path / "arm")
    assert len(runs) == 2
    probe_once("arm", load_backbone(f"run:{trained / 'untrained'}"), suites[1], tmp_path / "arm")
    assert len(runs) == 3


def test_metrics_without_their_receipt_are_made_again(
    student: Backbone, tmp_path: Path, suites: list[Suite], runs: list[str]
) -> None:
    probe_once("arm", student, suites[0], tmp_path)
    receipt = json.loads((tmp_path / "probed.json").read_text())
    (tmp_path / "probed.json").write_text(json.dumps(receipt | {"suite": "older"}))
    probe_once("arm", student, suites[0], tmp_path)
    assert len(runs) == 2


def test_what_cannot_be_compared_is_named() -> None:
    rows = {"a": metrics(kind=2.0, part=0.0), "b": metrics(kind=3.0)}
    assert unusable([rows["a"]]) == ["dense/part/miou"]
    assert missing_anywhere({name: [row] for name, row in rows.items()}) == {"dense/part/miou"}
