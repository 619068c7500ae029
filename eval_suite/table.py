"""The Δm table: rows against a baseline, columns the groups and their mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError, unknown
from eval_suite.delta_m import DELTA_M, Comparison, compare, left_out, measure, tells_nothing, unchanged
from eval_suite.like_with_like import check_alike
from eval_suite.results import Key, Metrics
from eval_suite.uncertainty import FEWEST_UNITS, Claim, Estimate

TITLES = {
    "classification": "Classification",
    "dense": "Dense",
    "3d": "3D",
    "retrieval": "Retrieval",
    "pascal_context": "PASCAL-Context",
    "nyudv2": "NYUDv2",
    "vlm": "VLM",
    DELTA_M: "Δm",
}
ROBUST = "robust Δm"
#: what a star says depends on how many runs it rests on
MARKS: dict[Claim, str] = {"method": "*", "networks": "°", "none": ""}
CLAIMS: dict[Claim, str] = {
    "method": "the method helps or harms: three or more runs on both sides, and the 95 % interval excludes 0",
    "networks": "these two networks differ: the 95 % interval over test images excludes 0, but one run, or two, cannot "
    "say that another training would come out alike",
}


@dataclass(frozen=True)
class Table:
    """Relative changes in percent against the row called `baseline`."""

    baseline: str
    columns: tuple[str, ...]  #: groups, then "delta_m"
    rows: Mapping[str, Comparison]
    runs: Mapping[str, int]  #: how many runs each row is the mean of
    left_out: tuple[Key, ...]  #: metrics that were allowed to be missing, and are in no row
    near_floor: tuple[Key, ...] = ()  #: metrics that the robust Δm leaves out: they tell no two rows apart
    allowed: tuple[str, ...] = ()  #: differences between the rows' protocols or data that were allowed by name

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: baseline, columns, rows, Δm without each metric; `left_out` only where something was."""
        rows = {
            name: {column: _cell(row.columns[column]) for column in self.columns} for name, row in self.rows.items()
        }
        out: dict[str, Any] = {"baseline": self.baseline, "columns": list(self.columns), "rows": rows}
        without = {
            name: {"/".join(key): value for key, value in row.without.items()} for name, row in self.rows.items()
        }
        out["delta_m_without"] = {name: values for name, values in without.items() if values}
        out["robust_delta_m"] = {name: row.robust and _cell(row.robust) for name, row in self.rows.items()}
        if self.near_floor:
            out["near_floor"] = ["/".join(key) for key in self.near_floor]
        if self.left_out:
            out["left_out"] = ["/".join(key) for key in self.left_out]
        return out | ({"allowed": list(self.allowed)} if self.allowed else {})


def build_table(
    rows: Mapping[str, Sequence[Metrics]],
    baseline: str,
    allow_missing: Sequence[str] = (),
    allow: Sequence[str] = (),
) -> Table:
    """Rows by name, each with the metrics of one or several runs, against the row `baseline`.

    UserError for an unknown baseline, other suites in one table, and any metric that a row lacks unless it is named in
    `allow_missing` (a group, group/task or group/task/metric), and for rows that were not measured alike in something
    that `allow` does not name (protocol, protocol.k, data, data.size, program, unrecorded).
    """
    if baseline not in rows:
        raise unknown("baseline", baseline, rows)
    suites = sorted({run.suite for runs in rows.values() for run in runs})
    if len(suites) > 1:
        raise UserError(f"the rows come from different suites ({', '.join(suites)}); their numbers do not compare")
    measured = {name: measure(runs, name) for name, runs in rows.items()}
    reasons = {name: {task: why for run in runs for task, why in run.absent.items()} for name, runs in rows.items()}
    skip = left_out(measured, baseline, allow_missing, reasons)
    allowed = check_alike(rows, baseline, skip, allow)
    base, floors = measured[baseline], tells_nothing(measured, baseline, skip)
    compared = {
        name: unchanged(base, skip) if name == baseline else compare(row, base, skip, floors)
        for name, row in measured.items()
    }
    columns = tuple(compared[baseline].columns)
    return Table(
        baseline, columns, compared, {name: len(runs) for name, runs in rows.items()}, tuple(skip), floors, allowed
    )


def title_of(column: str) -> str:
    """What to call a group in print."""
    return TITLES.get(column, column.replace("_", " "))


def caption(table: Table, uncertainty: str = "± standard error") -> str:
    """What the numbers are, in a few sentences; `uncertainty` says how the errors are shown."""
    several = sorted(set(table.runs.values()))
    runs = "one run a row" if several == [1] else f"{'-'.join(str(n) for n in several)} runs a row"
    compared = [row for name, row in table.rows.items() if name != table.baseline]
    known = any(estimate.stderr is not None for row in compared for estimate in row.columns.values())
    errors = uncertainty if known or not compared else "(no standard errors are known)"
    if known and all(row.columns[DELTA_M].paired for row in compared):
        errors += ", rows compared sample by sample"
    text = f"Relative change in % against {table.baseline} {errors}; {runs}; Δm over {len(table.columns) - 1} groups."
    text += "".join(f" {MARKS[claim]} {CLAIMS[claim]}." for claim in claims_of(table))
    if units := fewest_units(table):
        text += f" Fewest independent units of a metric: {units[1]} ({'/'.join(units[0])})"
        text += f"; below {FEWEST_UNITS} nothing is marked." if units[1] < FEWEST_UNITS else "."
    if leaning := [line for name, row in table.rows.items() if (line := leaning_line(table, name, row))]:
        text += f" How much hangs on one metric: {'; '.join(leaning)}."
    if table.near_floor:
        names = ", ".join("/".join(key) for key in table.near_floor)
        text += (
            f" The {ROBUST} (log ratios) leaves out what is within two errors of an answer without looking: {names}."
        )
    if table.left_out:
        text += f" Left out by request: {', '.join('/'.join(key) for key in table.left_out)}."
    if table.allowed:
        text += f" Measured unalike, by request: {'; '.join(table.allowed)}."
    return text


def claims_of(table: Table) -> list[Claim]:
    """The claims that the table's marks make."""
    made = {
        estimate.claim
        for name, row in table.rows.items()
        if name != table.baseline
        for estimate in (*row.columns.values(), *row.metrics.values())
    }
    return [claim for claim in CLAIMS if claim in made]


def fewest_units(table: Table) -> tuple[Key, int] | None:
    """The metric that rests on the fewest independent units, and how many; None where none is known."""
    found = [
        (estimate.units, key)
        for name, row in table.rows.items()
        if name != table.baseline
        for key, estimate in row.metrics.items()
        if estimate.units is not None
    ]
    return (min(found)[1], round(min(found)[0])) if found else None


def leaning_line(table: Table, name: str, row: Comparison) -> str:
    """ "NAME +0.39 is +0.11 without 3d/spair/pck", or nothing for the baseline and where there is but one metric."""
    if name == table.baseline or row.strongest is None:
        return ""
    key, without = row.strongest
    return f"{name} {signed(row.columns[DELTA_M].value)} is {signed(without)} without {'/'.join(key)}"


def signed(value: float, digits: int = 2) -> str:
    """+1.23, -0.40, 0.00: the sign says the direction, a rounded zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def _cell(estimate: Estimate) -> dict[str, Any]:
    interval = None if estimate.ci95 is None else list(estimate.ci95)
    known = {"value": estimate.value, "stderr": estimate.stderr, "ci95": interval}
    known |= {"is_real": None if interval is None else estimate.is_real, "paired": estimate.paired}
    return known | {"claim": estimate.claim, "units": None if estimate.units is None else round(estimate.units)}
