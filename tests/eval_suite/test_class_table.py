"""A mean over classes can be taken apart: in metrics.json, by `table --by-class`, and on the report's page."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_probes_ceiling_and_floor import PROBES
from toy_world import COLOURS, Dumb, ToyData, probed

from common.errors import UserError, guard
from eval_suite.__main__ import main
from eval_suite.class_table import class_table
from eval_suite.metrics.score import cluster_rows, mean_at, score_of
from eval_suite.metrics.segmentation import Segmentation
from eval_suite.report import write_report
from eval_suite.results import BackboneName, Metrics, Result, named_apart, read_metrics, write_metrics
from eval_suite.table import build_table


def run_of(result: Result, name: str = "toy") -> Metrics:
    return Metrics(schema=1, backbone=BackboneName(name=name, digest=name), suite="toy", results=(result,))


def test_a_segmentation_says_what_each_class_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = PROBES["segmentation"].run(probed(Dumb()), ToyData(), seed=0)
    assert result.by_class is not None and tuple(result.by_class) == COLOURS
    assert np.mean([one.value for one in result.by_class.values()]) == pytest.approx(result.value)
    assert all(one.stderr for one in result.by_class.values())
    path = tmp_path / "metrics.json"
    write_metrics(path, run_of(result))
    assert read_metrics(path).results[0].by_class == result.by_class
    command = ["table", f"one={path}", "--baseline", "one", "--by-class", "dense/seg"]
    assert guard(main, command) == 0
    lines = capsys.readouterr().out.splitlines()
    red = result.by_class["red"]
    assert lines[0] == "| dense/seg/miou | one |"
    assert lines[2] == f"| red | {red.value:.2f} ± {red.stderr:.2f} |" and len(lines) == 2 + len(COLOURS)
    assert guard(main, [*command[:-1], "dense/sge"]) == 2
    assert 'did you mean "dense/seg/miou"' in capsys.readouterr().err
    unfit = ["--format csv", f"--out {tmp_path / 'x.csv'}", "--power 3", "--allow-missing dense"]
    for asked in unfit:
        assert guard(main, [*command, *asked.split()]) == 2
    capsys.readouterr()
    rows = {"one": [run_of(result)], "other": [run_of(result, "other")]}
    page = write_report(
        tmp_path / "report", title="t", table=build_table(rows, "one"), metrics_by_row=rows, curves={}, pictures=[],
        notes={},
    ).read_text()  # fmt: skip
    assert "seg miou, class by class" in page and f"{red.value:.2f} ± {red.stderr:.2f}" in page


def test_several_runs_and_rows_that_lack_a_class() -> None:
    def run(**values: float) -> Metrics:
        told = {name: {"value": value, "stderr": 2.0} for name, value in values.items()}
        told |= {"lone": {"value": 1.0, "stderr": None}}
        return run_of(
            Result.model_validate({
                "group": "dense", "task": "seg", "metric": "miou", "value": 1.0, "higher_is_better": True,
                "by_class": told,
            })
        )  # fmt: skip

    lines = class_table({"a": [run(wall=10.0), run(wall=20.0)], "b": [run(door=3.0)]}, "seg").splitlines()
    assert lines[2:] == ["| wall | 15.00 ± 2.00 | – |", "| lone | 1.00 | 1.00 |", "| door | – | 3.00 ± 2.00 |"]
    plain = run_of(Result(group="dense", task="seg", metric="miou", value=1.0, higher_is_better=True))
    with pytest.raises(UserError, match="no row has values by class"):
        class_table({"a": [plain]}, "seg")


def test_the_error_of_a_class_is_over_units() -> None:
    pred, truth = torch.randint(0, 3, (2, 24, 6, 6), generator=torch.Generator().manual_seed(2))
    metric = Segmentation(3)
    metric.update(pred, truth)
    score, units = metric.scores()["miou"], torch.arange(24) // 3
    result = Result.of(score, group="dense", task="seg", metric="miou", classes=("a", "b", "c"))
    told = result.scored_on("set", "scene", units.numpy())
    hit, said, true = metric.rows.split(3, dim=-1)
    pairs = torch.stack([hit[:, 1], (said + true - hit)[:, 1]], 1)
    exact = score_of(cluster_rows(pairs, units), mean_at(0, weight=1, scale=100.0), 24)
    assert told.by_class is not None and told.by_class["b"].value == pytest.approx(exact.value)
    assert told.by_class["b"].stderr == pytest.approx(exact.stderr, rel=0.05)


def test_classes_of_one_name_stay_two() -> None:
    assert named_apart(["wall", "door", "wall"]) == ["wall", "door", "wall (2)"]
