"""The ceiling row of a comparison: the teacher's own map at k times the size, and a teacher that has none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_recipes import image_folder, small_recipe, small_teacher_data
from small_teacher import SmallTeacher

from common.errors import UserError
from featsharp_adapter.compare.compare import compare
from featsharp_adapter.compare.true_resolution import evaluate_true_resolution
from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.training import teacher_data
from teachers.contracts import Backbone, BackboneSpec, Features

UNTRAINED = {"upsampler": "bilinear", "options": {}, "optim__steps": 1, "optim__warmup": 1}


class Colours(Backbone):
    """The mean colour of each 8 x 8 patch, of images of any size: its map at twice the size is what its views show."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, images: torch.Tensor) -> Features:
        pooled = torch.nn.functional.avg_pool2d(images, 8)
        return Features(None, torch.cat([pooled, pooled.square(), pooled[:, :2].sqrt()], dim=1))


def test_a_map_that_does_not_change_with_scale_explains_its_views(tmp_path: Path, monkeypatch) -> None:
    recipe = small_recipe(
        image_folder(tmp_path / "images"), upsampler="bilinear", options={}, optim__steps=1, optim__warmup=1
    )
    colours = Colours(replace(SmallTeacher().spec, resizable=True, summary_dim=None))
    monkeypatch.setattr(teacher_data, "load_backbone", lambda node: colours)
    data = teacher_data.open_teacher_data(recipe, [recipe])
    outcomes = {
        found.upsampler: found for found in compare(recipe, data, ["bilinear", "true_resolution"], [0]).outcomes
    }
    assert outcomes["true_resolution"].mse_average < 0.7 * outcomes["bilinear"].mse_average
    adapter, _ = evaluate_true_resolution(recipe, data)
    sample = next(iter(data.held_out.in_order(2)))
    expected = adapter.normaliser.normalise(colours(sample.guidance()).spatial)
    assert torch.allclose(adapter.forward_normalised(sample.views, sample.guidance()), expected, atol=1e-5)
    assert expected.shape[-2:] == tuple(2 * side for side in sample.views.low.shape[-2:])
    assert AverageDownsampler(2)(expected).shape[-2:] == sample.views.low.shape[-2:]


def test_a_teacher_of_one_size_has_no_such_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(
        image_folder(tmp_path / "images"), upsampler="bilinear", options={}, optim__steps=1, optim__warmup=1
    )
    with pytest.raises(UserError, match="takes one size only, so there is no map of it at 2x"):
        evaluate_true_resolution(recipe, small_teacher_data(recipe, monkeypatch))
