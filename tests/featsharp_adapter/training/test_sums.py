"""Sums over the training images: shown, saved, gone on with after an interruption, and merged in one order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipes import image_folder, small_recipe, small_teacher_data

from common import progress
from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training import teacher_data as teacher_data_module
from featsharp_adapter.training.closed_form import view_rows
from featsharp_adapter.training.samples import Sample, SampleStore, StreamedSamples
from featsharp_adapter.training.teacher_data import TeacherData
from featsharp_adapter.training.train_one import fit_one, new_trainer, train_one

RIDGE: dict[str, Any] = {"inputs": ["low", "tiles", "image"], "image_width": 4}


@pytest.fixture(params=[4.0, 0.0], ids=["kept", "streamed"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> AdapterRecipe:
    """40 images are two whole batches and a half."""
    return small_recipe(
        image_folder(tmp_path / "images"),
        upsampler="ridge",
        options=RIDGE,
        ridge={"reweight": True},
        data__images=40,
        data__cache_gib=request.param,
        checkpoint__every=1,
    )


class Killed(Exception):
    """Stands for the end of the process after everything that is on the disk by then."""


class Mortal:
    """Samples that end the process at the n-th batch asked for."""

    def __init__(self, samples: SampleStore | StreamedSamples, lives: int) -> None:
        self.samples, self.lives, self.size = samples, lives, samples.size

    def in_order(self, batch_size: int, start: int = 0) -> Iterator[Sample]:
        for sample in self.samples.in_order(batch_size, start):
            self.lives -= 1
            if self.lives < 0:
                raise Killed
            yield sample


def solved(adapter: Adapter) -> dict[str, torch.Tensor]:
    return adapter.upsampler.state_dict()


def test_killed_at_any_batch_it_ends_with_the_same_bits(
    recipe: AdapterRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_teacher_data(recipe, monkeypatch)
    whole = solved(fit_one(recipe, data))
    seen: list[int] = []
    for lives in (0, 2, 4, 6, 8):  # of three passes of three batches
        folder = tmp_path / f"killed-{lives}"
        with pytest.raises(Killed):
            fit_one(recipe, replaced(data, lives), folder=folder)
        counting = replaced(data, 99)
        again = solved(fit_one(recipe, counting, folder=folder))
        assert all(torch.equal(again[name], value) for name, value in whole.items())
        seen.append(99 - counting.training.lives)
    assert seen == [9 - lives for lives in (0, 2, 4, 6, 8)]  # and no batch is summed again


def replaced(data: TeacherData, lives: int) -> TeacherData:
    fields = dict(vars(data))
    return TeacherData(**fields | {"training": Mortal(data.training, lives)})


def test_sums_of_other_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_folder(tmp_path / "images")
    recipe = small_recipe(images, upsampler="ridge", options=RIDGE, data__images=40, checkpoint__every=1)
    with pytest.raises(Killed):
        fit_one(recipe, replaced(small_teacher_data(recipe, monkeypatch), 1), folder=tmp_path / "run")
    (images / "0.png").write_bytes((images / "1.png").read_bytes())
    teacher_data_module.open_once.cache_clear()
    with pytest.raises(UserError, match="of another recipe or teacher"):
        fit_one(recipe, small_teacher_data(recipe, monkeypatch), folder=tmp_path / "run")


def test_off_a_terminal_there_is_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    recipe = small_recipe(image_folder(tmp_path / "images"), upsampler="ridge", options=RIDGE, data__images=40)
    fit_one(recipe, small_teacher_data(recipe, monkeypatch))
    said = capsys.readouterr().err
    assert "training views: 16 of 40 images, about " in said
    assert "sums of the views: 32 of 40 images, about " in said and "sums of the gains of tiles: 40 of 40" in said


@torch.no_grad()
def test_after_training_a_budget_reads_the_trained_image_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block trains what the map without tiles reads: the map solved before would be of other inputs."""
    options = RIDGE | {"width": 8, "heads": 2, "hidden": 8}
    recipe = small_recipe(
        image_folder(tmp_path / "images"), upsampler="ridge_block", options=options, data__images=40, optim__lr=0.05
    )
    data = small_teacher_data(recipe, monkeypatch)
    with torch.enable_grad():
        adapter, _ = train_one(recipe, data)
        before = new_trainer(recipe, data).adapter.upsampler.linear_low
    rows = [view_rows(adapter, adapter.upsampler, s, tiles=False) for s in data.training.in_order(8)]

    def error(layer: torch.nn.Conv2d) -> float:
        weight, bias = layer.weight[..., 0, 0], layer.bias
        parts = [(r.weights[:, None] * (r.targets - r.inputs @ weight.T - bias).square()).sum() for r in rows]
        return float(torch.stack(parts).sum())

    assert not torch.equal(before.weight, adapter.upsampler.linear_low.weight)
    assert error(adapter.upsampler.linear_low) < 0.99 * error(before)
