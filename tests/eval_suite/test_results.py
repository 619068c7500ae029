"""metrics.json: the documented form, its checks, and that a crash never leaves half a file."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from table_files import metrics

from common.errors import UserError
from eval_suite.metrics.score import Score
from eval_suite.results import Result, read_metrics, validate_metrics, write_metrics

DOCUMENTED = {
    "schema": 1,
    "backbone": {"name": "student", "digest": "sha256:abc"},
    "suite": "embedded",
    "results": [
        {
            "group": "classification",
            "task": "imagenet1k_knn",
            "metric": "top1",
            "value": 84.68,
            "higher_is_better": True,
            "seed": 0,
            "n": 50000,
            "stderr": 0.16,
        },
        {
            "group": "nyudv2",
            "task": "depth",
            "metric": "rmse",
            "value": 0.458,
            "higher_is_better": False,
            "seed": None,
            "n": None,
            "stderr": None,
        },
    ],
}


def changed(**fields: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(DOCUMENTED))
    data["results"][0].update(fields)
    return data


def test_the_documented_form_is_read_and_written_back_unchanged(tmp_path: Path) -> None:
    (tmp_path / "given.json").write_text(json.dumps(DOCUMENTED))
    write_metrics(tmp_path / "run" / "metrics.json", read_metrics(tmp_path / "given.json"))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == DOCUMENTED
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "given.json")


def test_a_score_keeps_its_numbers() -> None:
    result = Result.of(Score(81.5, 200, 0.4), group="dense", task="ade20k", metric="miou", seed=3)
    assert (result.value, result.n, result.stderr, result.seed, result.higher_is_better) == (81.5, 200, 0.4, 3, True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": float("nan")}, "results.0.value"),
        ({"value": None}, "results.0.value"),
        ({"stderr": -0.1}, "results.0.stderr"),
        ({"n": 0}, "results.0.n"),
        ({"group": ""}, "results.0.group"),
        ({"std_err": 0.1}, 'unknown field "results.0.std_err" .*"stderr"'),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_metrics(changed(**fields), "metrics.json")


def test_another_schema_version_is_refused() -> None:
    with pytest.raises(UserError, match="schema"):
        validate_metrics({**DOCUMENTED, "schema": 2}, "metrics.json")
    with pytest.raises(UserError, match="schema"):
        validate_metrics({key: value for key, value in DOCUMENTED.items() if key != "schema"}, "metrics.json")


def test_repeated_and_contradictory_results_are_refused() -> None:
    twice = changed()
    twice["results"].append(twice["results"][0])
    with pytest.raises(UserError, match="occurs 2 times"):
        validate_metrics(twice, "metrics.json")
    twice["results"][-1] = {**twice["results"][0], "seed": 1, "higher_is_better": False}
    with pytest.raises(UserError, match="both better and worse"):
        validate_metrics(twice, "metrics.json")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_metrics(tmp_path / "nothing.json")
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_metrics(tmp_path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(path, metrics("old"))

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_metrics(path, metrics("new"))
    assert read_metrics(path).backbone.name == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_invalid_metrics_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.0\.value"):
        write_metrics(tmp_path / "metrics.json", changed(value="high"))
    assert not list(tmp_path.iterdir())
