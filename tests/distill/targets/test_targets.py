"""Targets: one PHI-S space whatever sharpens the teacher, and clear words where teacher and recipe do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_recipe, small_vit
from torch import Tensor

from common.errors import UserError
from common.recipes import apply_override, validate
from distill.recipe import Recipe
from distill.targets.targets import Targets
from featsharp_adapter.adapter.adapter import make_untrained
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.teacher_data import open_teacher_data

CPU = torch.device("cpu")


def recipe(*overrides: str) -> Recipe:
    data: dict[str, Any] = small_recipe(Path("unused"))
    for override in overrides:
        apply_override(data, override)
    return validate(Recipe, data, "test")


def build(*overrides: str) -> Targets:
    """Targets of the small recipe."""
    return Targets(recipe(*overrides), CPU)


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(4, 3, 32, 32, generator=generator) for _ in range(3)]


def test_low_resolution_maps_are_standard_in_phi_s_space(batches: list[Tensor]) -> None:
    targets = build()
    targets.fit(batches)
    fine = torch.cat([targets(images)["fine"].spatial for images in batches]).transpose(0, 1).flatten(1)
    assert torch.allclose(fine.mean(1), torch.zeros(12), atol=1e-4)
    assert torch.allclose(fine.var(1, correction=0), torch.ones(12), atol=1e-3)


@pytest.mark.parametrize("upsampler", ["none", "bilinear", "s2"])
def test_the_space_does_not_depend_on_the_upsampler(batches: list[Tensor], upsampler: str) -> None:
    tile, other = build(), build(f"teachers.coarse.upsampler={upsampler}")
    tile.fit(batches)
    other.fit(batches)
    ours, theirs = tile.normaliser_state(), other.normaliser_state()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(tile(batches[0])["coarse"].spatial.mean(), other(batches[0])["coarse"].spatial.mean())
    assert torch.equal(tile(batches[0])["coarse"].summary, other(batches[0])["coarse"].summary)


def test_tiles_are_the_teacher_on_the_enlarged_quarters(batches: list[Tensor]) -> None:
    targets = build()
    targets.fit(batches)
    coarse = targets.teachers["coarse"]
    corner = coarse.normaliser.normalise(coarse.backbone(batches[0][..., :16, 16:]).spatial)
    assert torch.allclose(targets(batches[0])["coarse"].spatial[..., :2, 2:], corner, atol=1e-5)


def test_normalisers_are_restored_exactly(batches: list[Tensor]) -> None:
    fitted, fresh = build(), build()
    fitted.fit(batches)
    fresh.load_normalisers(fitted.normaliser_state())
    assert torch.equal(fitted(batches[0])["fine"].spatial, fresh(batches[0])["fine"].spatial)


def test_random_teachers_are_the_same_in_any_order_and_leave_no_trace() -> None:
    """What was drawn before does not matter, nor does what is drawn after."""
    torch.manual_seed(1)
    first, rng_state = build(), torch.rand(3)
    torch.manual_seed(2)
    assert build().digests() == first.digests()
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), rng_state)


def test_nothing_in_the_targets_learns(batches: list[Tensor]) -> None:
    targets = build()
    targets.fit(batches)
    targets.train()
    features = targets(batches[0])["coarse"]
    assert not features.spatial.requires_grad and not features.summary.requires_grad
    assert not any(parameter.requires_grad for parameter in targets.parameters())
    assert not targets.teachers["coarse"].backbone.training


def save_adapter(folder: Path, upsampler: str, factor: int, seed: int = 0) -> str:
    """An adapter, untrained, for the coarse teacher of `build`."""
    spec = build().teachers["coarse"].spec
    torch.manual_seed(seed)
    return str(make_untrained(upsampler, spec, factor).save_pretrained(folder))


def test_an_adapter_is_used_and_named_in_the_digests(tmp_path: Path, batches: list[Tensor]) -> None:
    folder = save_adapter(tmp_path / "featsharp", "featsharp", 2)
    targets = build("teachers.coarse.upsampler=featsharp", f"teachers.coarse.adapters.featsharp={folder}")
    targets.fit(batches)
    assert targets(batches[0])["coarse"].spatial.shape == (4, 24, 4, 4)
    assert str(targets.digests()["digest of adapter coarse"]).startswith("sha256:")
    assert build().digests()["digest of adapter coarse"] is None


def test_denoising_alone_keeps_the_grid(tmp_path: Path, batches: list[Tensor]) -> None:
    spec = build().teachers["coarse"].spec
    adapter = make_untrained("featsharp", spec, 2)
    torch.nn.init.constant_(adapter.bias.buffer, 0.25)
    folder = adapter.save_pretrained(tmp_path / "featsharp")
    plain = build("teachers.coarse.upsampler=none")
    clean = build("teachers.coarse.upsampler=none", f"teachers.coarse.denoise={folder}")
    for targets in (plain, clean):
        targets.fit(batches)
    difference = clean(batches[0])["coarse"].spatial - plain(batches[0])["coarse"].spatial
    normaliser = clean.teachers["coarse"].normaliser
    expected = (
        normaliser.alpha * normaliser.rotation @ torch.full((24,), 0.25)
    )  # the adapter's own PHI-S is the identity
    assert torch.allclose(difference, expected[:, None, None].expand_as(difference), atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teachers.fine.weight.summary=1"], "has no summary; set teachers.fine.weight.summary: 0"),
        (
            ["teachers.coarse.upsampler=featsharp"],
            r"must be trained; give teachers.coarse.adapters=\{'featsharp': FOLDER",
        ),
        (["teachers.coarse.backbone=tmo:x"], 'did you mean "timm"'),
    ],
)
def test_what_does_not_fit_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(*overrides)


def test_wrong_adapters_are_refused(tmp_path: Path) -> None:
    featup = save_adapter(tmp_path / "featup", "featup", 2)
    featsharp = save_adapter(tmp_path / "featsharp", "featsharp", 2)
    use = "teachers.coarse.upsampler=featsharp"
    with pytest.raises(UserError, match="holds featup 2x, the recipe says featsharp 2x"):
        build(use, f"teachers.coarse.adapters.featsharp={featup}")
    with pytest.raises(UserError, match="holds featsharp 2x, the recipe says featsharp 3x"):
        build(use, f"teachers.coarse.adapters.featsharp={featsharp}", "teachers.coarse.factor=3")
    data = small_recipe(Path("unused"))
    data["teachers"]["coarse"] |= {"upsampler": "featsharp", "adapters": {"featsharp": featsharp}}
    data["teachers"]["coarse"]["backbone"] = small_vit(16, 24, spatial="last_block", summary="cls")
    data["teachers"]["coarse"]["backbone"]["model_args"]["depth"] = 2  # another teacher
    with pytest.raises(UserError, match="other weights"):
        Targets(validate(Recipe, data, "test"), CPU)


def test_an_adapter_fits_its_teacher_of_random_weights(tmp_path: Path, batches: list[Tensor]) -> None:
    """What featsharp_adapter/train.py trains for a `pretrained: false` teacher is for the one the targets load."""
    images = "scenes:seed=1,count=4,size=32"
    data = {"train": images, "held_out": images, "images": 4, "held_out_images": 4}
    asked = {"out": "unused", "teacher": small_vit(16, 24), "upsampler": "featsharp", "factor": 2, "data": data}
    trained_for = open_teacher_data(validate(AdapterRecipe, asked, "test"), [])
    torch.rand(7)  # whatever else was drawn meanwhile
    folder = str(make_untrained("featsharp", trained_for.spec, 2).save_pretrained(tmp_path / "adapter"))
    targets = build("teachers.coarse.upsampler=featsharp", f"teachers.coarse.adapters.featsharp={folder}")
    assert targets.teachers["coarse"].spec.digest == trained_for.spec.digest
    seen = trained_for.backbone(batches[0][..., :16, :16])
    assert torch.equal(targets.teachers["coarse"].backbone(batches[0][..., :16, :16]).spatial, seen.spatial)
