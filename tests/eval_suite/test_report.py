"""report.html: complete, escaped, one file, and no surer than the numbers."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from table_files import metrics, without

from common.errors import UserError
from eval_suite.charts import Axis, nice_step, smooth
from eval_suite.report import headline, write_report
from eval_suite.results import Metrics
from eval_suite.table import build_table

ROWS = {"bilinear": [metrics("run:bilinear")], "sharp": [metrics("run:sharp", change=25.0)]}
TEACHER = without(metrics("tiny:dino", change=40.0), "nyudv2", {"nyudv2/depth": "no inner layers"})


class Page(HTMLParser):
    """Addresses a page refers to, whether its tags match, and the text outside of the style sheet."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID and not (self.open and self.open[-1] == tag):
            return
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words += data


def report(folder: Path, rows: dict[str, list[Metrics]] = ROWS, **extra: object) -> str:
    picture = folder / "picture.png"
    Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(picture)
    arguments: dict[str, object] = {
        "title": "Bilinear <or> sharp?",
        "table": build_table(rows, "bilinear"),
        "metrics_by_row": {**rows, "tiny:dino": [TEACHER]},
        "curves": {"loss": {name: [(float(s), 2.0 / (s + 1)) for s in range(90)] for name in rows}},
        "pictures": [("one PCA basis & all", picture)],
        "notes": {"recipe": "recipes/quickstart.yaml"},
    }
    path = write_report(folder / "report", **{**arguments, **extra})  # type: ignore[arg-type]
    assert path == folder / "report" / "report.html"
    return path.read_text(encoding="utf-8")


def test_one_file_that_needs_no_network(tmp_path: Path) -> None:
    text = report(tmp_path)
    page = Page(text)
    assert page.open == []
    pictures = [address for address in page.addresses if address.startswith("data:")]
    assert len(pictures) == 1 and pictures[0].startswith("data:image/png;base64,iVBOR")
    within = [address for address in page.addresses if address not in pictures]
    assert within and all(address.startswith("#") or (tmp_path / "report" / address).is_file() for address in within)
    assert all(f'id="{address[1:]}"' in text for address in within if address.startswith("#"))
    assert "<script" not in text and "@import" not in text and not re.search(r"url\(", text)
    assert "http" not in text


def test_everything_is_on_it(tmp_path: Path) -> None:
    words = Page(report(tmp_path)).words
    expected = ("Bilinear <or> sharp?", "one PCA basis & all", "recipes/quickstart.yaml", "for reference", "00ff")
    assert all(text in words for text in expected)
    assert "80.00 ± 1.00" in words and "100.00 ± 1.00" in words and "0.500 ± 0.020" in words
    assert "+25.0 %°" in words and "rmse ↓" in words and "top1 ↑" in words
    assert "nyudv2/depth (no inner layers)" in words
    assert "400" in words and "Every row is one run" in words


def test_the_table_lies_beside_it(tmp_path: Path) -> None:
    report(tmp_path)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "delta_m.csv",
        "delta_m.json",
        "delta_m.md",
        "report.html",
    ]
    data = json.loads((tmp_path / "report" / "delta_m.json").read_text())
    assert data["rows"]["sharp"]["delta_m"]["value"] == pytest.approx(25.0)


def test_names_are_escaped(tmp_path: Path) -> None:
    rows = {"bilinear": ROWS["bilinear"], "<img src=x>": ROWS["sharp"]}
    text = report(tmp_path, rows)
    assert "<img src=x>" not in text and "&lt;img src=x&gt;" in text
    assert not [address for address in Page(text).addresses if address == "x"]


def test_a_chart_has_one_line_for_each_arm_and_skips_what_is_not_a_number(tmp_path: Path) -> None:
    curves = {"loss": {"bilinear": [(0, 1.0), (1, float("nan")), (2, 0.5)], "sharp": [(0, 1.0), (2, 0.25)]}, "none": {}}
    text = report(tmp_path, curves=curves)
    assert text.count("<polyline") == 2
    assert "nan" not in "".join(re.findall(r'points="[^"]*"', text))
    assert "none over training" not in text


def test_rows_of_several_runs_say_so(tmp_path: Path) -> None:
    rows = {
        name: [metrics(name, change=c + s, seed=s) for s in range(3)] for name, c in (("bilinear", 0), ("sharp", 9))
    }
    words = Page(report(tmp_path, rows)).words
    assert "3 runs a row" in words and "0, 1, 2" in words and "Every row is one run" not in words


def test_the_headline_is_no_surer_than_the_interval() -> None:
    sure = build_table(ROWS, "bilinear")
    assert "+25.00 % against bilinear (95 % interval +" in headline(sure)
    unsure = build_table({"bilinear": [metrics()], "sharp": [metrics(change=0.3)]}, "bilinear")
    assert "not distinguishable from no change" in headline(unsure)
    blind = build_table({"bilinear": [metrics(stderr=False)], "sharp": [metrics(change=9, stderr=False)]}, "bilinear")
    assert "no standard errors are known" in headline(blind)
    assert "Only the baseline" in headline(build_table({"bilinear": [metrics()]}, "bilinear"))


def test_a_row_without_its_metrics_and_a_bad_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metrics of row sharp"):
        report(tmp_path, metrics_by_row={"bilinear": ROWS["bilinear"]})
    with pytest.raises(UserError, match="cannot read the picture"):
        report(tmp_path, pictures=[("x", tmp_path / "none.png")])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="is not a PNG"):
        report(tmp_path, pictures=[("x", tmp_path / "text.png")])


def test_ticks_are_round_and_inside() -> None:
    assert Axis(-3.2, 11.7, 0, 1).ticks() == pytest.approx([0, 5, 10])
    assert Axis(0.03, 40, 0, 1, log=True).ticks() == pytest.approx([0.1, 1, 10])
    assert [nice_step(span) for span in (1.0, 7.0, 0.04, 30.0)] == pytest.approx([0.2, 2.0, 0.01, 10.0])
    assert Axis(1, 100, 0, 10, log=True).at(10) == pytest.approx(5.0)


def test_smoothing_keeps_a_line_a_line() -> None:
    points = np.stack([np.arange(200.0), 3 * np.arange(200.0)], 1)
    np.testing.assert_allclose(smooth(points)[5:-5], points[5:-5])
