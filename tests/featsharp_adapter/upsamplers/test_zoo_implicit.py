"""The implicit FeatUp: fitted to one image, it explains views that it was given, and knows more than bilinear does."""

import pytest
import torch
import torch.nn.functional as F
from small_recipes import image_folder, small_recipe, small_teacher_data
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.multiview import ViewSettings, random_homographies, warp
from featsharp_adapter.training.train_one import train_one
from featsharp_adapter.upsamplers.featup_implicit import (
    ImplicitSettings,
    cut_tiles,
    fit_implicit,
    principal_components,
    tile_homographies,
)
from featsharp_adapter.upsamplers.simple import resize_features
from featsharp_adapter.upsamplers.table import build_upsampler
from teachers.contracts import state_digest


def world(factor: int = 4, grid: tuple[int, int] = (6, 5)) -> tuple[Tensor, Tensor]:
    """An image with a disc, and the fine features [8, k*g, k*g'] of a teacher that knows its colours and places."""
    height, width = grid[0] * factor, grid[1] * factor
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    disc = ((y - 0.2) ** 2 + (x + 0.1) ** 2 < 0.3).float()
    image = torch.stack([disc, 1 - disc, (x + 1) / 2])
    mixing = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return image, torch.einsum("dc,chw->dhw", mixing, torch.stack([disc, x, y, disc * y]))


def test_it_recovers_detail_that_bilinear_cannot() -> None:
    image, truth = world()
    homographies = random_homographies(60, ViewSettings(zoom=(0.5, 1.1)), torch.Generator().manual_seed(1))
    homographies[0] = torch.eye(3)
    targets = F.avg_pool2d(warp(truth.expand(60, -1, -1, -1), homographies), 4)
    sharp, losses = fit_implicit(image, targets, homographies, 4, ImplicitSettings())
    assert sum(losses[-10:]) < sum(losses[:10]) - 3
    linear = resize_features(targets[:1], 4)[0]
    assert (sharp - truth).square().mean() < 0.75 * (linear - truth).square().mean()


def test_tiles_are_views() -> None:
    _, truth = world()
    homographies = tile_homographies(2, like=truth)
    seen = warp(truth.expand(4, -1, -1, -1), homographies)
    parts = cut_tiles(resize_features(truth[None], 2), 2)[0]
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # at cuts warp sees what lies beyond
    assert torch.allclose(seen[inside], parts[inside], atol=1e-4)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_any_grid_and_factor_and_always_the_same(factor: int) -> None:
    upsampler = build_upsampler("featup_implicit", dim=8, factor=factor, grid=(5, 4), steps=2, components=5)
    assert upsampler.tile_grids == (factor,) and not list(upsampler.parameters())
    low, guidance = torch.randn(2, 8, 3, 5), torch.rand(2, 3, 33, 47)
    tiles = {factor: torch.randn(2, 8, 3 * factor, 5 * factor)}
    with torch.inference_mode():
        out = upsampler(low, tiles, guidance)
    assert out.shape == (2, 8, 3 * factor, 5 * factor) and torch.isfinite(out).all()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert torch.equal(upsampler(low, tiles, guidance), out)
    assert torch.equal(torch.get_rng_state(), state)  # nor does it disturb others' random numbers
    one = upsampler(low[:1], {factor: tiles[factor][:1]}, guidance[:1])
    assert torch.equal(one, out[:1])


def test_all_components_are_everything() -> None:
    maps = torch.randn(3, 8, 4, 5)
    mean, basis = principal_components(maps, 100)
    assert basis.shape == (8, 8)
    back = torch.einsum("vdhw,cd->vchw", torch.einsum("vchw,cd->vdhw", maps - mean, basis), basis) + mean
    assert torch.allclose(back, maps, atol=1e-5)
    variances = torch.einsum("vchw,cd->vdhw", maps - mean, basis).var(dim=(0, 2, 3))
    assert (variances.diff() <= 1e-6).all()


def test_the_harness_judges_and_saves_it(tmp_path, monkeypatch) -> None:
    recipe = small_recipe(
        image_folder(tmp_path / "images"), upsampler="featup_implicit", options={"steps": 2}, optim__steps=2
    )
    adapter, fidelity = train_one(recipe, small_teacher_data(recipe, monkeypatch))
    assert fidelity["learned"].mse > 0 and adapter.tile_grids == (2,)
    again = Adapter.from_pretrained(adapter.save_pretrained(tmp_path / "adapter"))
    assert state_digest(again) == state_digest(adapter) and again.upsampler.settings == adapter.upsampler.settings


def test_mistakes_are_answered_in_words() -> None:
    for options in ({"steps": 0}, {"components": 0}, {"grids": [1]}):
        with pytest.raises(UserError, match="at least"):
            build_upsampler("featup_implicit", dim=8, factor=2, grid=(5, 4), **options)
