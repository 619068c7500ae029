"""Numbers from a paper: a CSV with one number a line, or the paper's table as it stands."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, unknown
from eval_suite.directions import is_share, known_direction
from eval_suite.results import Metrics, validate_metrics

COLUMNS = ("row", "group", "task", "metric", "value")
OPTIONAL = ("higher_is_better", "seed", "n", "stderr")
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}
MARKS = {"(-)": False, "(+)": True, "↓": False, "↑": True}  #: behind a column's name: which direction is better
Line = dict[str, str]


@dataclass(frozen=True)
class CsvOptions:
    """What a user says of a CSV's metrics that the file does not."""

    lower_is_better: Sequence[str] = ()  #: metric, task/metric or group/task/metric
    higher_is_better: Sequence[str] = ()


NOTHING_SAID = CsvOptions()


@dataclass(frozen=True)
class CsvTable:
    """The cells of a file: every line as long as the header."""

    path: Path
    header: list[str]
    lines: list[tuple[int, Line]]  #: number in the file, cells by column


def read_published_csv(path: Path, options: CsvOptions = NOTHING_SAID) -> dict[str, Metrics]:
    """Rows by name.

    One number a line: columns row, group, task, metric, value, and higher_is_better, seed, n, stderr if known. As a
    table: a column `row` and one for each metric, named group/task/metric, with "(-)" or "↓" behind it where lower is
    better and "(+)" or "↑" where higher is; a value may be "81.2 +- 0.3" with its standard error, and an empty cell is
    a number the row does not have. The direction may be left out of metrics whose name says it (top1, miou, rmse, ...);
    of others it is asked for. UserError for anything that can be read in two ways.
    """
    table = read_cells(path)
    wide = table.header[:1] == ["row"] and len(table.header) > 1 and all("/" in name for name in table.header[1:])
    entries = _from_wide(table, options) if wide else _from_long(table, options)
    results: dict[str, list[dict[str, object]]] = {}
    for entry in entries:
        results.setdefault(str(entry.pop("row")), []).append(entry)
    if not results:
        raise UserError(f"{path} holds no numbers")
    return {name: _metrics(name, path, found) for name, found in results.items()}


def read_cells(path: Path) -> CsvTable:
    """The cells of a CSV file; UserError for another encoding and lines of another length."""
    text = _read_text(path)
    delimiter = _separator(path, text)
    try:
        lines = [(number, cells) for number, cells in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), 1)]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV: {error}") from error
    lines = [(number, [cell.strip() for cell in cells]) for number, cells in lines if any(map(str.strip, cells))]
    if not lines:
        raise UserError(f"{path} holds no numbers")
    header, plain = lines[0][1], [name.casefold() for name in lines[0][1]]
    if twice := sorted({name for name, same in zip(header, plain, strict=True) if plain.count(same) > 1}):
        count = plain.count(twice[0].casefold())
        raise UserError(f'{path} has the column "{twice[0]}" {count} times (but for case); which one is meant?')
    for number, cells in lines[1:]:
        if "row" in header and len(cells) > header.index("row") and not cells[header.index("row")]:
            raise UserError(f'{path} line {number} has no name in the column "row"')
        if len(cells) != len(header):
            raise UserError(
                f"{path} line {number} has {len(cells)} cells, but the header has {len(header)}; "
                "a decimal comma or a comma in a name needs quotes or another separator"
            )
    return CsvTable(path, header, [(number, dict(zip(header, cells, strict=True))) for number, cells in lines[1:]])


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} in line {line}); save it as UTF-8"
        ) from error


def _separator(path: Path, text: str) -> str:
    """The sign between columns: the one by which a column is called row, which no other can then do."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    for sign in SEPARATORS.values():
        if sign in first and "row" in (cell.strip() for cell in next(csv.reader([first], delimiter=sign))):
            return sign
    raise UserError(
        f'{path}: one column must be called "row", with {", ".join(SEPARATORS)} between columns; '
        f"the file begins with {first[:60]!r}"
    )


def _from_wide(table: CsvTable, options: CsvOptions) -> list[dict[str, object]]:
    columns = {name: _wide_column(name, table.path, options) for name in table.header[1:]}
    if len(set(columns.values())) < len(columns):
        raise UserError(f"{table.path} has two columns of the same metric that differ only in (+) or (-)")
    out: list[dict[str, object]] = []
    for number, line in table.lines:
        for name, (group, task, metric, higher) in columns.items():
            if not line[name]:
                continue
            value, _, error = line[name].replace("±", "+-").partition("+-")
            where = f"{table.path} line {number}: {name}"
            entry = {"row": line["row"], "group": group, "task": task, "metric": metric, "higher_is_better": higher}
            entry["value"] = _score(metric, _number(value, line[name], where), where)
            out.append(entry | ({"stderr": _number(error, line[name], where)} if error.strip() else {}))
    return out


def _wide_column(name: str, path: Path, options: CsvOptions) -> tuple[str, str, str, bool]:
    """group, task, metric and direction of a column."""
    plain, said = unmarked(name)
    parts = [part.strip() for part in plain.split("/")]
    if len(parts) != 3 or not all(parts):
        raise UserError(f'{path}: a column is named group/task/metric, got "{name}"')
    return parts[0], parts[1], parts[2], direction_of(parts, said, str(path), options)


def unmarked(name: str) -> tuple[str, bool | None]:
    """A metric's name without the mark behind it, and what the mark says: is higher better?"""
    mark = next((mark for mark in MARKS if name.endswith(mark)), "")
    return name.removesuffix(mark).strip(), MARKS.get(mark)


def _from_long(table: CsvTable, options: CsvOptions) -> list[dict[str, object]]:
    if missing := [column for column in COLUMNS if column not in table.header]:
        raise UserError(
            f"{table.path} lacks the column {', '.join(missing)}; it needs {', '.join(COLUMNS)}, or a column row and "
            "one for each metric, named group/task/metric"
        )
    for column in table.header:
        if column not in (*COLUMNS, *OPTIONAL):
            raise unknown(f"column of {table.path}", column, (*COLUMNS, *OPTIONAL))
    return [_long_entry(line, f"{table.path} line {number}", options) for number, line in table.lines]


def _long_entry(line: Line, where: str, options: CsvOptions) -> dict[str, object]:
    told = line.get("higher_is_better", "").lower()
    if told not in ("", "true", "false"):
        raise UserError(f"{where}: higher_is_better is true or false, got {told!r}")
    metric, said = unmarked(line["metric"])
    if told and said not in (None, told == "true"):
        raise UserError(f"{where}: higher_is_better is {told}, but {line['metric']} says the opposite")
    parts = [line["group"], line["task"], metric]
    higher = direction_of(parts, said if told == "" else told == "true", where, options)
    entry: dict[str, object] = {"row": line["row"], "group": line["group"], "task": line["task"], "metric": metric}
    entry["value"] = _score(metric, _number(line["value"], line["value"], f"{where}: value"), where)
    known = {column: line[column] for column in ("seed", "n", "stderr") if line.get(column)}
    return entry | {"higher_is_better": higher} | known


def direction_of(parts: Sequence[str], said: bool | None, where: str, options: CsvOptions) -> bool:
    """True where higher is better: as the file or the user says, else as the metric's name does; UserError for
    neither, and for two that contradict each other."""
    names = ("/".join(parts), "/".join(parts[1:]), parts[-1])
    lower = any(name in options.lower_is_better for name in names)
    higher = any(name in options.higher_is_better for name in names)
    voices = {value for value, told in ((False, lower), (True, higher)) if told} | ({said} - {None})
    if not voices:
        voices = {known_direction(parts[-1])}
    elif (usual := known_direction(parts[-1])) is not None:
        voices.add(usual)
    if voices == {None}:
        raise UserError(
            f"{where}: is more {names[0]} better? Put (+) or (-) behind its name, or say "
            f"--lower-is-better {parts[-1]} or --higher-is-better {parts[-1]}"
        )
    if len(voices) > 1:
        raise UserError(f"{where}: {names[0]} is called both better and worse when higher; rename it if it is unusual")
    return voices == {True}


def _number(text: str, cell: str, where: str) -> float:
    try:
        if "_" in text or not text.isascii():  # Python's own freedoms
            raise ValueError
        return float(text)
    except ValueError:
        hint = "; write a decimal point, not a comma" if "," in text else ' (or "81.2 +- 0.3")'
        hint = "; write the number alone, percent in all rows alike" if "%" in text else hint
        raise UserError(f'{where} is "{cell}", not a number{hint}') from None


def _score(metric: str, value: float, where: str) -> float:
    """The value; UserError for a share beyond 0 to 100 %."""
    if is_share(metric) and not 0 <= value <= 100 and math.isfinite(value):
        raise UserError(f"{where} is {value:g}, and {metric} is a share: 0 to 100 percent")
    return value


def _metrics(name: str, path: Path, results: Sequence[Mapping[str, object]]) -> Metrics:
    backbone = {"name": name, "digest": "published"}
    data = {"schema": 1, "backbone": backbone, "suite": f"published:{path.stem}", "results": list(results)}
    return validate_metrics(data, f"{path} ({name})")
