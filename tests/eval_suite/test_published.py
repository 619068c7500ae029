"""Tables of papers are read in one way or refused in words."""

from pathlib import Path

import pytest

from common.errors import UserError, guard
from eval_suite.__main__ import main
from eval_suite.directions import known_direction
from eval_suite.published import NOTHING_SAID, CsvOptions, read_published_csv
from eval_suite.table import build_table


def read(tmp_path: Path, text: str | bytes, options: CsvOptions = NOTHING_SAID) -> dict[str, list[float]]:
    path = tmp_path / "paper.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {
        name: [result.value if result.higher_is_better else -result.value for result in metrics.results]
        for name, metrics in read_published_csv(path, options).items()
    }


@pytest.mark.parametrize("metric", ["rmse", "RMSE", "depth_rmse", "abs_rel", "AbsRel", "mean_error", "mae", "err"])
def test_errors_are_better_when_lower_without_a_mark(metric: str, tmp_path: Path) -> None:
    assert known_direction(metric) is False
    text = f"row,3d/depth/{metric}\nold,0.52\nnew,0.49\n"
    path = tmp_path / "paper.csv"
    path.write_text(text)
    rows = {name: [metrics] for name, metrics in read_published_csv(path).items()}
    assert build_table(rows, "old").rows["new"].columns["3d"].value == pytest.approx(5.77, abs=0.01)


@pytest.mark.parametrize(
    "metric",
    ["top1", "top-5", "mIoU", "kind_miou", "pck@0.1", "pck_0.1", "recall_12px", "text_to_image_recall1", "maxF", "d1"],
)
def test_scores_are_better_when_higher(metric: str) -> None:
    assert known_direction(metric) is True


@pytest.mark.parametrize("metric", ["mean", "score", "normals", "accuracy_drop", "colour", "x"])
def test_other_names_are_asked_for(metric: str, tmp_path: Path) -> None:
    text = f"row,g/t/{metric}\na,1\n"
    with pytest.raises(UserError, match=f"--lower-is-better {metric} or --higher-is-better {metric}"):
        read(tmp_path, text)
    for name in (metric, f"t/{metric}", f"g/t/{metric}"):
        assert read(tmp_path, text, CsvOptions(lower_is_better=[name])) == {"a": [-1.0]}
        assert read(tmp_path, text, CsvOptions(higher_is_better=[name])) == {"a": [1.0]}
    assert read(tmp_path, f"row,g/t/{metric} (-)\na,1\n") == {"a": [-1.0]}
    assert read(tmp_path, f"row,g/t/{metric}(+)\na,1\n") == {"a": [1.0]}
    for name, better in ((f"{metric} \u2191", 1.0), (f"{metric}\u2193", -1.0)):
        assert read(tmp_path, f"row,g/t/{name}\na,1\n") == {"a": [better]}
        assert read(tmp_path, f"row,group,task,metric,value\na,g,t,{name},1\n") == {"a": [better]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row,g/t/top1,g/t/top1\na,1,2\n", 'the column "g/t/top1" 2 times'),
        ("row,row,g/t/top1\na,b,2\n", 'the column "row" 2 times'),
        ("row,g/t/x,g/t/x (-)\na,1,2\n", "is more g/t/x better"),
        ("row,g/t/x (+),g/t/x(+)\na,1,2\n", "two columns of the same metric"),
        ("row,g/t/rmse (+)\na,1\n", "both better and worse"),
        ("row,g/t/top1 (-)\na,1\n", "both better and worse"),
        ("row,g/t/top1\na,1,2\n", "line 2 has 3 cells, but the header has 2"),
        ("row,g/t/top1,g/t/top5\na,1\n", "line 2 has 2 cells, but the header has 3"),
        ("row,g/t/top1\na,81,2\n", "decimal comma"),
        ('row,g/t/top1\na,"81,2"\n', "decimal point, not a comma"),
        ("row,g/t/top1\na,81 %\n", "not a number"),
        ("row,g/t/top1\na,8_1\n", "not a number"),
        ("row,g/t/miou\na,420\n", "miou is a share: 0 to 100"),
        ("row,g/t/top1\na,-3\n", "top1 is a share: 0 to 100"),
        ("row,group,task,metric,value\na,g,t,miou,101\n", "miou is a share: 0 to 100"),
        ("row,g/t/mIoU,g/t/miou\na,1,2\n", 'the column "g/t/mIoU" 2 times .but for case'),
        ("row,g/t/top1\n,40\n", "line 2 has no name in the column"),
        ("row,g/t/top1\na,\uff18\uff11\n", "not a number"),
        ("row,g/t/top1\na,81.2% +- 1\n", "write the number alone"),
        ("row,g/t/top1 \u2193\na,81\n", "both better and worse"),
        ("row,g/t/x \u2191,g/t/x(+)\na,1,2\n", "two columns of the same metric"),
        ("row,group,task,metric,value,higher_is_better\na,g,t,x \u2193,1,true\n", "says the opposite"),
        ("row,g/t/top1\na,nan\n", "finite"),
        ("row,t/top1\na,1\n", "group/task/metric"),
        ("name|g/t/top1\na|1\n", 'must be called "row"'),
        ("", "must be called"),
        ("row,g/t/top1\n", "holds no numbers"),
        ("row,g/t/top1\na,1\na,2\n", "occurs 2 times"),
        ("row,g/t/m\u00e9trique (-)\na,1\n".encode("latin-1"), r"not UTF-8 \(byte 0xe9 in line 1\)"),
        ("row,g/t/top1\na\u00e9,1\n".encode("latin-1"), r"line 2"),
        ("row,g/t/top1\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_only_separator_that_fits_is_taken(separator: str, tmp_path: Path) -> None:
    text = "row,g/t/top1,g/t/rmse\r\nours,81.5,0.4\r\n\r\n".replace(",", separator)
    assert read(tmp_path, "\ufeff" + text) == {"ours": [81.5, -0.4]}


def test_the_separator_is_the_one_beside_row(tmp_path: Path) -> None:
    assert read(tmp_path, "row;g/t/a,b(+)\nx;1\n") == {"x": [1.0]}
    assert read(tmp_path, "group;task;metric;row;value\ng;t;top1;x,y;1\n") == {"x,y": [1.0]}


def test_the_command_line_asks_and_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "paper.csv"
    path.write_text("row,3d/normals/mean\nold,20\nnew,19\n")
    command = ["table", str(path), "--baseline", "old"]
    assert guard(main, command) == 2 and "--lower-is-better mean" in capsys.readouterr().err
    assert guard(main, [*command, "--lower-is-better", "normals/mean"]) == 0
    assert "+5.00" in capsys.readouterr().out


def test_shares_of_one_are_not_compared_with_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0.812 beside 81.2 is a loss of 99 % that nobody had."""
    path = tmp_path / "papers.csv"
    path.write_text("row,g/t/top1,g/t/rmse\nours,81.2,0.41\ntheirs,0.794,0.44\n")
    command = ["table", str(path), "--baseline", "ours"]
    assert guard(main, command) == 2
    said = capsys.readouterr().err
    assert 'row "theirs" has g/t/top1 = 0.794 and row "ours" 81.2' in said and "--allow scale" in said
    assert guard(main, [*command, "--allow", "scale"]) == 0
    assert "shares of 1 beside percent" in capsys.readouterr().out
    path.write_text("row,g/t/top1,g/t/rmse\nours,81.2,0.41\ntheirs,79.4,0.44\n")
    assert guard(main, command) == 0
    (tmp_path / "poor.csv").write_text("row,g/t/top1,g/u/miou\npoor,0.5,12\ngood,40,30\n")
    assert guard(main, ["table", str(tmp_path / "poor.csv"), "--baseline", "good"]) == 0  # one poor score is one
