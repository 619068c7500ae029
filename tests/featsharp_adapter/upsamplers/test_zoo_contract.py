"""What every upsampler of the zoo does: sizes, gradients, constants, training by the common harness, saving."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipes import image_folder, small_recipe, small_teacher_data
from zoo_cases import BLIND, CASES, DIM, GRID, NAMES, build, inputs

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.views import Views
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.teacher_data import TeacherData
from featsharp_adapter.training.train_one import new_trainer, open_samples
from featsharp_adapter.upsamplers.simple import resize_features
from featsharp_adapter.upsamplers.table import build_upsampler

#: Options of a size for tests, for the harness.
SMALL: dict[str, dict[str, Any]] = dict(reversed(CASES))


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_any_grid_and_factor(name: str, options: dict[str, Any], factor: int) -> None:
    upsampler = build(name, factor, options)
    assert upsampler.tile_grids == () and upsampler.guide_parameters() == []
    for grid in ((5, 4), (3, 7)):
        low, guidance = inputs(grid)
        out = upsampler(low, {}, guidance)
        assert out.shape == (2, DIM, factor * grid[0], factor * grid[1]) and torch.isfinite(out).all()
    one = upsampler(low[:1], {}, guidance[:1])
    assert torch.allclose(out[:1], one, atol=1e-5)  # images of a batch do not see each other


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_reach_parameters_features_and_image(name: str, options: dict[str, Any]) -> None:
    upsampler = build(name, 2, options)
    low, guidance = (tensor.requires_grad_() for tensor in inputs())
    upsampler(low, {}, guidance).square().sum().backward()
    for label, tensor in [("low", low), *upsampler.named_parameters()]:
        assert tensor.grad is not None and tensor.grad.abs().max() > 0, label
    assert (guidance.grad is None) == (name in BLIND)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"lift", "loftup"}))
def test_results_are_means_of_the_teachers_own_features(name: str) -> None:
    """All but LiFT and LoftUp weigh raw features by weights that sum to one: constants stay, and so do bounds."""
    upsampler = build(name, 3, SMALL[name])
    low, guidance = inputs((4, 5))
    constant = low[:, :, :1, :1].expand_as(low)
    assert torch.allclose(upsampler(constant, {}, guidance), constant.repeat(1, 1, 3, 3), atol=1e-5)
    out = upsampler(low, {}, guidance).flatten(2)
    assert (out <= low.flatten(2).amax(dim=2, keepdim=True) + 1e-5).all()
    assert (out >= low.flatten(2).amin(dim=2, keepdim=True) - 1e-5).all()


@pytest.mark.parametrize("name", ["sapa", "resfu"])
def test_local_ones_follow_edges_of_the_image_only_nearby(name: str) -> None:
    """What happens in one corner of the features stays within the kernel's reach of it."""
    upsampler = build(name, 2, SMALL[name]).double()
    low, guidance = inputs((9, 9), dtype=torch.float64)
    weights = torch.autograd.functional.jacobian(lambda x: upsampler(x, {}, guidance)[0, 0, 16, 16], low)[0, 0]
    assert weights[8, 8] != 0
    if name == "sapa":  # resfu's normalisation and guided filter see far; its values do not
        assert not weights[:5].any() and not weights[:, :5].any()


def test_dysample_starts_as_bilinear_interpolation() -> None:
    upsampler = build_upsampler("dysample", dim=DIM, factor=3, grid=GRID)
    low, guidance = inputs()
    torch.nn.init.zeros_(upsampler.offset.weight)
    assert torch.allclose(upsampler(low, {}, guidance), resize_features(low, 3), atol=1e-5)


@pytest.fixture(scope="module")
def teacher_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterRecipe, TeacherData]:
    with pytest.MonkeyPatch.context() as patch:
        folder = image_folder(tmp_path_factory.mktemp("zoo") / "images")
        recipe = small_recipe(
            folder,
            upsampler="bilinear",
            options={},
            bias=False,  # so that the upsampler alone can lower the loss
            downsampler={"name": "average"},
            optim={"steps": 40, "batch_size": 6, "lr": 3e-3, "lr_guide": 1e-2, "warmup": 2, "first_clip_steps": 1},
        )
        return recipe, small_teacher_data(recipe, patch)


@pytest.mark.parametrize("name", NAMES)
def test_the_harness_trains_it_and_a_folder_keeps_it(name: str, teacher_data, tmp_path: Path) -> None:
    recipe, things = teacher_data
    recipe = recipe.model_copy(update={"upsampler": name, "options": SMALL[name]})
    trainer, samples = new_trainer(recipe, things), open_samples(recipe, things)
    before = {name: tensor.clone() for name, tensor in trainer.adapter.upsampler.named_parameters()}
    losses = [float(trainer.step(number, samples.next())["loss"]) for number in range(40)]
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    moved = [not torch.equal(before[key], value) for key, value in trainer.adapter.upsampler.named_parameters()]
    assert all(moved)
    adapter = trainer.adapter.eval()
    again = Adapter.from_pretrained(adapter.save_pretrained(tmp_path / "adapter"), things.spec)
    sample = things.held_out.gather(torch.arange(2))
    views = Views(sample.views.summary, sample.views.low, {})
    with torch.no_grad():
        assert torch.equal(adapter(views, sample.guidance()), again(views, sample.guidance()))


def test_what_cannot_be_built_is_refused_in_words() -> None:
    def refused(name: str, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            build_upsampler(name, dim=DIM, factor=3, grid=GRID, **options)
        return str(caught.value)

    assert "odd" in refused("carafe", kernel=4)
    assert "odd" in refused("sapa", kernel=2)
    assert "3 does not divide the feature width (8)" in refused("dysample", groups=3)
    assert "width that 9 divides" in refused("dysample", style="pl")
    assert 'did you mean "pl"' in refused("dysample", style="plx")
    assert "5 does not divide" in refused("jafar", heads=5)
    assert "3 does not divide the feature width" in refused("loftup", heads=3)
    assert "does not divide" in refused("resfu", width=12)
    assert 'did you mean "width"' in refused("resfu", widht=12)
