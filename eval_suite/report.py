"""report.html: what a run found, on one page that opens from disk; and the table beside it as md, csv and json."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from common.atomic import write_text
from common.errors import UserError
from eval_suite.charts import Points, curves, forest, row_colours
from eval_suite.class_table import by_class, text_of
from eval_suite.delta_m import DELTA_M, group_order, measure
from eval_suite.metric_words import explain
from eval_suite.page import fill, heads, heat_rows, interval_text, minus, shade
from eval_suite.results import Key, Metrics
from eval_suite.strips import strips_of
from eval_suite.table import MARKS, Table, caption, title_of
from eval_suite.table_formats import render
from eval_suite.uncertainty import Estimate, Measured


@dataclass(frozen=True)
class ValueCell:
    """A metric of one row: its value and error, and where the row is in the table its relative change."""

    value: str
    stderr: str
    change: str
    interval: str
    shade: str


@dataclass(frozen=True)
class MetricLine:
    """One metric across all rows."""

    task: str
    metric: str
    arrow: str
    explained: str
    floor: str
    n: str
    cells: list[ValueCell | None]


@dataclass(frozen=True)
class RowFacts:
    """Where a row's numbers come from."""

    name: str
    colour: str
    role: str
    backbone: str
    digest: str
    runs: int
    seeds: str
    absent: Mapping[str, str]


def write_report(
    folder: str | Path,
    *,
    title: str,
    table: Table,
    metrics_by_row: Mapping[str, Sequence[Metrics]],
    curves: Mapping[str, Mapping[str, Points]],
    pictures: Sequence[tuple[str, Path]],
    notes: Mapping[str, str],
) -> Path:
    """Write report.html, delta_m.md, delta_m.csv and delta_m.json into `folder`; returns the page's path.

    `metrics_by_row` holds the table's rows and any further ones to show beside them for reference (teachers, the
    untrained student); a row may be several runs. `curves`: chart title -> arm -> (step, value) points. `pictures`:
    (caption, PNG). `notes`: facts of the run, name -> text.
    """
    folder = Path(folder)
    if missing := [name for name in table.rows if name not in metrics_by_row]:
        raise UserError(f"the report lacks the metrics of row {', '.join(missing)}")
    for form in ("md", "csv", "json"):
        write_text(folder / f"delta_m.{form}", render(table, form))
    names = [*table.rows, *(name for name in metrics_by_row if name not in table.rows)]
    drawn = [*table.rows, *(arm for arms in curves.values() for arm in arms)]
    colours = dict.fromkeys(names, "transparent") | row_colours(drawn, table.baseline)
    page = fill(
        "report.html.j2",
        title=title,
        headline=headline(table),
        table=table,
        heat=heat_rows(table),
        heads=heads(table),
        caption=caption(table, "[95 % interval]"),
        colours=colours,
        forest=forest(table, colours) if len(table.rows) > 1 else Markup(""),
        names=names,
        classes=class_lines({name: metrics_by_row[name] for name in names}),
        groups=metric_lines(table, {name: metrics_by_row[name] for name in names}),
        explained=explanations(metrics_by_row),
        suite=metrics_by_row[table.baseline][0].suite,
        curves=_curves(curves, colours),
        arms=list(dict.fromkeys(arm for arms in curves.values() for arm in arms)),
        pictures=[(text, _inline(Path(path))) for text, path in pictures],
        facts=[_facts(name, metrics_by_row[name], table, colours[name]) for name in names],
        several_runs=max(table.runs.values()) > 1,
        paired=all(row.columns[DELTA_M].paired for row in table.rows.values()),
        strips=strips_of(table.baseline, {name: metrics_by_row[name] for name in table.rows}),
        links=links_of(folder),
        notes=notes,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def links_of(folder: Path) -> list[tuple[str, str]]:
    """(what it is, address relative to the page) of the run's files that are there."""
    files = {
        "recipe": "../recipe.yaml",
        "log": "../log.jsonl",
        "student": "../student/README.md",
        "metrics": "../metrics.json",
        "table as JSON": "delta_m.json",
        "table as CSV": "delta_m.csv",
    }
    return [(name, path) for name, path in files.items() if (folder / path).is_file()]


def headline(table: Table) -> str:
    """The answer in a sentence, no stronger than its interval."""
    rows = {name: row.columns[DELTA_M] for name, row in table.rows.items() if name != table.baseline}
    if not rows:
        return f"Only the baseline {table.baseline} was measured."
    best = max(rows, key=lambda name: rows[name].value)
    text = f"{best}: Δm = {minus(rows[best].value)} %"
    if (interval := rows[best].ci95) is None:
        return f"{text} against {table.baseline}; no standard errors are known, so nothing says how sure this is."
    text += f" against {table.baseline} (95 % interval {minus(interval[0])} to {minus(interval[1])})"
    if not rows[best].is_real:
        return f"{text}: not distinguishable from no change."
    text += f"{', the highest of ' + str(len(rows)) + ' rows' if len(rows) > 1 else ''}."
    if rows[best].claim == "networks":
        return (
            f"{text} One run a row: these networks differ; whether another training would come out alike is not known."
        )
    return f"{text} Over {table.runs[best]} runs against {table.runs[table.baseline]}: the method differs."


def class_lines(rows: Mapping[str, Sequence[Metrics]]) -> dict[str, dict[str, list[str]]]:
    """Metric -> class -> the text of every row's cell."""
    return {
        " ".join(key[1:]): {name: [text_of(cell) for cell in cells] for name, cells in found.items()}
        for key, found in by_class(rows).items()
    }


def explanations(metrics_by_row: Mapping[str, Sequence[Metrics]]) -> dict[str, str]:
    """What the metrics of the page count, by name."""
    names = sorted({result.metric for runs in metrics_by_row.values() for run in runs for result in run.results})
    return {name: text for name in names if (text := explain(name)) is not None}


def metric_lines(table: Table, metrics_by_row: Mapping[str, Sequence[Metrics]]) -> dict[str, list[MetricLine]]:
    """Every metric of every row, by group title."""
    rows = {name: measure(runs, name) for name, runs in metrics_by_row.items()}
    counts = {result.key: result.n for runs in metrics_by_row.values() for run in runs for result in run.results}
    strongest = max((abs(e.value) for row in table.rows.values() for e in row.metrics.values()), default=0.0)
    lines: dict[str, list[MetricLine]] = {}
    for group in group_order([key[0] for key in counts]):
        keys = [key for key in counts if key[0] == group]
        lines[title_of(group)] = [_line(key, rows, table, counts[key], strongest) for key in keys]
    return lines


def _line(
    key: Key, rows: Mapping[str, Mapping[Key, Measured]], table: Table, n: int | None, strongest: float
) -> MetricLine:
    measured = {name: row.get(key) for name, row in rows.items()}
    higher = next(metric.higher_is_better for metric in measured.values() if metric is not None)
    cells = []
    for name, metric in measured.items():
        change = table.rows[name].metrics.get(key) if name in table.rows and name != table.baseline else None
        cells.append(None if metric is None else _cell(metric, change, strongest))
    known = next((metric for metric in measured.values() if metric is not None and metric.units), None)
    count = f"{n:,}" if n else "–"
    if known is not None and known.units != n:
        count += f" ({known.units:,} units)"
    floors = [metric.floor for metric in measured.values() if metric is not None and metric.floor is not None]
    floor = f"a blind answer scores {floors[0]:.4g}" if floors else ""
    arrow = "↑" if higher else "↓"
    return MetricLine(key[1], key[2], arrow, explain(key[2]) or "", floor, count, cells)


def _cell(metric: Measured, change: Estimate | None, strongest: float) -> ValueCell:
    digits = 3 if abs(metric.mean) < 10 else 2
    stderr = "" if metric.stderr is None else f"± {metric.stderr:.{digits}f}"
    value = f"{metric.mean:.{digits}f}{right_of(metric)}"
    if change is None:
        return ValueCell(value, stderr, "", "", "transparent")
    return ValueCell(
        value,
        stderr,
        f"{minus(change.value, 1)} %{MARKS[change.claim]}",
        interval_text(change),
        shade(change, strongest),
    )


def right_of(metric: Measured) -> str:
    """ " (125 of 400)" where a metric of one run is the plain share of units that are right, else nothing."""
    if len(metric.runs) > 1 or metric.samples is None:
        return ""
    scores = metric.samples.samples.scores
    right = np.abs(scores - 100) < 1e-3
    if not bool((right | (np.abs(scores) < 1e-3)).all()):
        return ""
    return f" ({int(right.sum()):,} of {len(scores):,})"


def _facts(name: str, runs: Sequence[Metrics], table: Table, colour: str) -> RowFacts:
    seeds = sorted({result.seed for run in runs for result in run.results if result.seed is not None})
    role = "baseline" if name == table.baseline else "compared" if name in table.rows else "for reference"
    digests = ", ".join(dict.fromkeys(run.backbone.digest.removeprefix("sha256:")[:12] for run in runs))
    backbones = ", ".join(dict.fromkeys(run.backbone.name for run in runs))
    absent = {task: why for run in runs for task, why in run.absent.items()}
    return RowFacts(
        name, colour, role, backbones, digests, len(runs), ", ".join(str(seed) for seed in seeds) or "–", absent
    )


def _curves(charts: Mapping[str, Mapping[str, Points]], colours: Mapping[str, str]) -> list[Markup]:
    drawn = [curves(title, arms, colours) for title, arms in charts.items()]
    return [chart for chart in drawn if chart]


def _inline(path: Path) -> str:
    """A PNG as a data address, so that the page needs no other file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the picture {path}: {error.strerror}") from error
    if not data.startswith(b"\x89PNG"):
        raise UserError(f"the picture {path} is not a PNG")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
