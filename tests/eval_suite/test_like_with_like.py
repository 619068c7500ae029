"""Every result says how it was made, and a table refuses to compare what was not made alike."""

import json
from pathlib import Path
from typing import Any

import pytest
from table_files import metrics

from common.errors import UserError, guard
from eval_suite.__main__ import main
from eval_suite.provenance import program
from eval_suite.results import Metrics, read_metrics, validate_metrics, write_metrics
from eval_suite.suite import load_suite, run_suite
from eval_suite.table import build_table, caption
from teachers.frozen import in_dtype
from teachers.registry import load_backbone

SUITE = Path(__file__).parents[2] / "recipes" / "suites" / "embedded_debug.yaml"


def probed(*overrides: str, dtype: str = "float32") -> Metrics:
    suite = load_suite(SUITE, overrides).only(["classification"])
    suite = suite.model_copy(update={"probes": {"knn": suite.probes["knn"]}})
    backbone = in_dtype(load_backbone("tiny:dino"), dtype, suite.batch_size)
    found = run_suite(backbone, suite, progress=False, samples=True)
    return validate_metrics({key: value for key, value in found.items() if key != "samples"}, "run")


@pytest.fixture(scope="module")
def base() -> Metrics:
    return probed()


def test_every_result_carries_its_four_digests_and_they_survive_the_disk(base: Metrics, tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.json", base)
    again = read_metrics(tmp_path / "metrics.json")
    assert again.to_dict() == base.to_dict()
    for result in again.results:
        assert result.made_by is not None and result.made_by.program == program()
        assert len({result.made_by.protocol, result.made_by.data, result.made_by.backbone}) == 3
    assert again.tasks["classification/knn"].options["temperature"] == 0.07  # a default, at its resolved value


@pytest.mark.parametrize(
    ("override", "named", "narrow"),
    [
        ("probes.knn.k=1", "k=1 against k=5", "protocol.k"),
        ("probes.knn.vector=summary", "vector=summary against vector=summary_or_mean", "protocol.vector"),
        ("data.scenes.test=10", "test=10 against test=12", "data.test"),
        ("data.scenes.seed=5", "seed=5 against seed=910001", "data.seed"),
    ],
)
def test_a_mixture_is_refused_and_the_difference_named(base: Metrics, override: str, named: str, narrow: str) -> None:
    other = probed(override)
    with pytest.raises(UserError) as caught:
        build_table({"a": [base], "b": [other]}, "a")
    assert named in str(caught.value) and f"--allow {narrow}" in str(caught.value)
    for allow in (narrow, narrow.split(".")[0]):
        table = build_table({"a": [base], "b": [other]}, "a", allow=[allow])
        assert named in caption(table)
    with pytest.raises(UserError, match="not measured alike"):
        build_table({"a": [base], "b": [other]}, "a", allow=["program"])


def test_the_same_pixels_with_other_labels_are_other_data(base: Metrics) -> None:
    contents = base.tasks["classification/knn"].contents
    changed = {
        name: digest[::-1] if name.endswith("test classes: labels") else digest for name, digest in contents.items()
    }
    task = base.tasks["classification/knn"].model_copy(update={"contents": changed})
    results = tuple(
        result.model_copy(update={"made_by": result.made_by and result.made_by.model_copy(update={"data": "other"})})
        for result in base.results
    )
    other = base.model_copy(update={"results": results, "tasks": {"classification/knn": task}})
    with pytest.raises(UserError, match="test classes: labels"):
        build_table({"a": [base], "b": [other]}, "a")


def with_made_by(found: Metrics, **changes: Any) -> Metrics:
    results = tuple(
        result.model_copy(update={"made_by": result.made_by and result.made_by.model_copy(update=changes)})
        for result in found.results
    )
    return found.model_copy(update={"results": results})


def test_another_program_and_an_older_file_are_told_apart(base: Metrics) -> None:
    with pytest.raises(UserError, match=r"program 0\.0\.1 against"):
        build_table({"a": [base], "b": [with_made_by(base, program="0.0.1")]}, "a")
    old = base.model_copy(
        update={"results": tuple(r.model_copy(update={"made_by": None}) for r in base.results), "tasks": {}}
    )
    with pytest.raises(UserError, match="--allow unrecorded"):
        build_table({"a": [base], "b": [old]}, "a")
    assert build_table({"a": [base], "b": [old]}, "a", allow=["unrecorded"]).allowed
    assert not build_table({"a": [old], "b": [old]}, "a").allowed  # old files among themselves are read as ever


def test_another_dtype_of_the_backbone_is_told_apart(base: Metrics) -> None:
    fast = probed(dtype="bfloat16")
    ours, theirs = base.results[0].made_by, fast.results[0].made_by
    assert ours is not None and theirs is not None and (ours.dtype, theirs.dtype) == ("float32", "bfloat16")
    assert ours.backbone != theirs.backbone
    with pytest.raises(UserError, match=r"backbone in bfloat16 against float32.*--allow dtype"):
        build_table({"a": [base], "b": [fast]}, "a")
    assert build_table({"a": [base], "b": [fast]}, "a", allow=["dtype"]).allowed
    with pytest.raises(UserError, match="the same run twice"):
        build_table({"a": [base, fast], "b": [base]}, "a", allow=["dtype"])


def test_one_run_given_twice_is_refused(base: Metrics) -> None:
    with pytest.raises(UserError, match="the same run twice"):
        build_table({"a": [base, base], "b": [base]}, "b")


def test_the_command_line_allows_by_name(base: Metrics, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_metrics(tmp_path / "a.json", base)
    write_metrics(tmp_path / "b.json", probed("probes.knn.k=1"))
    command = ["table", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--baseline", "a", "--format", "json"]
    assert guard(main, command) == 2
    assert "k=1 against k=5" in capsys.readouterr().err
    assert guard(main, [*command, "--allow", "k"]) == 2
    assert "protocol.k" in capsys.readouterr().err
    assert guard(main, [*command, "--allow", "protocol.k"]) == 0
    assert json.loads(capsys.readouterr().out)["allowed"] == ["classification/knn: k=1 against k=5"]


def test_files_without_digests_are_written_as_they_were(tmp_path: Path) -> None:
    write_metrics(tmp_path / "old.json", metrics())
    assert "made_by" not in (tmp_path / "old.json").read_text()
