"""`ridge` and `ridge_block`: the solution is the minimum of the multi-view objective, on every path an adapter goes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipes import image_folder, small_recipe, small_teacher_data
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.model.least_squares import RIDGES
from featsharp_adapter.model.multiview import consistency_loss, inside_share, warp
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.sharpening.sharpener import Sharpener, SharpenSettings
from featsharp_adapter.training.closed_form import view_rows
from featsharp_adapter.training.teacher_data import TeacherData
from featsharp_adapter.training.train_one import fit_one, new_trainer, open_samples, train_one
from featsharp_adapter.training.trainer import place_weights
from featsharp_adapter.upsamplers.ridge import INPUTS, RidgeUpsampler
from featsharp_adapter.upsamplers.simple import resize_features
from featsharp_adapter.upsamplers.table import build_upsampler

SMALL: dict[str, Any] = {"inputs": ["low", "tiles", "low_mean", "tile_mean", "image"], "image_width": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterRecipe, TeacherData]:
    with pytest.MonkeyPatch.context() as patch:
        folder = image_folder(tmp_path_factory.mktemp("ridge") / "images")
        recipe = small_recipe(
            folder, upsampler="ridge", options=SMALL, data__images=20, data__held_out_images=6, views__count=3
        )
        return recipe, small_teacher_data(recipe, patch)


def objective(adapter: Adapter, samples: Any, ridges: tuple[float, ...], power: Tensor) -> Tensor:
    """The consistency loss as training has it (sharpen, warp, pool, compare), summed over images; and the ridges."""
    upsampler, pool = adapter.upsampler, AverageDownsampler(adapter.factor)
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        sharp = adapter.forward_normalised(sample.views, sample.guidance().double())
        for view in range(sample.targets.shape[1]):
            homographies = sample.homographies[:, view].double()
            target = adapter.denoise_normalised(sample.targets[:, view])
            mask = inside_share(homographies, tuple(target.shape[-2:]))
            total = total + (mask * (pool(warp(sharp, homographies)) - target).square()).sum()
    for group, ridge in zip(upsampler.groups, ridges, strict=True):
        total = total + ridge * (power[group] * upsampler.linear.weight[:, group, 0, 0].square().sum(dim=0)).sum()
    return total


def test_the_closed_form_is_where_gradient_descent_ends(world) -> None:
    recipe, data = world
    # Two inputs, so that descent gets there in seconds; the sums and the solver know no names.
    recipe = recipe.model_copy(update={"options": {"inputs": ["low", "tiles"]}})
    adapter = fit_one(recipe, data).double()
    ridges = tuple(adapter.meta.training["closed form"]["ridges"])
    solved = torch.cat([adapter.upsampler.linear.weight[..., 0, 0].T, adapter.upsampler.linear.bias[None]]).clone()
    samples = list(data.training.in_order(20))
    with torch.no_grad():
        made = [view_rows(adapter, adapter.upsampler, sample) for sample in samples]
    power = torch.stack([(rows.weights[:, None] * rows.inputs.square()).sum(dim=0) for rows in made]).sum(dim=0)
    parameters = [adapter.upsampler.linear.weight, adapter.upsampler.linear.bias]
    with torch.no_grad():
        at_solution = float(objective(adapter, samples, ridges, power))
        for parameter in parameters:
            parameter.zero_()
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=120, history_size=50, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective(adapter, samples, ridges, power)
        loss.backward()
        return loss

    optimiser.step(closure)
    found = torch.cat([parameters[0][..., 0, 0].T, parameters[1][None]]).detach()
    ended = float(objective(adapter, samples, ridges, power).detach())
    assert ended == pytest.approx(at_solution, rel=1e-4) and at_solution <= ended * (1 + 1e-6)
    scale = power.sqrt()[:, None]  # how far apart the two are where there is something to multiply
    assert ((found - solved)[:-1] * scale).norm() <= 1e-2 * (solved[:-1] * scale).norm()


@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_each_input_alone_starts_as_bilinear_and_is_made_row_by_row(name: str) -> None:
    upsampler = build_upsampler("ridge", dim=4, factor=2, grid=(5, 4), inputs=[name], image_width=4)
    low, tiles, image = torch.randn(2, 4, 5, 4), {2: torch.randn(2, 4, 10, 8)}, torch.rand(2, 3, 61, 43)
    assert torch.equal(upsampler(low, tiles, image), resize_features(low, 2))
    torch.nn.init.normal_(upsampler.linear.weight)
    whole = upsampler(low, tiles, image)
    upsampler.strip_rows = 3
    assert torch.allclose(upsampler(low, tiles, image), whole, atol=1e-5)


@torch.no_grad()
def test_a_block_is_made_row_by_row_and_starts_where_the_ridge_ends() -> None:
    options = {"image_width": 4, "width": 8, "heads": 2, "hidden": 8}
    upsampler = build_upsampler("ridge_block", dim=4, factor=3, grid=(5, 4), **options)
    low, tiles, image = torch.randn(2, 4, 5, 4), {3: torch.randn(2, 4, 15, 12)}, torch.rand(2, 3, 61, 43)
    torch.nn.init.normal_(upsampler.linear.weight)
    ridge = build_upsampler("ridge", dim=4, factor=3, grid=(5, 4), image_width=4)
    ridge.load_state_dict({k: v for k, v in upsampler.state_dict().items() if k in ridge.state_dict()})
    assert torch.allclose(upsampler(low, tiles, image), ridge(low, tiles, image), atol=1e-5)
    for parameter in upsampler.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    whole = upsampler(low, tiles, image)
    upsampler.strip_rows = 4
    assert torch.allclose(upsampler(low, tiles, image), whole, atol=1e-4)


def test_the_harness_solves_saves_and_sharpens(world, tmp_path: Path) -> None:
    recipe, data = world
    adapter, fidelity = train_one(recipe, data)
    _, plain = train_one(recipe.model_copy(update={"upsampler": "bilinear", "options": {}}), data)
    assert fidelity["average"].mse < plain["average"].mse and fidelity["learned"] == fidelity["average"]
    assert adapter.meta.training["gradient steps"] == 0 and "optim" not in adapter.meta.training
    again = Adapter.from_pretrained(adapter.save_pretrained(tmp_path / "adapter"), data.spec)
    images = torch.rand(1, 3, 90, 70)
    settings = SharpenSettings(fit="windows")
    whole = Sharpener(data.backbone, adapter, settings)(images).spatial
    small = Sharpener(data.backbone, again, SharpenSettings(fit="windows", max_memory=2**20))(images).spatial
    assert torch.allclose(whole, small, atol=1e-4)


def test_borders_between_tiles_count_as_they_do_in_training(world) -> None:
    """The rows' squared residuals, weighted and averaged, are the trainer's loss wherever whole views are inside."""
    recipe, data = world
    recipe = recipe.model_copy(update={"border_weight": 3.0})
    adapter = fit_one(recipe, data).requires_grad_(False)
    places = place_weights(adapter, recipe.border_weight)
    sample = next(iter(data.training.in_order(4)))
    rows = view_rows(adapter, adapter.upsampler, sample, places)
    inside = view_rows(adapter, adapter.upsampler, sample).weights.view(3, 4, -1)
    weight, bias = adapter.upsampler.linear.weight[..., 0, 0], adapter.upsampler.linear.bias
    residual = (rows.targets - rows.inputs @ weight.T - bias).square().mean(dim=1) * rows.weights
    cells = inside.sum(dim=-1).clamp(min=inside.shape[-1] / 2)
    ours = (residual.view(3, 4, -1).sum(dim=-1) / cells).mean()
    sharp, pool = adapter.forward_normalised(sample.views, sample.guidance()), AverageDownsampler(adapter.factor)
    targets = [adapter.denoise_normalised(sample.targets[:, view]) for view in range(3)]
    views = zip(targets, sample.homographies.unbind(1), strict=True)
    theirs = [consistency_loss(sharp, target, homographies, pool, places) for target, homographies in views]
    assert ours.item() == pytest.approx(torch.stack(theirs).mean().item(), rel=1e-4)
    plain = fit_one(recipe.model_copy(update={"border_weight": 1.0}), data)
    assert not torch.allclose(plain.upsampler.linear.weight, adapter.upsampler.linear.weight, atol=1e-5)


def test_what_only_steps_can_do_is_refused(world) -> None:
    recipe, _ = world
    for change in ({"uncertainty": True}, {"spectral": True}, {"losses": {"tv": 0.1}}, {"conditional": {"heads": 2}}):
        with pytest.raises(ValueError, match=f"takes no gradient steps: leave out {next(iter(change))}"):
            AdapterRecipe.model_validate(recipe.model_dump() | change)


def test_a_second_solve_counts_outlier_tokens_less(world) -> None:
    recipe, data = world
    twice = fit_one(recipe.model_copy(update={"ridge": recipe.ridge.model_copy(update={"reweight": True})}), data)
    once = fit_one(recipe, data)
    assert not torch.allclose(once.upsampler.linear.weight, twice.upsampler.linear.weight, atol=1e-5)


def test_a_block_is_trained_from_the_solution_on(world) -> None:
    recipe, data = world
    options = SMALL | {"width": 8, "heads": 2, "hidden": 8}
    recipe = recipe.model_copy(update={"upsampler": "ridge_block", "options": options})
    trainer = new_trainer(recipe, data)
    assert isinstance(trainer.adapter.upsampler, RidgeUpsampler)
    assert trainer.adapter.upsampler.linear.weight.abs().max() > 0
    peaks = {group["peak"] for group in trainer.optimiser.param_groups}
    assert recipe.optim.lr_fitted in peaks
    samples = open_samples(recipe, data)
    before = trainer.adapter.upsampler.leave.weight.clone()
    for number in range(4):
        trainer.step(number, samples.next())
    assert not torch.equal(before, trainer.adapter.upsampler.leave.weight)
    assert max(RIDGES) >= max(trainer.adapter.meta.training["closed form"]["ridges"])


@pytest.mark.parametrize("options", [{"image_width": 0}, {"image_width": -1}, {"tile_grid": True}])
def test_sizes_that_are_none_are_refused_in_words(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="numbers from 1"):
        build_upsampler("ridge", dim=8, factor=2, grid=(4, 3), **options)
