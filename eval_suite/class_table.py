"""A mean over classes taken apart: classes down, rows of a table across."""

from collections.abc import Mapping, Sequence

import numpy as np

from common.errors import UserError, unknown
from eval_suite.results import Key, Metrics


def by_class(rows: Mapping[str, Sequence[Metrics]]) -> dict[Key, dict[str, list[tuple[float, float | None] | None]]]:
    """Metric -> class -> for every row the mean over its runs and its error, None where it has none.

    The error is over test units alone; of several runs it is that of their mean if every run has one.
    """
    out: dict[Key, dict[str, list[tuple[float, float | None] | None]]] = {}
    for place, runs in enumerate(rows.values()):
        for key in dict.fromkeys(result.key for run in runs for result in run.results if result.by_class):
            parts = [result.by_class or {} for run in runs for result in run.results if result.key == key]
            for name in dict.fromkeys(name for part in parts for name in part):
                values = [part[name] for part in parts if name in part]
                errors = [value.stderr for value in values if value.stderr is not None]
                error = float(np.sqrt(np.mean(np.square(errors)))) if len(errors) == len(values) else None
                cells = out.setdefault(key, {}).setdefault(name, [None] * len(rows))
                cells[place] = (float(np.mean([value.value for value in values])), error)
    return out


def class_table(rows: Mapping[str, Sequence[Metrics]], task: str) -> str:
    """Markdown of one task's classes; UserError for a task without any. `task`: task, group/task, group/task/metric."""
    found = by_class(rows)
    names = {name: key for key in found for name in (key[1], "/".join(key[:2]), "/".join(key))}
    if task not in names:
        if not names:
            raise UserError("no row has values by class; they are those of mIoU, from this version on: probe again")
        raise unknown("task with classes", task, ["/".join(key) for key in found])
    key = names[task]
    lines = [f"| {'/'.join(key)} |" + "".join(f" {name} |" for name in rows), "|---|" + "---:|" * len(rows)]
    for name, cells in found[key].items():
        lines.append(f"| {name} |" + "".join(f" {text_of(cell)} |" for cell in cells))
    return "\n".join([*lines, ""])


def text_of(cell: tuple[float, float | None] | None) -> str:
    """Value ± error, or a dash."""
    if cell is None:
        return "–"
    return f"{cell[0]:.2f}" + ("" if cell[1] is None else f" ± {cell[1]:.2f}")
