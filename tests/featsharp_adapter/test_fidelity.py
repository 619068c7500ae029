"""Fidelity against its definition: a loop over cells, and cases with known answers."""

import pytest
import torch
from worlds import image_folder, small_recipe, small_workshop

from featsharp_adapter.downsampler import AverageDownsampler
from featsharp_adapter.fidelity import image_errors, measure_fidelity, summarise
from featsharp_adapter.multiview import inside_share, warp
from featsharp_adapter.phi_s import PhiS
from featsharp_adapter.session import new_trainer
from featsharp_adapter.workshop import statistics_of


@pytest.fixture
def trainer_and_held_out(tmp_path, monkeypatch):
    recipe = small_recipe(image_folder(tmp_path / "images"), upsampler="bilinear", options={})
    workshop = small_workshop(recipe, monkeypatch)
    return new_trainer(recipe, workshop), workshop.held_out


@torch.no_grad()
def test_equals_the_sum_over_all_valid_cells(trainer_and_held_out) -> None:
    trainer, held_out = trainer_and_held_out
    adapter = trainer.adapter.eval()
    sample = held_out.gather(torch.arange(4))
    error = cells = 0.0
    sharp = adapter.forward_normalised(sample.views, sample.guidance())
    for view in range(3):
        homographies = sample.homographies[:, view]
        predicted = AverageDownsampler(2)(warp(sharp, homographies))
        target = adapter.normaliser.normalise(sample.targets[:, view])  # the bias is still zero
        mask = inside_share(homographies, (4, 3))
        error += float(((predicted - target) ** 2 * mask).sum() / 8)
        cells += float(mask.sum())
    for batch_size in (1, 3, 4):
        measured = measure_fidelity(adapter, trainer.downsampler, held_out.in_order(batch_size))
        assert measured["average"].mse == pytest.approx(error / cells, rel=1e-5)
        assert measured["average"].images == 4
        assert measured["average"].to_dict()["fidelity"] == pytest.approx(cells / error, rel=1e-5)


def test_predicting_the_mean_has_fidelity_one(trainer_and_held_out) -> None:
    trainer, held_out = trainer_and_held_out

    class Nothing(torch.nn.Module):
        def forward(self, features):
            return AverageDownsampler(2)(features) * 0

    sample = held_out.gather(torch.arange(4))
    # Normalise by the targets themselves, which are what the mean is taken of here.
    trainer.adapter.normaliser = PhiS.fit(statistics_of([sample.targets.flatten(0, 1)]))
    sample.homographies[:] = torch.eye(3)  # every cell is valid
    errors = image_errors(trainer.adapter, {"nothing": Nothing()}, [sample])
    assert summarise(errors["nothing"]).mse == pytest.approx(1.0, rel=1e-4)


def test_standard_error_is_that_of_the_mean_when_all_cells_count() -> None:
    errors = torch.rand(50, 1, dtype=torch.float64)
    summary = summarise(torch.cat([errors * 7, torch.full_like(errors, 7)], dim=1))
    assert summary.mse == pytest.approx(float(errors.mean()))
    assert summary.stderr == pytest.approx(float(errors.std() / 50**0.5))
