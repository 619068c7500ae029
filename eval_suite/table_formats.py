"""The Δm table in every format people paste it into."""

import csv
import io
import json
from collections.abc import Callable

from common.errors import unknown
from eval_suite.delta_m import DELTA_M
from eval_suite.page import table_page
from eval_suite.table import MARKS, ROBUST, Table, caption, signed, title_of
from eval_suite.uncertainty import Claim, Estimate

TEX_MARKS: dict[Claim, str] = {"method": "^{*}", "networks": r"^{\circ}", "none": ""}


def render(table: Table, form: str) -> str:
    """The table as text; `form` is one of `FORMATS`."""
    if form not in FORMATS:
        raise unknown("table format", form, FORMATS)
    return FORMATS[form](table)


def _text(estimate: Estimate, is_baseline: bool) -> str:
    if is_baseline or estimate.stderr is None:
        return signed(estimate.value)
    return f"{signed(estimate.value)} ± {estimate.stderr:.2f}{MARKS[estimate.claim].replace('*', chr(92) + '*')}"


def _markdown(table: Table) -> str:
    lines = ["| |" + "".join(f" {title_of(column)} |" for column in table.columns) + f" {ROBUST} |"]
    lines.append("|---|" + "---:|" * (len(table.columns) + 1))
    for name, row in table.rows.items():
        cells = [_text(row.columns[column], name == table.baseline) for column in table.columns]
        cells[-1] = f"**{cells[-1]}**"
        cells.append("–" if row.robust is None else _text(row.robust, name == table.baseline))
        lines.append(f"| {name.replace('|', chr(92) + '|')} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", caption(table).replace("*", r"\*"), ""])


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", *(name for column in (*table.columns, "robust_delta_m") for name in _csv_names(column))])
    for name, row in table.rows.items():
        estimates = [*(row.columns[column] for column in table.columns), row.robust]
        writer.writerow([name, *(value for estimate in estimates for value in _csv_values(estimate))])
    return out.getvalue()


CSV_FACTS = ("stderr", "ci95_low", "ci95_high", "is_real", "claim", "units")


def _csv_names(column: str) -> list[str]:
    return [column, *(f"{column}_{fact}" for fact in CSV_FACTS)]


def _csv_values(estimate: Estimate | None) -> list[float | str | None]:
    if estimate is None:
        return [None] * len(_csv_names(""))
    real = None if estimate.ci95 is None else str(estimate.is_real).lower()
    units = None if estimate.units is None else round(estimate.units)
    return [estimate.value, estimate.stderr, *(estimate.ci95 or (None, None)), real, estimate.claim, units]


def _tex(table: Table) -> str:
    heads = " & ".join(
        r"$\Delta_m$" if column == DELTA_M else _tex_escape(title_of(column)) for column in table.columns
    )
    best = {column: max(row.columns[column].value for row in table.rows.values()) for column in table.columns}
    heads += r" & robust $\Delta_m$"
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) + 1)}}}", r"\toprule", rf" & {heads} \\", r"\midrule"]
    for name, row in table.rows.items():
        cells = [_tex_cell(row.columns[column], name == table.baseline, best[column]) for column in table.columns]
        cells.append("--" if row.robust is None else _tex_cell(row.robust, name == table.baseline, float("inf")))
        lines.append(rf"{_tex_escape(name)} & {' & '.join(cells)} \\")
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        "% needs \\usepackage{booktabs}. " + caption(table).replace("±", "+-"),
    ]
    return "\n".join(lines) + "\n"


def _tex_cell(estimate: Estimate, is_baseline: bool, best: float) -> str:
    number = signed(estimate.value)
    text = rf"\mathbf{{{number}}}" if estimate.value == best else number
    if not is_baseline and estimate.stderr is not None:
        text += rf" \pm {estimate.stderr:.2f}" + TEX_MARKS[estimate.claim]
    return f"${text}$"


def _tex_escape(text: str) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"\\": r"\textbackslash{}", "Δ": r"$\Delta$"}
    return "".join(special.get(letter, letter) for letter in text)


def _json(table: Table) -> str:
    return json.dumps(table.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _html(table: Table) -> str:
    return table_page(table)


FORMATS: dict[str, Callable[[Table], str]] = {
    "md": _markdown,
    "csv": _csv,
    "tex": _tex,
    "html": _html,
    "json": _json,
}
