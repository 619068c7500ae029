"""Upsamplers of other people: found by class path or entry point, and checked in words."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from small_recipes import image_folder, small_recipe, small_teacher_data
from torch import Tensor, nn

from common import plugins
from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.compare.variants import parse_variant
from featsharp_adapter.training.train_one import train_one
from featsharp_adapter.upsamplers import table
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.conformance import check_upsampler
from featsharp_adapter.upsamplers.options import check_options
from featsharp_adapter.upsamplers.simple import BilinearUpsampler, resize_features
from featsharp_adapter.upsamplers.table import UPSAMPLERS, build_upsampler

OWN = f"class:{__name__}."


class Mine(Upsampler):
    """A linear map of the bilinear map, which starts as the identity."""

    starts_as_bilinear = True

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int], scale: float = 1.0) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        self.mix, self.scale = nn.Conv2d(dim, dim, 1), scale
        nn.init.dirac_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        return self.scale * self.mix(resize_features(low, self.factor))


class Untyped(Mine):
    def __init__(self, *, dim, factor, grid, scale=1.0):  # type: ignore[no-untyped-def]
        super().__init__(dim=dim, factor=factor, grid=grid, scale=scale)


class Unreadable(Mine):
    def __init__(self, *, dim: "Nowhere", factor: int, grid: tuple[int, int]) -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__(dim=dim, factor=factor, grid=grid)


class Unfinished(Upsampler):
    pass


class Closed(BilinearUpsampler):
    def __init__(self, *, dim: int, factor: int) -> None:
        super().__init__(dim=dim, factor=factor, grid=(1, 1))


class Forgetful(Mine):
    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int]) -> None:
        super().__init__(dim=dim, factor=1, grid=grid)


class Mixing(Mine):
    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        return super().upsample(low - low.mean(dim=0, keepdim=True), tiles, guidance)


class Detached(Mine):
    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        return super().upsample(low.detach(), tiles, guidance)


class Short(Mine):
    starts_as_bilinear = False

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        return super().upsample(low, tiles, guidance)[..., 1:]


def test_what_ships_conforms() -> None:
    for name in sorted(set(UPSAMPLERS) - {"none", "anyup", "naf", "featup_implicit", "featup_published"}):
        options = {"featsharp": {"heads": 2, "hidden": 8}, "jafar": {"width": 16}, "loftup": {"frequencies": 3}}
        check_upsampler(name, options=options.get(name, {"width": 16, "groups": 2} if name == "resfu" else {}))
    check_upsampler(f"{OWN}Mine")


def test_options_of_a_class_without_annotations_are_taken_as_they_are() -> None:
    check_options(f"{OWN}Untyped", {"scale": 2.0})
    with pytest.raises(UserError, match='no option "width"'):
        check_options(f"{OWN}Untyped", {"width": 2})
    with pytest.raises(UserError, match="annotations of its __init__ cannot be read: name 'Nowhere'"):
        check_options(f"{OWN}Unreadable", {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Short", "expected"),
        ("Detached", "no gradient reaches the features"),
        ("Mixing", "depends on the other images of its batch|starts as bilinear"),
    ],
)
def test_what_does_not_conform_is_told_so(name: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_upsampler(f"{OWN}{name}", options={})
    with pytest.raises(AssertionError, match="starts as bilinear interpolation"):
        check_upsampler(f"{OWN}Mine", options={"scale": 2.0})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Unfinished", "lacks the method upsample"),
        ("Closed", "must take dim, factor, grid by name; missing: grid"),
        ("Forgetful", "call super"),
        ("image_folder", "must be a subclass of featsharp_adapter.upsamplers.base.Upsampler"),
        ("Min", 'has no "Min" .did you mean "Mine"'),
    ],
)
def test_a_wrong_class_is_told_what_is_missing(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_upsampler(f"{OWN}{name}", dim=4, factor=2, grid=(3, 3))


def test_an_entry_point_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("mine", f"{__name__}:Mine", table.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == table.GROUP else [])
    assert isinstance(build_upsampler("mine", dim=4, factor=2, grid=(3, 3)), Mine)
    with pytest.raises(UserError, match='did you mean "mine"'):
        build_upsampler("mien", dim=4, factor=2, grid=(3, 3))


def test_it_is_trained_compared_and_loaded_by_who_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{OWN}Mine"
    recipe = small_recipe(image_folder(tmp_path / "images"), upsampler=name, options={}, optim__steps=2)
    adapter, _ = train_one(recipe, small_teacher_data(recipe, monkeypatch))
    assert parse_variant(f"{name}:scale=0.5", recipe).options == {"scale": 0.5}
    folder = adapter.save_pretrained(tmp_path / "adapter")
    # What comes with a file names no code.
    with pytest.raises(UserError, match="code that is not of this package"):
        Adapter.from_pretrained(folder)
    again = Adapter.from_pretrained(folder, trusted=name)
    low, image = torch.randn(1, 8, 4, 3), torch.rand(1, 3, 64, 48)
    assert torch.equal(again.upsampler(low, {}, image), adapter.upsampler(low, {}, image))
