"""Train several upsamplers on the same views with the same budget, several seeds each, and judge them; draw them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.budget import budget_of, choose_tiles
from featsharp_adapter.compare.outcomes import Outcome, key_of, setting_of, variant_digest
from featsharp_adapter.compare.probes import Probes, RememberingBackbone, probe_adapter
from featsharp_adapter.compare.true_resolution import NAME, evaluate_true_resolution
from featsharp_adapter.compare.variants import parse_variant
from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.sharpening.peak_memory import PeakMemory
from featsharp_adapter.sharpening.pictures import save_panels, shared_basis, to_pictures
from featsharp_adapter.training.evaluation import evaluate_held_out
from featsharp_adapter.training.samples import Sample
from featsharp_adapter.training.teacher_data import FILL_BATCH, TeacherData
from featsharp_adapter.training.train_one import train_one
from featsharp_adapter.upsamplers.table import build_upsampler, upsampler_class

#: Longest side of an image in a picture.
PICTURE_PIXELS = 320


@dataclass(frozen=True)
class Comparison:
    """All results of one teacher, and the adapters that were trained for the first seed, by upsampler."""

    outcomes: list[Outcome]
    adapters: dict[str, Adapter]


def compare(
    recipe: AdapterRecipe,
    teacher_data: TeacherData,
    upsamplers: Sequence[str],
    seeds: Sequence[int],
    probes: Probes | None = None,
    keep: Callable[[Outcome], object] = lambda _: None,
    *,
    passes: Sequence[float] = (),
    suite: Sequence[str] = (),
    known: Sequence[Outcome] = (),
) -> Comparison:
    """All trainings of one teacher; `upsamplers` as in `variants.py`; `probes` measure the features that each sharpens.

    A seed decides weights, batches and choice of views; the data stay the same. `keep` is given every result as soon as
    it is there. passes: budgets on which those that can do with less are judged too. suite: what the probes are called.
    known: results that need not be made again.
    """
    teacher = RememberingBackbone(teacher_data.backbone)
    setting = setting_of(recipe, teacher_data, suite)
    there = {outcome.key: outcome for outcome in known}
    refuse_twice(upsamplers, seeds)
    budgets = {name: _budgets(name, _variant(name, recipe, recipe.seed), teacher_data, passes) for name in upsamplers}
    if passes and all(len(each) == 1 for each in budgets.values()):
        raise UserError(
            f"passes: none of {', '.join(upsamplers)} can do with {' or '.join(f'{each:g}' for each in passes)} passes "
            "only; ridge and ridge_block with tiles can do with less than all"
        )
    outcomes: list[Outcome] = []
    adapters: dict[str, Adapter] = {}
    for seed in seeds:
        for name in upsamplers:
            variant = _variant(name, recipe, seed)
            identity = _identity(setting, name, variant, seed)
            wanted = [identity | {"passes": each} for each in budgets[name]]
            keys = [key_of(each) for each in wanted]
            if all(key in there for key in keys):
                outcomes += [there[key] for key in keys]
                print(f"{teacher_data.spec.name} {name} seed {seed}: known", flush=True)
                continue
            adapter, made = _measure(wanted, variant, teacher_data, teacher, probes)
            adapters.setdefault(name, adapter)
            for outcome in made:
                if outcome.key in there:  # counts once, though it had to be made again beside another budget
                    outcomes.append(there[outcome.key])
                    continue
                outcomes.append(outcome)
                keep(outcome)
                print(_told(outcome), flush=True)
    return Comparison(outcomes, adapters)


def refuse_twice(upsamplers: Sequence[str], seeds: Sequence[int]) -> None:
    """UserError for one that comes twice: it would count as two, with no difference between them."""
    for what, named in (("upsamplers", upsamplers), ("seeds", seeds)):
        twice = [each for place, each in enumerate(named) if each in named[:place]]
        if twice:
            raise UserError(f"{what}: {twice[0]} is named twice")


def _variant(name: str, recipe: AdapterRecipe, seed: int) -> AdapterRecipe:
    """The recipe of a row of the comparison."""
    return recipe if name == NAME else parse_variant(name, recipe).recipe(recipe, seed)


def _identity(setting: dict[str, Any], name: str, variant: AdapterRecipe, seed: int) -> dict[str, Any]:
    """What an outcome is of, but for its passes."""
    solved = name == NAME or upsampler_class(variant.upsampler).closed_form
    steps = 0 if solved else variant.optim.steps
    return {"setting": setting, "upsampler": name, "recipe": variant_digest(variant), "seed": seed, "steps": steps}


def _budgets(name: str, variant: AdapterRecipe, data: TeacherData, passes: Sequence[float]) -> list[float]:
    """All passes, then those of `passes` that this upsampler can be held to."""
    if name == NAME:
        return [float(variant.factor**2)]  # of one pass, so many times as large
    spec, options = data.spec, variant.options
    with torch.device("meta"):
        built = build_upsampler(
            variant.upsampler, dim=spec.spatial_dim, factor=variant.factor, grid=spec.native_grid, **options
        )
    whole = float(1 + sum(n * n for n in built.tile_grids))
    budgets = [budget_of(each, int(whole)) for each in passes] if built.budgeted else []
    return [whole, *(each for each in dict.fromkeys(budgets) if each < whole)]


def _measure(
    wanted: Sequence[dict[str, Any]],
    variant: AdapterRecipe,
    data: TeacherData,
    teacher: RememberingBackbone,
    probes: Probes | None,
) -> tuple[Adapter, list[Outcome]]:
    """Train once, and judge on each budget; the first is all passes."""
    name = wanted[0]["upsampler"]
    began = time.process_time()
    adapter, fidelity = evaluate_true_resolution(variant, data) if name == NAME else train_one(variant, data)
    spent = time.process_time() - began
    milliseconds, mebibytes = measure_cost(adapter, next(iter(data.held_out.in_order(1))))
    made = []
    for identity in wanted:
        budget = None if identity is wanted[0] else identity["passes"]
        learned: float | None = fidelity["learned"].mse
        side = adapter.meta.fidelity["side"]
        if budget is not None:  # by the average alone: no downsampler was trained with it
            samples = spend(adapter, data.held_out.in_order(FILL_BATCH), budget)
            fidelity, metrics = evaluate_held_out(adapter, AverageDownsampler(adapter.factor), samples)
            learned, side = None, asdict(metrics)
        outcome = Outcome(
            **identity,
            mse_average=fidelity["average"].mse,
            mse_learned=learned,
            fidelity=fidelity["learned"].ratio,
            **side,
            parameters=sum(parameter.numel() for parameter in adapter.upsampler.parameters()),
            seconds=spent,
            milliseconds=milliseconds,
            mebibytes=mebibytes,
        )
        if probes is not None and name != NAME:
            outcome = replace(outcome, probes=probe_adapter(probes, teacher, adapter, name, passes=budget))
        made.append(outcome)
    return adapter, made


def spend(adapter: Adapter, samples: Iterator[Sample], passes: float) -> Iterator[Sample]:
    """The same samples, with the tiles that a budget of passes an image has room for; it counts over a batch."""
    for sample in samples:
        low = adapter.denoise_normalised(sample.views.low)
        chosen = choose_tiles(adapter.upsampler, low, sample.guidance(), passes)
        yield replace(sample, views=sample.views._replace(chosen=chosen))


def _told(outcome: Outcome) -> str:
    learned = "" if outcome.mse_learned is None else f", learned {outcome.mse_learned:.4f}"
    probed = "".join(f", {title} {value:.2f}" for title, value in outcome.probes.items())
    where = f"{outcome.teacher} {outcome.upsampler} seed {outcome.seed}, {outcome.passes:g} passes"
    return f"{where}: average {outcome.mse_average:.4f}{learned}, fidelity {outcome.fidelity:.3f}{probed}"


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
