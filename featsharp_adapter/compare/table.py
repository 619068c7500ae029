"""Tables of results: a row for each upsampler and budget, means and standard errors over seeds, a table a setting."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.digests import digest_value
from common.errors import UserError
from common.json_files import write_json
from featsharp_adapter.compare.outcomes import Outcome

Estimate = tuple[float, float | None]  #: mean, and its standard error where several values say


@dataclass(frozen=True)
class Row:
    """One upsampler on one budget over its seeds: means, and standard errors over seeds."""

    teacher: str
    upsampler: str
    passes: float
    steps: int
    seeds: int
    mse_average: Estimate
    mse_learned: Estimate | None
    fidelity: Estimate
    tv: Estimate
    crf: Estimate
    mmd: Estimate
    parameters: int
    seconds: float
    milliseconds: float
    mebibytes: float
    probes: dict[str, Estimate]


@dataclass(frozen=True)
class Table:
    """Rows that share a setting."""

    title: str
    setting: dict[str, Any]
    rows: list[Row]


def tables_of(outcomes: Sequence[Outcome]) -> list[Table]:
    """One table a setting, in order of appearance."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(digest_value(outcome.setting), []).append(outcome)
    return [Table(title_of(group[0].setting), group[0].setting, summarise(group)) for group in groups.values()]


def title_of(setting: dict[str, Any]) -> str:
    """Teacher, factor, images."""
    images = f"{setting.get('images')} images, judged on {setting.get('held_out_images')}"
    seen = setting.get("teacher_map")
    reads = seen.get("reads") if isinstance(seen, dict) else None
    return f"{setting['teacher']}{f' ({reads})' if reads else ''}, {setting.get('factor')}x, {images}"


def summarise(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row an upsampler and budget, in order of appearance."""
    groups: dict[tuple[str, str, str, float], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.teacher, outcome.upsampler, outcome.recipe, outcome.passes), []).append(outcome)
    return [_row(group) for group in groups.values()]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; ± is the standard error over seeds, "learned" the downsampler trained with each."""
    header, body = cells_of(rows)
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    lines += ["| " + " | ".join(cells) + " |" for cells in body]
    return "\n".join(lines) + "\n"


def cells_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and body of a table, as text."""
    titles = list(dict.fromkeys(title for row in rows for title in row.probes))
    header = ["teacher", "upsampler", "passes", "steps", "MSE, fixed average", "MSE, learned", "fidelity"]
    header += ["TV", "CRF", "MMD", *titles, "parameters", "ms an image", "MiB", "CPU s", "seeds"]
    body = []
    for row in rows:
        learned = "–" if row.mse_learned is None else _pair(row.mse_learned)
        cells = [row.teacher, row.upsampler, f"{row.passes:g}", str(row.steps), _pair(row.mse_average), learned]
        cells += [_pair(value) for value in (row.fidelity, row.tv, row.crf, row.mmd)]
        cells += [_pair(row.probes[title], 2) if title in row.probes else "–" for title in titles]
        cells += [f"{row.parameters:,}", f"{row.milliseconds:.1f}", f"{row.mebibytes:.1f}", f"{row.seconds:.0f}"]
        body.append([*cells, str(row.seeds)])
    return header, body


def write_tables(outcomes: Sequence[Outcome], out: Path) -> str:
    """Write OUT.md (a table a setting) and OUT.json (the rows); returns the text."""
    tables = tables_of(outcomes)
    write_json(beside(out, ".json"), {"tables": [asdict(table) for table in tables]})
    text = "\n".join(f"{table.title}\n\n{markdown(table.rows)}" for table in tables)
    write_text(beside(out, ".md"), text)
    return text


def beside(out: Path, ending: str) -> Path:
    """OUT with an ending; a point in its name is part of the name."""
    return out.with_name(f"{out.name.removesuffix(ending)}{ending}")


def _row(group: Sequence[Outcome]) -> Row:
    first = group[0]
    learned = [outcome.mse_learned for outcome in group if outcome.mse_learned is not None]
    return Row(
        teacher=first.teacher,
        upsampler=first.upsampler,
        passes=first.passes,
        steps=first.steps,
        seeds=len(group),
        mse_average=mean_and_error([outcome.mse_average for outcome in group]),
        mse_learned=mean_and_error(learned) if len(learned) == len(group) else None,
        fidelity=mean_and_error([outcome.fidelity for outcome in group]),
        tv=mean_and_error([outcome.tv for outcome in group]),
        crf=mean_and_error([outcome.crf for outcome in group]),
        mmd=mean_and_error([outcome.mmd for outcome in group]),
        parameters=first.parameters,
        seconds=sum(outcome.seconds for outcome in group) / len(group),
        milliseconds=sum(outcome.milliseconds for outcome in group) / len(group),
        mebibytes=max(outcome.mebibytes for outcome in group),
        probes={title: mean_and_error([outcome.probes[title] for outcome in group]) for title in _probed(group)},
    )


def _probed(group: Sequence[Outcome]) -> list[str]:
    """What was probed. UserError where it was not so for each seed: a mean over some would stand for all."""
    titles = list(dict.fromkeys(title for outcome in group for title in outcome.probes))
    for outcome in group:
        lacking = [title for title in titles if title not in outcome.probes]
        if lacking:
            raise UserError(
                f"{outcome.teacher} {outcome.upsampler} seed {outcome.seed}: its line has no {lacking[0]}, which other "
                "seeds of the same setting have; take the line out"
            )
    return titles


def mean_and_error(values: Sequence[float]) -> Estimate:
    """Mean and its standard error; a single value does not tell its error."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _pair(value: Estimate, digits: int = 4) -> str:
    mean, error = value
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}"
