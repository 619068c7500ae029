"""Fidelity against its definition: a loop over cells, and cases with known answers."""

import pytest
import torch
from small_recipes import image_folder, small_recipe, small_teacher_data

from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.model.multiview import inside_share, warp
from featsharp_adapter.model.normalisers import fit_normaliser
from featsharp_adapter.training.evaluation import collect_errors, evaluate_held_out, summarise
from featsharp_adapter.training.teacher_data import statistics_of
from featsharp_adapter.training.train_one import new_trainer


@pytest.fixture
def trainer_and_held_out(tmp_path, monkeypatch):
    recipe = small_recipe(image_folder(tmp_path / "images"), upsampler="bilinear", options={})
    teacher_data = small_teacher_data(recipe, monkeypatch)
    return new_trainer(recipe, teacher_data), teacher_data.held_out


@torch.no_grad()
@pytest.mark.parametrize("normaliser", ["phi_s", "standardise"])
def test_equals_equation_seven_over_all_valid_cells(trainer_and_held_out, normaliser: str) -> None:
    trainer, held_out = trainer_and_held_out
    adapter = trainer.adapter.eval()
    sample = held_out.gather(torch.arange(4))
    adapter.normaliser = fit_normaliser(normaliser, statistics_of([sample.views.low], sample.views.low.shape[1]))
    error = raw_error = cells = 0.0
    sharp = adapter.forward_normalised(sample.views, sample.guidance())
    targets, weights = [], []
    for view in range(3):
        homographies = sample.homographies[:, view]
        predicted = AverageDownsampler(2)(warp(sharp, homographies))
        raw = sample.targets[:, view]  # the bias is still zero
        target = adapter.normaliser.normalise(raw)
        mask = inside_share(homographies, (4, 3))
        error += float(((predicted - target) ** 2 * mask).sum() / 8)
        raw_error += float(((adapter.normaliser.denormalise(predicted) - raw) ** 2 * mask).sum() / 8)
        cells += float(mask.sum())
        targets.append(raw.movedim(1, -1).flatten(0, 2))
        weights.append(mask.flatten())
    values, counts = torch.cat(targets), torch.cat(weights)[:, None]
    mean = (values * counts).sum(dim=0) / counts.sum()
    variance = float(((values - mean) ** 2 * counts).sum() / counts.sum() / 8)
    for batch_size in (1, 3, 4):
        measured = evaluate_held_out(adapter, trainer.downsampler, held_out.in_order(batch_size))[0]["average"]
        assert measured.mse == pytest.approx(error / cells, rel=1e-4) and measured.images == 4
        assert measured.ratio == pytest.approx(variance * cells / raw_error, rel=1e-4)
        assert measured.to_dict()["inverse_mse"] == pytest.approx(cells / error, rel=1e-4)
        if normaliser == "phi_s":  # a similarity: units do not matter, and its variance is about one
            unit = variance * float(adapter.normaliser.alpha) ** 2
            assert measured.ratio == pytest.approx(unit * cells / error, rel=1e-4)


def test_predicting_the_mean_has_fidelity_one(trainer_and_held_out) -> None:
    trainer, held_out = trainer_and_held_out

    class Mean(torch.nn.Module):
        def forward(self, features):
            return (AverageDownsampler(2)(features) * 0) + centre

    sample = held_out.gather(torch.arange(4))
    sample.homographies[:] = torch.eye(3)  # every cell is valid
    centre = trainer.adapter.normaliser.normalise(sample.targets.flatten(0, 1)).mean(dim=(0, 2, 3))[:, None, None]
    errors = collect_errors(trainer.adapter, {"mean": Mean()}, [sample])
    assert summarise(errors.by_downsampler["mean"], errors.variance).ratio == pytest.approx(1.0, rel=1e-4)


def test_a_perfect_prediction_has_a_finite_fidelity() -> None:
    perfect = summarise(torch.tensor([[0.0, 12, 0], [0, 9, 0]], dtype=torch.float64), variance=4.0)
    assert perfect.ratio == pytest.approx(1e12) and perfect.to_dict()["inverse_mse"] == pytest.approx(1e12)
    assert summarise(torch.tensor([[3.0, 12, 6]], dtype=torch.float64), variance=4.0).ratio == pytest.approx(8.0)


def test_side_metrics_tell_tiles_from_a_smooth_map(tmp_path, monkeypatch) -> None:
    side = {}
    for name in ("bilinear", "tile"):
        recipe = small_recipe(image_folder(tmp_path / name), upsampler=name, options={})
        teacher_data = small_teacher_data(recipe, monkeypatch)
        trainer = new_trainer(recipe, teacher_data)
        side[name] = evaluate_held_out(trainer.adapter, trainer.downsampler, teacher_data.held_out.in_order(2))[1]
        again = evaluate_held_out(trainer.adapter, trainer.downsampler, teacher_data.held_out.in_order(4))[1]
        assert (again.tv, again.crf) == pytest.approx((side[name].tv, side[name].crf), rel=1e-4)
    assert side["bilinear"].tv < side["tile"].tv


def test_standard_error_is_that_of_the_mean_when_all_cells_count() -> None:
    errors = torch.rand(50, 1, dtype=torch.float64)
    summary = summarise(torch.cat([errors * 7, torch.full_like(errors, 7), errors * 14], dim=1), 3.0)
    assert summary.mse == pytest.approx(float(errors.mean()))
    assert summary.stderr == pytest.approx(float(errors.std() / 50**0.5))
    assert summary.ratio == pytest.approx(3.0 / (2 * float(errors.mean())))
