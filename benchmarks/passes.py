"""The held-out error of `ridge` against a budget of passes: tiles by predicted gain, at random, and by true change.

    python benchmarks/passes.py RECIPE.yaml [key=value ...]

Fits the recipe's ridge (no steps), then evaluates it on the recipe's held-out views with as many tiles of a batch as
the budget allows. MSE in normalised space, by the fixed average of cells.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from common.recipes import load_recipe
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.model.views import tile_images
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.evaluation import collect_errors, summarise
from featsharp_adapter.training.samples import Sample
from featsharp_adapter.training.teacher_data import FILL_BATCH, TeacherData, open_teacher_data
from featsharp_adapter.training.train_one import fit_one
from featsharp_adapter.upsamplers.ridge import RidgeUpsampler

Score = Callable[[Sample], Tensor]


def main() -> None:
    """A row for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    recipe = load_recipe(AdapterRecipe, arguments.recipe, ["upsampler=ridge", "options={}", *arguments.overrides])
    data = open_teacher_data(recipe, [recipe])
    adapter = fit_one(recipe, data)
    scores = {"predicted": predicted(adapter), "random": chance(adapter.tile_grids[0]), "true change": change(adapter)}
    whole = 1 + adapter.tile_grids[0] ** 2
    print(f"| passes of {whole} | " + " | ".join(scores) + " |")
    for share in (0.0, 0.1875, 0.375, 0.5, 0.75, 1.0):
        errors = [error(adapter, data, share, score) for score in scores.values()]
        print(f"| {1 + share * (whole - 1):g} | " + " | ".join(f"{value:.4f}" for value in errors) + " |", flush=True)


def predicted(adapter: Adapter) -> Score:
    """What the adapter itself goes by."""
    return lambda sample: adapter.upsampler.gains(adapter.denoise_normalised(sample.views.low), sample.guidance())


def chance(n: int) -> Score:
    """Any tile as well as any other."""
    generator = torch.Generator().manual_seed(0)
    return lambda sample: torch.rand(len(sample.pixels), n, n, generator=generator)


def change(adapter: Adapter) -> Score:
    """What the tile really changes: the best that a prediction of it could do."""

    def score(sample: Sample) -> Tensor:
        upsampler = adapter.upsampler
        assert isinstance(upsampler, RidgeUpsampler)
        low, image = adapter.denoise_normalised(sample.views.low), sample.guidance()
        whole = adapter.forward_normalised(sample.views, image)
        changed = (whole - upsampler.upsample_low(low, image)).square().mean(dim=1, keepdim=True)
        return tile_images(changed, upsampler.n).flatten(1).mean(dim=1).unflatten(0, (len(low), upsampler.n, -1))

    return score


@torch.no_grad()
def error(adapter: Adapter, data: TeacherData, share: float, score: Score) -> float:
    """Held-out MSE with this share of the tiles of a batch."""

    def budgeted() -> Iterator[Sample]:
        for sample in data.held_out.in_order(FILL_BATCH):
            n = adapter.tile_grids[0]
            flat = score(sample).flatten()
            chosen = torch.zeros_like(flat, dtype=torch.bool)
            chosen[flat.argsort(descending=True)[: int(share * len(flat) + 1e-6)]] = True
            views = sample.views._replace(chosen=chosen.view(-1, n, n))
            yield replace(sample, views=views)

    found = collect_errors(adapter, {"average": AverageDownsampler(adapter.factor)}, budgeted())
    return summarise(found.by_downsampler["average"], found.variance).mse


if __name__ == "__main__":
    main()
