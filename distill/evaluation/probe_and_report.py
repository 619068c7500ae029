"""After the training: probe every student and what it is compared with, print the tables, write the report."""

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.jsonl import read_log
from common.launcher import end_with_parent
from distill.evaluation.pictures import Sheet, draw, save_sheet
from distill.evaluation.probe_once import ProbeOnce
from distill.exported import load
from distill.recipe import UNTRAINED, Recipe
from distill.schedule import describe, schedule
from imagery.augment import PLAIN
from imagery.sources import open_sources
from imagery.stream import ImageStream, to_float
from teachers.registry import load_backbone

PICTURES = 4
MOST_PROCESSES = 4  #: that probe at the same time
ANSWER = "The answer:"
CAPTION = (
    "Teacher {}: the three main axes of all these maps together as red, green and blue; equal colours, equal features"
)


@dataclass(frozen=True)
class EvalRoom:
    """What the entry scripts take from the eval suite; this room does not import it."""

    load_suite: Callable[[str], Any]
    run_suite: Callable[..., Mapping[str, Any]]
    read_metrics: Callable[[Path], Any]
    write_metrics: Callable[[Path, Mapping[str, Any]], None]
    build_table: Callable[..., Any]
    render: Callable[[Any, str], str]
    write_report: Callable[..., Path]


@dataclass(frozen=True)
class ProbedRows:
    """The metrics of every row of a comparison, by row name."""

    students: dict[str, list[Any]]  #: the runs of every arm, and the untrained student
    teachers: dict[str, list[Any]]  #: reference rows; they may lack what they cannot do

    @property
    def rows(self) -> dict[str, list[Any]]:
        """All of them."""
        return self.students | self.teachers


@dataclass(frozen=True)
class ProbeJob:
    """One backbone to probe, of some row of the table, and the folder its metrics go to."""

    name: str
    row: str
    node: str | Mapping[str, Any]
    folder: Path


def probe_all(room: EvalRoom, arms: Mapping[str, Sequence[Recipe]], folder: Path, untrained: Path | None) -> ProbedRows:
    """Probe the arms' students, the untrained one and the teachers; what is on disk already is not probed again.

    arms: the recipes of the runs of every row.
    """
    first = next(iter(arms.values()))[0]
    if first.eval is None:
        raise ValueError("the recipe has no eval")
    runs = [(arm, recipe) for arm, recipes in arms.items() for recipe in recipes]
    students = [ProbeJob(recipe.name, arm, f"run:{recipe.folder}", recipe.folder) for arm, recipe in runs]
    if untrained is not None:
        students.append(ProbeJob(UNTRAINED, UNTRAINED, f"run:{untrained}", untrained.parent))
    nodes = first.teachers.items() if first.eval.teachers else ()
    titles = {name: f"teacher {name}" for name, _ in nodes}
    teachers = [ProbeJob(titles[name], titles[name], node.backbone, folder / "teachers" / name) for name, node in nodes]
    found = probe_jobs(room, first.eval.suite, [*students, *teachers])
    return ProbedRows(_by_row(students, found), _by_row(teachers, found))


def _by_row(cases: Sequence[ProbeJob], found: Mapping[str, Any]) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {}
    for case in cases:
        rows.setdefault(case.row, []).append(found[case.name])
    return rows


def probe_jobs(room: EvalRoom, suite: str, cases: Sequence[ProbeJob]) -> dict[str, Any]:
    """Metrics by case name. No case needs another, so each core takes its own; a process holds up to 2.5 GiB."""
    room.load_suite(suite)  # a mistake in the suite is told before processes start
    processes = min(len(cases), os.cpu_count() or 1, MOST_PROCESSES)
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_begin) as pool:
        waiting = {pool.submit(probe_job, room, suite, case): case.name for case in cases}
        paths = {}
        try:
            for done in tqdm(as_completed(waiting), total=len(cases), desc="probing"):
                paths[waiting[done]] = done.result()
        except BaseException:  # asked to stop, say: what is finished is on the disk, the rest need not be
            for process in multiprocessing.active_children():
                process.kill()
            raise
    return {name: room.read_metrics(path) for name, path in paths.items()}


def _begin() -> None:
    """A process that probes: one thread, and no life without the process it works for."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to everyone; the parent decides
    end_with_parent(grace=0)


def probe_job(room: EvalRoom, suite_path: str, case: ProbeJob) -> Path:
    """Probe one backbone, or find it done; returns the path of its metrics.json."""
    suite = room.load_suite(suite_path)
    digest = hashlib.sha256(suite.model_dump_json().encode()).hexdigest()
    probe = ProbeOnce(lambda backbone: room.run_suite(backbone, suite, progress=False), room.write_metrics, digest)
    return probe.run(case.name, load_backbone(case.node), case.folder)


def publish(
    room: EvalRoom, probed: ProbedRows, arms: Mapping[str, Sequence[Recipe]], baseline: str, folder: Path
) -> str:
    """Write the report below `folder`; returns what to print: the tables with their errors, and where the report is.

    Curves and pictures are of the first run of every arm.
    """
    tables = compare(room, probed, list(arms), baseline)
    firsts = {arm: recipes[0] for arm, recipes in arms.items()}
    report = room.write_report(
        folder / "report",
        title=folder.name,
        table=tables[ANSWER],
        metrics_by_row=probed.rows,
        curves=curves(firsts),
        pictures=[(CAPTION.format(sheet.teacher), path) for sheet, path in pictures(firsts, folder / "report")],
        notes=notes(next(iter(firsts.values()))),
    )
    # The answer comes last: it is what stays on the screen.
    text = [f"{title}\n\n{room.render(tables[title], 'md')}" for title in reversed(tables)]
    return "\n".join([*text, f"report: {report}"])


def compare(room: EvalRoom, probed: ProbedRows, arms: Sequence[str], baseline: str) -> dict[str, Any]:
    """Tables by title: the arms alone; beside the rows that have every metric; beside all rows, on what all can do."""
    rows = probed.rows
    zero = unusable(rows[baseline])
    whole = {row: runs for row, runs in rows.items() if not missing_anywhere({"": rows[baseline], row: runs})}
    answer = {row: runs for row, runs in whole.items() if row in arms or row == baseline}
    tables = {ANSWER: room.build_table(answer, baseline, zero)}
    if len(whole) > len(answer):
        tables["For reference:"] = room.build_table(whole, baseline, zero)
    if len(rows) > len(whole):
        allowed = sorted({*zero, *missing_anywhere(rows)})
        tables["For reference, on the metrics that all rows have:"] = room.build_table(rows, baseline, allowed)
    return tables


def unusable(baseline: Sequence[Any]) -> list[str]:
    """Metrics whose baseline, the mean of its runs, is not above 0: no relative change exists; captions name them."""
    values: dict[str, list[float]] = {}
    for result in (result for run in baseline for result in run.results):
        values.setdefault("/".join(result.key), []).append(result.value)
    return sorted(key for key, found in values.items() if sum(found) / len(found) <= 0)


def missing_anywhere(rows: Mapping[str, Sequence[Any]]) -> set[str]:
    """group/task/metric that some row has and some other has not."""
    held = [{"/".join(result.key) for run in runs for result in run.results} for runs in rows.values()]
    return set.union(*held) - set.intersection(*held)


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
        "training": f"{'; '.join(describe(stage) for stage in schedule(recipe))}, seed {recipe.seed}",
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
