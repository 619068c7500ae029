"""HTML pages from templates: escaped, self-contained, readable from disk."""

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from eval_suite.delta_m import DELTA_M
from eval_suite.table import MARKS, ROBUST, Table, caption, signed, title_of
from eval_suite.uncertainty import Estimate

GAIN, LOSS = "0, 114, 178", "213, 94, 0"  #: blue and orange, told apart by colour-blind readers too


@dataclass(frozen=True)
class HeatCell:
    """A cell of the heat map: what is printed, and its shade."""

    value: str
    interval: str
    shade: str
    mark: str
    hover: str


def fill(template: str, **values: Any) -> str:
    """A template of this package with its values; HTML in the values is escaped."""
    loader = PackageLoader("eval_suite", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    return environment.get_template(template).render(**values) + "\n"


def table_page(table: Table) -> str:
    """The table alone as a page."""
    title = f"Δm against {table.baseline}"
    return fill(
        "table.html.j2",
        title=title,
        table=table,
        heat=heat_rows(table),
        heads=heads(table),
        caption=caption(table, "[95 % interval]"),
    )


def heads(table: Table) -> list[str]:
    """Column titles."""
    return [*(title_of(column) for column in table.columns), ROBUST]


def heat_rows(table: Table) -> dict[str, list[HeatCell]]:
    """Cells by row name; the strongest shade is the largest change of the table."""
    strongest = max((abs(row.columns[c].value) for row in table.rows.values() for c in table.columns), default=0.0)
    return {
        name: [
            *(_heat_cell(row.columns[column], name == table.baseline, strongest, column) for column in table.columns),
            _heat_cell(row.robust, name == table.baseline, strongest, DELTA_M),
        ]
        for name, row in table.rows.items()
    }


def shade(estimate: Estimate, strongest: float) -> str:
    """CSS colour of a change: blue for a gain, orange for a loss, pale where it may be none."""
    if not strongest or not estimate.value:
        return "transparent"
    # square root, so that small changes are seen beside large ones
    strength = 0.08 + 0.62 * min(1.0, abs(estimate.value) / strongest) ** 0.5
    if estimate.ci95 is not None and not estimate.is_real:
        strength *= 0.3
    return f"rgba({GAIN if estimate.value > 0 else LOSS}, {strength:.3f})"


def interval_text(estimate: Estimate) -> str:
    """ "[low, high]" in percent, or nothing where it is not known."""
    return "" if estimate.ci95 is None else f"[{minus(estimate.ci95[0])}, {minus(estimate.ci95[1])}]"


def minus(value: float, digits: int = 2) -> str:
    """`signed` for print: a true minus, as wide as the plus."""
    return signed(value, digits).replace("-", "−")


def _heat_cell(estimate: Estimate | None, is_baseline: bool, strongest: float, column: str) -> HeatCell:
    if is_baseline:
        return HeatCell("0", "", "transparent", "", "the baseline")
    if estimate is None:
        return HeatCell("–", "", "transparent", "", "no metric is far enough from its floor")
    digits = 2 if column == DELTA_M or strongest < 10 else 1
    mark = MARKS[estimate.claim]
    colour = shade(estimate, strongest)
    return HeatCell(minus(estimate.value, digits), interval_text(estimate), colour, mark, hover_text(estimate))


def hover_text(estimate: Estimate) -> str:
    """Value, error, interval and what they rest on, for a cell that is pointed at."""
    error = "" if estimate.stderr is None else f" ± {estimate.stderr:.3f}"
    units = "" if estimate.units is None else f", {round(estimate.units)} independent units"
    interval = f", 95 % {text}" if (text := interval_text(estimate)) else ""
    pairing = ", compared image by image" if estimate.paired else ""
    return f"{minus(estimate.value, 3)} %{error}{interval}{units}{pairing}"
