"""From what a user names on the command line to the rows of a table: run folders, metrics files, published numbers."""

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path

from common.errors import UserError, unknown
from common.json_files import read_json_object
from eval_suite.published import NOTHING_SAID, CsvOptions, read_published_csv
from eval_suite.results import RECORDS, Metrics, read_metrics

#: beside the runs of a comparison: row -> the folders of its runs
ROWS = "rows.json"
METRICS = "metrics.json"
PUBLISHED = "published:"
RECORDED = "recorded:"


def read_rows(sources: Sequence[str], options: CsvOptions = NOTHING_SAID) -> dict[str, list[Metrics]]:
    """Rows by name, in order.

    A source is a run folder or a metrics.json (row name: the folder's, or the file's own), the folder of a comparison
    (its rows, without the teachers), a CSV of published numbers (one row for each of its row names), `published:NAME`
    (a paper's numbers that ship with the package), `recorded:tiny-dino` (a tiny teacher on the embedded suite, measured
    once), or NAME=SOURCE to choose the name; the same NAME given again adds a run to that row.
    """
    rows: dict[str, list[Metrics]] = {}
    chosen: set[str] = set()
    for source in sources:
        name, place = _split(source)
        found = _read(place, options)
        if name is not None:
            if len(found) > 1:
                raise UserError(f"{place} holds {len(found)} rows, so one name cannot stand for it")
            found = {name: next(iter(found.values()))}
        for row, runs in found.items():
            if row in rows and not (name and row in chosen):
                raise UserError(
                    f'two sources give a row "{row}"; name them: NAME=PATH (one NAME twice: two runs of a row)'
                )
            rows.setdefault(row, []).extend(runs)
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


def _split(source: str) -> tuple[str | None, str]:
    name, separator, place = source.partition("=")
    if not separator or Path(source).exists():
        return None, source
    if not name or not place:
        raise UserError(f'a named row is NAME=PATH, got "{source}"')
    return name, place


def _read(place: str, options: CsvOptions) -> dict[str, list[Metrics]]:
    if place.startswith(PUBLISHED):
        return _one_run_each(_read_shipped(place.removeprefix(PUBLISHED)))
    if place.startswith(RECORDED):
        return _one_run_each(_read_recorded(place.removeprefix(RECORDED)))
    path = Path(place)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _one_run_each(read_published_csv(path, options))
    if path.is_dir() and not (path / METRICS).is_file() and (below := _rows_below(path)):
        return {row: [read_metrics(run) for run in runs] for row, runs in below.items()}
    name = path.resolve().name if path.is_dir() else path.resolve().parent.name if path.name == METRICS else path.stem
    return {name: [read_metrics(path)]}


def _one_run_each(rows: Mapping[str, Metrics]) -> dict[str, list[Metrics]]:
    return {row: [metrics] for row, metrics in rows.items()}


def _rows_below(folder: Path) -> dict[str, list[Path]]:
    """The rows of a comparison: as its rows.json says, else the folders right below that hold metrics, one run each."""
    if not (folder / ROWS).is_file():
        return {file.parent.name: [file.parent] for file in sorted(folder.glob(f"*/{METRICS}"))}
    rows = read_json_object(folder / ROWS)
    for runs in rows.values():
        if not (isinstance(runs, list) and runs and all(isinstance(run, str) for run in runs)):
            raise UserError(f"{folder / ROWS} is damaged: a row is a list of folders; name the runs instead: NAME=PATH")
    return {row: [folder / run for run in runs] for row, runs in rows.items()}


def _read_shipped(name: str) -> dict[str, Metrics]:
    folder = files("eval_suite") / "data"
    known = sorted(entry.name.removesuffix(".csv") for entry in folder.iterdir() if entry.name.endswith(".csv"))
    if name not in known:
        raise unknown("set of published numbers", name, known)
    with as_file(folder / f"{name}.csv") as path:
        return read_published_csv(path)


def _read_recorded(name: str) -> dict[str, Metrics]:
    known = {path.stem.split("-", 2)[2]: path for path in sorted(RECORDS.glob("*.json"))}
    if name not in known:
        raise unknown("record", name, known)
    metrics = read_metrics(known[name])
    return {metrics.backbone.name: metrics}
