"""The report of a comparison: tables, curves, feature pictures, facts of the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.jsonl import read_log
from distill.evaluation.pictures import Sheet, draw, save_sheet
from distill.evaluation.probing import ProbedRows
from distill.exported import load
from distill.recipe import Recipe
from distill.schedule import schedule, stage_in_words
from eval_suite.report import write_report
from eval_suite.results import Metrics
from eval_suite.table import Table, build_table
from eval_suite.table_formats import render
from imagery.augment import PLAIN
from imagery.sources import open_sources
from imagery.stream import ImageStream, to_float

PICTURES = 4
ANSWER = "The answer:"
CAPTION = (
    "Teacher {} ({}): the three main axes of all these maps together as red, green and blue; "
    "equal colours, equal features"
)


def publish(probed: ProbedRows, arms: Mapping[str, Sequence[Recipe]], baseline: str, folder: Path) -> str:
    """Write the report below `folder`; returns what to print: the tables with their errors, and where the report is.

    Curves and pictures are of the first run of every arm.
    """
    tables = compare(probed, list(arms), baseline)
    firsts = {arm: recipes[0] for arm, recipes in arms.items()}
    report = write_report(
        folder / "report",
        title=folder.name,
        table=tables[ANSWER],
        metrics_by_row=probed.rows,
        curves=curves(firsts),
        pictures=[
            (CAPTION.format(sheet.teacher, sheet.grids), path) for sheet, path in pictures(firsts, folder / "report")
        ],
        notes=notes(next(iter(firsts.values()))),
    )
    # The answer comes last: it is what stays on the screen.
    text = [f"{title}\n\n{render(tables[title], 'md')}" for title in reversed(tables)]
    return "\n".join([*text, f"report: {report}"])


def compare(probed: ProbedRows, arms: Sequence[str], baseline: str) -> dict[str, Table]:
    """Tables by title: the arms alone; beside the rows that have every metric; beside all rows, on what all can do."""
    rows = probed.rows
    zero = unusable(rows[baseline])
    whole = {row: runs for row, runs in rows.items() if not missing_anywhere({"": rows[baseline], row: runs})}
    answer = {row: runs for row, runs in whole.items() if row in arms or row == baseline}
    tables = {ANSWER: build_table(answer, baseline, zero)}
    if len(whole) > len(answer):
        tables["For reference:"] = build_table(whole, baseline, zero)
    if len(rows) > len(whole):
        allowed = sorted({*zero, *missing_anywhere(rows)})
        tables["For reference, on the metrics that all rows have:"] = build_table(rows, baseline, allowed)
    return tables


def unusable(baseline: Sequence[Metrics]) -> list[str]:
    """Metrics whose baseline, the mean of its runs, is not above 0: no relative change exists; captions name them."""
    values: dict[str, list[float]] = {}
    for result in (result for run in baseline for result in run.results):
        values.setdefault("/".join(result.key), []).append(result.value)
    return sorted(key for key, found in values.items() if sum(found) / len(found) <= 0)


def missing_anywhere(rows: Mapping[str, Sequence[Metrics]]) -> set[str]:
    """group/task/metric that some row has and some other has not."""
    held = [{"/".join(result.key) for run in runs for result in run.results} for runs in rows.values()]
    return set[str]().union(*held) - held[0].intersection(*held)


def curves(arms: Mapping[str, Recipe]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Loss and its terms by arm: {"loss": {arm: [(step, value), ...]}, "clip/spatial": {...}, ...}."""
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for arm, recipe in arms.items():
        for line in read_log(recipe.folder / "log.jsonl"):
            for name, value in {"loss": line["loss"], **line["losses"]}.items():
                lines.setdefault(name, {}).setdefault(arm, []).append((line["step"], value))
    return lines


def notes(recipe: Recipe) -> dict[str, str]:
    """Facts of the run for the report's foot."""
    return {
        "training": f"{'; '.join(stage_in_words(stage) for stage in schedule(recipe))}, seed {recipe.seed}",
        "images": str(recipe.data.train),
        "student": ", ".join([recipe.student.model, *(f"{k} {v}" for k, v in recipe.student.overrides().items())]),
        "teachers": ", ".join(f"{name}: {node.backbone}" for name, node in recipe.teachers.items()),
        "losses": f"summary {recipe.loss.summary}, spatial {recipe.loss.spatial} in PHI-S space, align {recipe.align}",
    }


def pictures(arms: Mapping[str, Recipe], folder: Path) -> list[tuple[Sheet, Path]]:
    """Feature pictures of a few images of the run's source, centre crops in a random order of their own, as PNG."""
    first = next(iter(arms.values()))
    height, width = first.data.size
    stream = ImageStream(
        open_sources(first.data.train),
        batch_size=PICTURES,
        height=height,
        width=width,
        seed=first.seed + 1,
        augment=PLAIN,
    )
    images = to_float(next(stream).images)
    stream.close()
    sheets = draw(arms, {arm: load(str(recipe.folder)) for arm, recipe in arms.items()}, images)
    return [(sheet, save_sheet(sheet, folder / f"features-{sheet.teacher}.png")) for sheet in sheets]
