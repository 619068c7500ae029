"""From what a user names on the command line to the rows of a table: run folders, metrics files, published numbers."""

import csv
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path

from common.errors import UserError, unknown
from eval_suite.results import Metrics, read_metrics, validate_metrics

_COLUMNS = ("row", "group", "task", "metric", "value", "higher_is_better")
_OPTIONAL = ("seed", "n", "stderr")
PUBLISHED = "published:"
RECORDED = "recorded:"


def read_rows(sources: Sequence[str]) -> dict[str, list[Metrics]]:
    """Rows by name, in order.

    A source is a run folder or a metrics.json (row name: the folder's, or the file's own), a CSV of published numbers
    (one row for each of its row names), `published:NAME` (a paper's numbers that ship with the package),
    `recorded:tiny-dino` (a tiny teacher on the embedded suite, measured once), or NAME=SOURCE to choose the name; the
    same NAME given again adds a run to that row.
    """
    rows: dict[str, list[Metrics]] = {}
    chosen: set[str] = set()
    for source in sources:
        name, place = _split(source)
        found = _read(place)
        if name is not None:
            if len(found) > 1:
                raise UserError(f"{place} holds {len(found)} rows, so one name cannot stand for it")
            found = {name: next(iter(found.values()))}
        for row, metrics in found.items():
            if row in rows and not (name and row in chosen):
                raise UserError(
                    f'two sources give a row "{row}"; name them: NAME=PATH (one NAME twice: two runs of a row)'
                )
            rows.setdefault(row, []).append(metrics)
        if name is not None:
            chosen.add(name)
    return rows


def find_baseline(rows: Mapping[str, Sequence[Metrics]], name: str) -> str:
    """The row meant by `name`: a row's name, or the backbone name of exactly one row."""
    if name in rows:
        return name
    same = [row for row, runs in rows.items() if any(run.backbone.name == name for run in runs)]
    if len(same) == 1:
        return same[0]
    if same:
        raise UserError(f'the backbone "{name}" is in several rows ({", ".join(same)}); give the row name')
    raise unknown("baseline", name, rows)


def read_published_csv(path: Path) -> dict[str, Metrics]:
    """Numbers from a paper, one a line or as the paper's table.

    One a line: columns row, group, task, metric, value, higher_is_better, and seed, n, stderr if known. As a table: a
    column `row` and one for each metric, named group/task/metric, with "(-)" behind it where lower is better; a value
    may be "81.2 +- 0.3" with its standard error, and an empty cell is a number the row does not have.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines = list(reader)
            header = reader.fieldnames or []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if header[:1] == ["row"] and len(header) > 1 and all(column.count("/") == 2 for column in header[1:]):
        lines = [entry for number, line in enumerate(lines, 2) for entry in _long(line, f"{path} line {number}")]
        header = [*_COLUMNS, "stderr"]
    if missing := [column for column in _COLUMNS if column not in header]:
        raise UserError(f"{path} lacks the column {', '.join(missing)}; it needs {', '.join(_COLUMNS)}")
    for column in header:
        if column not in (*_COLUMNS, *_OPTIONAL):
            raise unknown(f"column of {path}", column, (*_COLUMNS, *_OPTIONAL))
    results: dict[str, list[dict[str, object]]] = {}
    for number, line in enumerate(lines, 2):
        results.setdefault(line["row"], []).append(_result(line, f"{path} line {number}"))
    if not results:
        raise UserError(f"{path} holds no numbers")
    return {name: _published(name, path, entries) for name, entries in results.items()}


def _long(line: Mapping[str, str], where: str) -> list[dict[str, str]]:
    """A line of a paper's table as lines of one number each."""
    out = []
    for column, cell in line.items():
        if column == "row" or not (cell or "").strip():
            continue
        lower = column.strip().endswith("(-)")
        group, task, metric = column.strip().removesuffix("(-)").strip().split("/")
        value, _, error = cell.replace("±", "+-").partition("+-")
        entry = {"row": line["row"], "group": group, "task": task, "metric": metric, "value": value.strip()}
        try:
            float(value), float(error or 0)
        except ValueError:
            raise UserError(f'{where}: {column} is "{cell}", not a number (or "81.2 +- 0.3")') from None
        out.append(entry | {"higher_is_better": "false" if lower else "true", "stderr": error.strip()})
    return out


def _published(name: str, path: Path, results: list[dict[str, object]]) -> Metrics:
    backbone = {"name": name, "digest": "published"}
    data = {"schema": 1, "backbone": backbone, "suite": f"published:{path.stem}", "results": results}
    return validate_metrics(data, f"{path} ({name})")


def _result(line: Mapping[str, str], where: str) -> dict[str, object]:
    direction = {"true": True, "false": False}.get((line["higher_is_better"] or "").strip().lower())
    if direction is None:
        raise UserError(f"{where}: higher_is_better is true or false, got {line['higher_is_better']!r}")
    known = {column: line[column] for column in _OPTIONAL if line.get(column)}
    return {key: line[key] for key in ("group", "task", "metric", "value")} | {"higher_is_better": direction} | known


def _split(source: str) -> tuple[str | None, str]:
    name, separator, place = source.partition("=")
    if not separator or Path(source).exists():
        return None, source
    if not name or not place:
        raise UserError(f'a named row is NAME=PATH, got "{source}"')
    return name, place


def _read(place: str) -> dict[str, Metrics]:
    if place.startswith(PUBLISHED):
        return _read_shipped(place.removeprefix(PUBLISHED))
    if place.startswith(RECORDED):
        return _read_recorded(place.removeprefix(RECORDED))
    path = Path(place)
    if path.suffix.lower() == ".csv":
        return read_published_csv(path)
    name = (
        path.resolve().name
        if path.is_dir()
        else path.resolve().parent.name
        if path.name == "metrics.json"
        else path.stem
    )
    return {name: read_metrics(path)}


def _read_shipped(name: str) -> dict[str, Metrics]:
    folder = files("eval_suite") / "data"
    known = sorted(entry.name.removesuffix(".csv") for entry in folder.iterdir() if entry.name.endswith(".csv"))
    if name not in known:
        raise unknown("set of published numbers", name, known)
    with as_file(folder / f"{name}.csv") as path:
        return read_published_csv(path)


def _read_recorded(name: str) -> dict[str, Metrics]:
    from eval_suite.recorded import RECORDS  # not above: it knows the suites, which take long to import

    known = {path.stem.split("-", 2)[2]: path for path in sorted(RECORDS.glob("*.json"))}
    if name not in known:
        raise unknown("record", name, known)
    metrics = read_metrics(known[name])
    return {metrics.backbone.name: metrics}
