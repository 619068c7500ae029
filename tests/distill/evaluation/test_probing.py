"""Probing once: answers on disk are used again, and only for the same weights and the same suite."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.json_files import write_json
from distill.evaluation import probing
from distill.evaluation.probing import ProbeJob, probe_once, rows_below
from distill.evaluation.report import missing_anywhere, unusable
from eval_suite.finished import FinishedTasks
from eval_suite.results import Metrics, read_metrics, validate_metrics, write_metrics
from eval_suite.suite import Suite, load_suite
from eval_suite.table_rows import ROWS, read_rows
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
        probing,
        "recall_or_run",
        lambda backbone, suite, **options: ran.append(suite.name) or run(backbone, suite, **options),
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


def test_an_interrupted_judgement_keeps_its_finished_probes(
    student: Backbone, tmp_path: Path, suites: list[Suite], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = suites[0].probes["knn"]
    both = suites[0].model_copy(update={"probes": {"knn": node, "again": node.model_copy(update={"name": "again"})}})
    asked, knn = [], type(node).run

    def stopped_at_the_second(probe: Any, *arguments: Any) -> Any:
        asked.append(probe.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return knn(probe, *arguments)

    monkeypatch.setattr(type(node), "run", stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        probe_once("arm", student, both, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    found = read_metrics(probe_once("arm", student, both, tmp_path))
    assert asked == ["knn", "again", "again"] and {result.task for result in found.results} == {"knn", "again"}
    assert not FinishedTasks.beside(tmp_path / "metrics.json").folder.exists()


def test_the_rows_of_a_comparison_are_found_below_its_folder(tmp_path: Path) -> None:
    jobs = [
        ProbeJob("a-seed0", "a", "run:x", tmp_path / "a-seed0"),
        ProbeJob("a-seed1", "a", "run:x", tmp_path / "a-seed1"),
        ProbeJob("untrained", "untrained", "run:x", tmp_path / "a-seed0" / "untrained"),
    ]
    for job in jobs:
        write_metrics(job.folder / "metrics.json", metrics(kind=2.0))
    write_json(tmp_path / ROWS, rows_below(jobs, tmp_path))
    assert {row: len(runs) for row, runs in read_rows([str(tmp_path)]).items()} == {"a": 2, "untrained": 1}


def test_what_cannot_be_compared_is_named() -> None:
    rows = {"a": metrics(kind=2.0, part=0.0), "b": metrics(kind=3.0)}
    assert unusable([rows["a"]]) == ["dense/part/miou"]
    assert missing_anywhere({name: [row] for name, row in rows.items()}) == {"dense/part/miou"}
