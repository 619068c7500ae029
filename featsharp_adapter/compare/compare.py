"""Train several upsamplers on the same views with the same budget, several seeds each; tabulate and draw them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from common.atomic import write_text
from common.json_files import write_json
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.compare.probes import Probes, RememberingBackbone, probe_adapter
from featsharp_adapter.compare.true_resolution import NAME, evaluate_true_resolution
from featsharp_adapter.compare.variants import parse_variant
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.sharpening.peak_memory import PeakMemory
from featsharp_adapter.sharpening.pictures import save_panels, shared_basis, to_pictures
from featsharp_adapter.training.samples import Sample
from featsharp_adapter.training.teacher_data import TeacherData
from featsharp_adapter.training.train_one import train_one

Estimate = tuple[float, float | None]  #: mean, and its standard error where several values say

#: Longest side of an image in a picture.
PICTURE_PIXELS = 320


@dataclass(frozen=True)
class Outcome:
    """One training: mean squared errors in normalised space on held-out views, and what they do not tell.

    fidelity: equation 7 by the learned downsampler. tv, crf, mmd: `side_metrics`. milliseconds, mebibytes: of
    sharpening one image whose views are there, all threads, tensors only.
    """

    teacher: str
    upsampler: str
    seed: int
    mse_average: float
    mse_learned: float
    fidelity: float
    tv: float
    crf: float
    mmd: float
    parameters: int
    seconds: float  #: CPU time of training and judging, all threads
    milliseconds: float
    mebibytes: float
    probes: dict[str, float] = field(default_factory=dict)  #: on sharpened features, where a suite was given


@dataclass(frozen=True)
class Row:
    """One upsampler over its seeds: means, and standard errors over seeds."""

    teacher: str
    upsampler: str
    seeds: int
    mse_average: Estimate
    mse_learned: Estimate
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
class Comparison:
    """All trainings of one teacher, and the adapters of the first seed, by upsampler."""

    outcomes: list[Outcome]
    adapters: dict[str, Adapter]


def compare(
    recipe: AdapterRecipe,
    teacher_data: TeacherData,
    upsamplers: Sequence[str],
    seeds: Sequence[int],
    probes: Probes | None = None,
    keep: Callable[[Sequence[Outcome]], object] = lambda _: None,
) -> Comparison:
    """All trainings of one teacher; `upsamplers` as in `variants.py`; `probes` measure the features that each sharpens.

    A seed decides weights, batches and choice of views; the data stay the same. `keep` is given what there is so far,
    after every training.
    """
    teacher = RememberingBackbone(teacher_data.backbone)
    outcomes: list[Outcome] = []
    adapters: dict[str, Adapter] = {}
    probe = next(iter(teacher_data.held_out.in_order(1)))
    for seed in seeds:
        for name in upsamplers:
            began = time.process_time()
            if name == NAME:
                adapter, fidelity = evaluate_true_resolution(recipe, teacher_data)
            else:
                adapter, fidelity = train_one(parse_variant(name, recipe).recipe(recipe, seed), teacher_data)
            spent = time.process_time() - began
            side = adapter.meta.fidelity["side"]
            cost = measure_cost(adapter, probe)
            outcome = Outcome(
                teacher=teacher_data.spec.name,
                upsampler=name,
                seed=seed,
                mse_average=fidelity["average"].mse,
                mse_learned=fidelity["learned"].mse,
                fidelity=fidelity["learned"].ratio,
                **side,
                parameters=sum(parameter.numel() for parameter in adapter.upsampler.parameters()),
                seconds=spent,
                milliseconds=cost[0],
                mebibytes=cost[1],
                probes={} if probes is None or name == NAME else probe_adapter(probes, teacher, adapter, name),
            )
            outcomes.append(outcome)
            keep(outcomes)
            adapters.setdefault(name, adapter)
            errors = f"average {outcome.mse_average:.4f}, learned {outcome.mse_learned:.4f}"
            probed = "".join(f", {title} {value:.2f}" for title, value in outcome.probes.items())
            print(
                f"{teacher_data.spec.name} {name} seed {seed}: {errors}, fidelity {outcome.fidelity:.3f}{probed}",
                flush=True,
            )
    return Comparison(outcomes, adapters)


@torch.no_grad()
def measure_cost(adapter: Adapter, sample: Sample) -> tuple[float, float]:
    """Milliseconds (fastest of three) and mebibytes of tensors for one image whose views are there already."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        adapter(sample.views, sample.guidance()).sum().item()  # a number waits for a GPU to be done
        times.append((time.perf_counter() - began) * 1000)
    with PeakMemory() as memory:
        adapter(sample.views, sample.guidance())
    return min(times), memory.peak / 2**20


@torch.no_grad()
def draw(adapters: Mapping[str, Adapter], teacher_data: TeacherData, count: int, path: Path) -> Path:
    """A PNG: held-out images in rows; the image, the teacher's map and every upsampler's in columns, in one basis."""
    sample = next(iter(teacher_data.held_out.in_order(count)))
    images = sample.guidance()
    maps = {"teacher": sample.views.low}
    maps |= {name: adapter(sample.views, images) for name, adapter in adapters.items()}
    basis = shared_basis(maps)
    scale = min(1.0, PICTURE_PIXELS / max(images.shape[-2:]))
    size = (round(images.shape[-2] * scale), round(images.shape[-1] * scale))
    columns = {"image": to_pictures(images, size)}
    columns |= {title: to_pictures(basis.paint(features), size) for title, features in maps.items()}
    return save_panels(columns, path)


def summarise(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row per teacher and upsampler, in order of appearance."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.teacher, outcome.upsampler), []).append(outcome)
    return [_row(teacher, name, group) for (teacher, name), group in groups.items()]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; ± is the standard error over seeds, "learned" the downsampler trained with each."""
    header = ["teacher", "upsampler", "MSE, fixed average", "MSE, learned", "fidelity", "TV", "CRF", "MMD"]
    titles = list(dict.fromkeys(title for row in rows for title in row.probes))
    header += [*titles, "parameters", "ms an image", "MiB", "CPU s", "seeds"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [_pair(value) for value in (row.mse_average, row.mse_learned, row.fidelity, row.tv, row.crf, row.mmd)]
        cells += [_pair(row.probes[title], 2) if title in row.probes else "–" for title in titles]
        cost = [f"{row.parameters:,}", f"{row.milliseconds:.1f}", f"{row.mebibytes:.1f}", f"{row.seconds:.0f}"]
        lines.append("| " + " | ".join([row.teacher, row.upsampler, *cells, *cost, str(row.seeds)]) + " |")
    return "\n".join(lines) + "\n"


def write_table(outcomes: Sequence[Outcome], out: Path) -> str:
    """Write OUT.md (the table) and OUT.json (every training and the rows); returns the table."""
    rows = summarise(outcomes)
    content = {"rows": [asdict(row) for row in rows], "outcomes": [asdict(outcome) for outcome in outcomes]}
    write_json(out.with_suffix(".json"), content)
    table = markdown(rows)
    write_text(out.with_suffix(".md"), table)
    return table


def _row(teacher: str, name: str, group: Sequence[Outcome]) -> Row:
    return Row(
        teacher=teacher,
        upsampler=name,
        seeds=len(group),
        mse_average=mean_and_error([outcome.mse_average for outcome in group]),
        mse_learned=mean_and_error([outcome.mse_learned for outcome in group]),
        fidelity=mean_and_error([outcome.fidelity for outcome in group]),
        tv=mean_and_error([outcome.tv for outcome in group]),
        crf=mean_and_error([outcome.crf for outcome in group]),
        mmd=mean_and_error([outcome.mmd for outcome in group]),
        parameters=group[0].parameters,
        seconds=sum(outcome.seconds for outcome in group) / len(group),
        milliseconds=sum(outcome.milliseconds for outcome in group) / len(group),
        mebibytes=max(outcome.mebibytes for outcome in group),
        probes={title: mean_and_error([outcome.probes[title] for outcome in group]) for title in group[0].probes},
    )


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
