"""An upsampler of a user's own package in a distillation, named by a module path with dots."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import train

from common.jsonl import read_log
from common.recipes import load_recipe
from distill.recipe import Recipe, read

NAME = "class:own_room.sharp.nearest.Nearest"
SOURCE = """
import torch.nn.functional as F
from featsharp_adapter.upsamplers.base import Upsampler

class Nearest(Upsampler):
    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int]) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)

    def upsample(self, low, tiles, guidance):
        return F.interpolate(low, scale_factor=self.factor, mode="nearest")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`own_room/sharp/nearest.py`, importable."""
    folder = tmp_path / "own_room" / "sharp"
    folder.mkdir(parents=True)
    (folder / "nearest.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
def test_it_trains_and_resumes(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe()
    recipe = read(path, [f"teachers.coarse.upsampler={NAME}", "optim.steps=2"])
    folder = train(recipe)
    assert [line["step"] for line in read_log(folder / "log.jsonl")] == [1, 2]
    assert load_recipe(Recipe, folder / "recipe.yaml").teachers["coarse"].upsampler == NAME
    assert train(recipe) == folder  # finished, and known again


@pytest.mark.usefixtures("package")
def test_its_adapter_is_named_by_it(write_recipe: Callable[..., Path]) -> None:
    overrides = [f"teachers.coarse.upsampler={NAME}", f"teachers.coarse.adapters={{{NAME!r}: mine}}"]
    assert read(write_recipe(), overrides).teachers["coarse"].adapters == {NAME: "mine"}
