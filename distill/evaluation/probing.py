"""Probe every student of a comparison and what it is compared with, each backbone in a process of its own."""

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.digests import digest_value
from common.json_files import write_json
from common.launcher import end_with_parent
from common.progress import ProgressBar
from distill.recipe import Recipe
from distill.recipe_engine import EvalNode
from eval_suite.finished import FinishedTasks
from eval_suite.recorded import recall_or_run
from eval_suite.results import Metrics, read_metrics, write_metrics
from eval_suite.suite import Suite, load_suite
from eval_suite.table_rows import ROWS
from teachers.contracts import Backbone, identity_of
from teachers.registry import load_backbone

MOST_PROCESSES = 4  #: that probe at the same time
METRICS, RECEIPT = "metrics.json", "probed.json"


@dataclass(frozen=True)
class ProbedRows:
    """The metrics of every row of a comparison, by row name."""

    students: dict[str, list[Metrics]]  #: the runs of every arm, and the untrained student
    teachers: dict[str, list[Metrics]]  #: reference rows; they may lack what they cannot do

    @property
    def rows(self) -> dict[str, list[Metrics]]:
        """All of them."""
        return self.students | self.teachers


@dataclass(frozen=True)
class ProbeJob:
    """One backbone to probe, of some row of the table, and the folder its metrics go to."""

    name: str
    row: str
    node: str | Mapping[str, Any]
    folder: Path


def probe_all(arms: Mapping[str, Sequence[Recipe]], folder: Path, untrained: tuple[str, Path] | None) -> ProbedRows:
    """Probe the arms' students, one before its first update, and the teachers; what is on disk is not probed again.

    arms: the recipes of the runs of every row. untrained: what that row is called, and the student.
    """
    first = next(iter(arms.values()))[0]
    if first.eval is None:
        raise ValueError("the recipe has no eval")
    runs = [(arm, recipe) for arm, recipes in arms.items() for recipe in recipes]
    students = [ProbeJob(recipe.name, arm, f"run:{recipe.folder}", recipe.folder) for arm, recipe in runs]
    if untrained is not None:
        name, before = untrained
        students.append(ProbeJob(name, name, f"run:{before}", before.parent))
    nodes = first.teachers.items() if first.eval.teachers else ()
    titles = {name: f"teacher {name}" for name, _ in nodes}
    teachers = [ProbeJob(titles[name], titles[name], node.backbone, folder / "teachers" / name) for name, node in nodes]
    found = probe_jobs(first.eval, [*students, *teachers])
    write_json(folder / ROWS, rows_below(students, folder))
    return ProbedRows(_by_row(students, found), _by_row(teachers, found))


def rows_below(jobs: Sequence[ProbeJob], folder: Path) -> dict[str, list[str]]:
    """Row -> the folders of its runs, relative to that of the comparison: what `eval_suite table FOLDER` reads."""
    rows: dict[str, list[str]] = {}
    for job in jobs:
        rows.setdefault(job.row, []).append(os.path.relpath(job.folder, folder))
    return rows


def _by_row(jobs: Sequence[ProbeJob], found: Mapping[str, Metrics]) -> dict[str, list[Metrics]]:
    rows: dict[str, list[Metrics]] = {}
    for job in jobs:
        rows.setdefault(job.row, []).append(found[job.name])
    return rows


def probe_jobs(node: EvalNode, jobs: Sequence[ProbeJob]) -> dict[str, Metrics]:
    """Metrics by job name. No job needs another, so each core takes its own; a process holds up to 2.5 GiB."""
    load_suite(node.suite, node.overrides)  # a mistake in the suite is told before processes start
    processes = min(len(jobs), os.cpu_count() or 1, MOST_PROCESSES)
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_begin) as pool:
        waiting = {pool.submit(probe_job, node, job): job.name for job in jobs}
        paths = {}
        try:
            for done in ProgressBar(len(jobs), "probing", "backbone").over(as_completed(waiting)):
                paths[waiting[done]] = done.result()
        except BaseException:  # asked to stop, say: what is finished is on the disk, the rest need not be
            for process in multiprocessing.active_children():
                process.kill()
            raise
    return {name: read_metrics(path) for name, path in paths.items()}


def _begin() -> None:
    """A process that probes: one thread, and no life without the process it works for."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to everyone; the parent decides
    end_with_parent(grace=0)


def probe_job(node: EvalNode, job: ProbeJob) -> Path:
    """Probe one backbone, or find it done; returns the path of its metrics.json."""
    suite = load_suite(node.suite, node.overrides)
    return probe_once(job.name, load_backbone(job.node), suite, job.folder)


def probe_once(row: str, backbone: Backbone, suite: Suite, folder: Path) -> Path:
    """Probe a backbone as the table's `row`; what is on disk of these weights and this suite is used again.

    So are the probes that an interrupted call finished.
    """
    metrics, receipt = folder / METRICS, folder / RECEIPT
    digest = hashlib.sha256(suite.model_dump_json().encode()).hexdigest()
    due = {"row": row, "backbone": digest_value(identity_of(backbone)), "suite": digest}
    if metrics.is_file() and receipt.is_file() and json.loads(receipt.read_text(encoding="utf-8")) == due:
        return metrics
    found = dict(recall_or_run(backbone, suite, progress=False, finished=metrics))
    found["backbone"] = {"name": row, "digest": backbone.spec.digest}
    receipt.unlink(missing_ok=True)  # never a receipt beside metrics it does not belong to
    write_metrics(metrics, found)
    write_json(receipt, due)
    FinishedTasks.beside(metrics).clear()
    return metrics
