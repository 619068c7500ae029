"""Probing once: answers on disk are used again, and only for the same weights and the same suite."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distill.evaluation.probe_and_report import missing_anywhere, unusable
from distill.evaluation.probe_once import ProbeOnce
from eval_suite.results import Metrics, read_metrics, validate_metrics, write_metrics
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


class CostCounter:
    """A suite that counts how often it is run."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, backbone: Backbone) -> Mapping[str, Any]:
        self.runs += 1
        return metrics(kind=1.0).to_dict()


@pytest.fixture
def student(trained: Path) -> Backbone:
    return load_backbone(f"run:{trained}")


def test_probed_once_per_weights_and_suite(student: Backbone, trained: Path, tmp_path: Path) -> None:
    suite = CostCounter()
    probe = ProbeOnce(suite, write_metrics, "suite 1")
    path = probe.run("arm", student, tmp_path / "arm")
    assert probe.run("arm", student, tmp_path / "arm") == path and suite.runs == 1
    found = read_metrics(path)
    assert (found.backbone.name, found.backbone.digest) == ("arm", student.spec.digest)
    ProbeOnce(suite, write_metrics, "suite 2").run("arm", student, tmp_path / "arm")
    assert suite.runs == 2
    probe.run("arm", load_backbone(f"run:{trained / 'untrained'}"), tmp_path / "arm")
    assert suite.runs == 3


def test_metrics_without_their_receipt_are_made_again(student: Backbone, tmp_path: Path) -> None:
    suite = CostCounter()
    probe = ProbeOnce(suite, write_metrics, "suite")
    probe.run("arm", student, tmp_path)
    receipt = json.loads((tmp_path / "probed.json").read_text())
    (tmp_path / "probed.json").write_text(json.dumps(receipt | {"suite": "older"}))
    probe.run("arm", student, tmp_path)
    assert suite.runs == 2


def test_what_cannot_be_compared_is_named() -> None:
    rows = {"a": metrics(kind=2.0, part=0.0), "b": metrics(kind=3.0)}
    assert unusable([rows["a"]]) == ["dense/part/miou"]
    assert missing_anywhere({name: [row] for name, row in rows.items()}) == {"dense/part/miou"}
