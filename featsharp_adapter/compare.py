"""Train several upsamplers on the same views with the same budget, several seeds each, and tabulate their errors."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.session import train_one
from featsharp_adapter.workshop import Workshop

Estimate = tuple[float, float | None]  #: mean, and its standard error where several values say


@dataclass(frozen=True)
class Outcome:
    """One training: mean squared errors in PHI-S space on held-out views, by both downsamplers."""

    teacher: str
    upsampler: str
    seed: int
    mse_average: float
    mse_learned: float
    parameters: int
    seconds: float  #: CPU time of training and judging, all threads


@dataclass(frozen=True)
class Row:
    """One upsampler over its seeds: means, and standard errors over seeds."""

    teacher: str
    upsampler: str
    seeds: int
    mse_average: Estimate
    mse_learned: Estimate
    fidelity: Estimate  #: 1 / mse_learned
    parameters: int
    seconds: float


def compare(
    recipe: AdapterRecipe, workshop: Workshop, upsamplers: Sequence[str], seeds: Sequence[int]
) -> list[Outcome]:
    """All trainings of one teacher. A seed decides weights, batches and choice of views; the data stay the same."""
    outcomes = []
    for seed in seeds:
        for name in upsamplers:
            options = recipe.options if name == recipe.upsampler else {}
            arm = recipe.model_copy(update={"upsampler": name, "options": options, "seed": seed})
            began = time.process_time()
            adapter, fidelity = train_one(arm, workshop)
            size = sum(parameter.numel() for parameter in adapter.upsampler.parameters())
            errors = (fidelity["average"].mse, fidelity["learned"].mse)
            spent = time.process_time() - began
            outcomes.append(Outcome(workshop.spec.name, name, seed, *errors, size, spent))
            print(f"{workshop.spec.name} {name} seed {seed}: average {errors[0]:.4f}, learned {errors[1]:.4f}")
    return outcomes


def summarise(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row per teacher and upsampler, in order of appearance."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.teacher, outcome.upsampler), []).append(outcome)
    return [_row(teacher, name, group) for (teacher, name), group in groups.items()]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; ± is the standard error over seeds, "learned" the downsampler trained with each."""
    lines = [
        "| teacher | upsampler | MSE, fixed average | MSE, learned | fidelity | parameters | CPU s | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [_pair(row.mse_average), _pair(row.mse_learned), _pair(row.fidelity)]
        rest = [f"{row.parameters:,}", f"{row.seconds:.0f}", str(row.seeds)]
        lines.append("| " + " | ".join([row.teacher, row.upsampler, *cells, *rest]) + " |")
    return "\n".join(lines) + "\n"


def write_table(outcomes: Sequence[Outcome], out: Path) -> str:
    """Write OUT.md (the table) and OUT.json (every training and the rows); returns the table."""
    rows = summarise(outcomes)
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"rows": [asdict(row) for row in rows], "outcomes": [asdict(outcome) for outcome in outcomes]}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    table = markdown(rows)
    out.with_suffix(".md").write_text(table, encoding="utf-8")
    return table


def _row(teacher: str, name: str, group: Sequence[Outcome]) -> Row:
    return Row(
        teacher=teacher,
        upsampler=name,
        seeds=len(group),
        mse_average=mean_and_error([outcome.mse_average for outcome in group]),
        mse_learned=mean_and_error([outcome.mse_learned for outcome in group]),
        fidelity=mean_and_error([1 / outcome.mse_learned for outcome in group]),
        parameters=group[0].parameters,
        seconds=sum(outcome.seconds for outcome in group) / len(group),
    )


def mean_and_error(values: Sequence[float]) -> Estimate:
    """Mean and its standard error; a single value does not tell its error."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _pair(value: Estimate) -> str:
    mean, error = value
    return f"{mean:.4f}" if error is None else f"{mean:.4f} ± {error:.4f}"
