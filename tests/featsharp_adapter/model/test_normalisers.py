"""PHI-S and its ablations: what each promises of any covariance, and that an adapter carries the one it has."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.model.normalisers import NORMALISERS, LayerNormaliser, fit_normaliser, new_normaliser
from featsharp_adapter.model.phi_s import CovarianceStatistics, PhiS
from featsharp_adapter.model.views import teacher_views


def sample(dim: int, rank: int, spread: float, seed: int, count: int = 400) -> Tensor:
    """float64 [count, dim] of this rank, singular values from 10^-spread to 1, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(dim, rank, generator=generator, dtype=torch.float64))[0]
    scales = torch.logspace(-spread, 0, rank, dtype=torch.float64)
    mean = 20 * torch.randn(dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, rank, generator=generator, dtype=torch.float64) @ (left * scales).T + mean


def statistics_of(rows: Tensor) -> CovarianceStatistics:
    statistics = CovarianceStatistics(rows.shape[1])
    statistics.update(rows)
    return statistics


def as_map(rows: Tensor) -> Tensor:
    return rows.T[None, :, :, None]


def covariance(maps: Tensor) -> Tensor:
    return torch.cov(maps[0, :, :, 0].double(), correction=0)


@settings(max_examples=25, deadline=None)
@given(
    dim=st.sampled_from([4, 8, 12, 20, 28, 36]),
    missing=st.integers(0, 3),
    spread=st.floats(0, 2),
    seed=st.integers(0, 10_000),
)
def test_phi_s_of_any_covariance(dim: int, missing: int, spread: float, seed: int) -> None:
    """Variance 1 in every channel, whatever the spectrum and the rank; a similarity; exactly undone."""
    rows = sample(dim, dim - missing, spread, seed)
    phi_s = PhiS.fit(statistics_of(rows)).double()
    rotation = phi_s.rotation
    assert torch.allclose(rotation @ rotation.T, torch.eye(dim, dtype=torch.float64), atol=1e-5)
    normalised = phi_s.normalise(as_map(rows))
    assert torch.allclose(covariance(normalised).diagonal(), torch.ones(dim, dtype=torch.float64), rtol=2e-4)
    assert torch.allclose(phi_s.denormalise(normalised), as_map(rows), atol=1e-4)
    ratio = torch.pdist(normalised[0, :, :20, 0].T) / torch.pdist(rows[:20])
    assert torch.allclose(ratio, phi_s.alpha.expand_as(ratio), rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(NORMALISERS), seed=st.integers(0, 10_000))
def test_every_normaliser_is_what_its_name_says(name: str, seed: int) -> None:
    rows = sample(12, 12, 1.5, seed)
    before, maps = covariance(as_map(rows)), as_map(rows)
    normaliser = fit_normaliser(name, statistics_of(rows)).double()
    normalised = normaliser.normalise(maps)
    after, eye = covariance(normalised), torch.eye(12, dtype=torch.float64)
    if name.endswith("_whiten"):
        assert torch.allclose(after, eye, atol=2e-3)
    if name == "zca_whiten":
        assert torch.allclose(normaliser.matrix, normaliser.matrix.T, atol=1e-4)
    if name in ("phi_s", "standardise", "hadamard_whiten"):
        assert torch.allclose(after.diagonal(), eye.diagonal(), rtol=1e-3)
    if name == "global":
        assert torch.allclose(after, before / before.diagonal().mean(), rtol=1e-3, atol=1e-6)
    if name == "rotation":
        assert torch.allclose(after.diagonal(), before.diagonal().mean().expand(12), rtol=1e-3)
    if name == "none":
        assert torch.equal(normalised, maps)
    if name == "layer_norm":
        assert torch.allclose(normalised.var(dim=1, correction=0), torch.ones(1, 400, 1, dtype=torch.float64), rtol=0.1)
        assert normalised.mean(dim=1).abs().max() < 1e-6
    else:
        assert torch.allclose(normaliser.denormalise(normalised), maps, atol=1e-3)


@pytest.mark.parametrize("name", ["pca_whiten", "zca_whiten", "hadamard_whiten"])
def test_whitening_of_features_that_span_less_than_their_width(name: str) -> None:
    rows = sample(12, 7, 1.0, 3)
    normaliser = fit_normaliser(name, statistics_of(rows)).double()
    normalised = normaliser.normalise(as_map(rows))
    values = torch.linalg.eigvalsh(covariance(normalised))
    assert torch.allclose(values, torch.tensor([0.0] * 5 + [1.0] * 7, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(normaliser.denormalise(normalised), as_map(rows), atol=1e-3)


def test_impossible_normalisers_are_refused() -> None:
    dead = sample(12, 12, 0.0, 0)
    dead[:, 3] = 5.0
    with pytest.raises(UserError, match="never vary"):
        fit_normaliser("standardise", statistics_of(dead))
    with pytest.raises(UserError, match='did you mean "phi_s"'):
        fit_normaliser("phis", statistics_of(dead))
    with pytest.raises(UserError, match="normaliser"):
        new_normaliser("whiten", 4)


@pytest.mark.parametrize("name", NORMALISERS)
def test_an_adapter_folder_brings_its_normaliser_back(name: str, teacher, tmp_path) -> None:
    images = torch.rand(4, 3, 64, 48)
    with torch.no_grad():
        views = teacher_views(teacher, images, ())
    meta = AdapterMeta(teacher.spec, "test", "bilinear", 2, normaliser=name)
    adapter = Adapter.build(meta, fit_normaliser(name, statistics_of(views.low.movedim(1, -1).flatten(0, 2))))
    torch.nn.init.normal_(adapter.bias.buffer)
    loaded = Adapter.from_pretrained(adapter.save_pretrained(tmp_path / "adapter"), teacher.spec)
    assert type(loaded.normaliser) is type(adapter.normaliser) and loaded.meta.normaliser == name
    assert torch.equal(loaded(views, images), adapter(views, images))
    assert isinstance(loaded.normaliser, LayerNormaliser) == (name == "layer_norm")


def test_descriptions_written_before_there_was_a_choice_mean_phi_s(teacher) -> None:
    description = AdapterMeta(teacher.spec, "test", "bilinear", 2, normaliser="global").to_dict()
    del description["normaliser"]
    assert AdapterMeta.from_dict(description, "x") == AdapterMeta(teacher.spec, "test", "bilinear", 2)
    assert replace(AdapterMeta.from_dict(description, "x"), normaliser="none").normaliser == "none"
