"""What published code trains with beyond the paper: each does what it says, and leaves a plain adapter behind."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_recipes import image_folder, small_recipe, small_teacher_data
from test_training import Interrupted, interrupt_at
from torch import nn

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.conditional_bias import ConditionalBias, disturbance
from featsharp_adapter.model.downsampler import AverageDownsampler, build_downsampler
from featsharp_adapter.model.fusion import FusionBlock
from featsharp_adapter.model.multiview import ViewSettings, consistency_loss, inside_share, random_homographies, warp
from featsharp_adapter.model.spectral import attach_spectral, bake_spectral
from featsharp_adapter.model.uncertainty import UncertaintyNet
from featsharp_adapter.training.train_one import new_trainer, open_samples, train_one
from teachers.contracts import state_digest


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def everything(images: Path):
    return small_recipe(
        images,
        uncertainty=True,
        spectral=True,
        border_weight=2.0,
        losses={"tv": 0.01, "crf": 0.01, "mmd": 0.01},
        views__hflip=0.5,
        downsampler={"name": "place_attention", "kernel": 5},
    )


def test_everything_at_once_resumes_to_the_bit_and_saves_plain_weights(images, tmp_path, monkeypatch) -> None:
    recipe = everything(images)
    straight, _ = train_one(recipe, small_teacher_data(recipe, monkeypatch), folder=tmp_path / "straight")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(5, patch)
        train_one(recipe, small_teacher_data(recipe, monkeypatch), folder=tmp_path / "resumed")
    resumed, _ = train_one(recipe, small_teacher_data(recipe, monkeypatch), folder=tmp_path / "resumed")
    assert state_digest(resumed) == state_digest(straight)
    plain, _ = train_one(small_recipe(images), small_teacher_data(small_recipe(images), monkeypatch))
    assert set(straight.state_dict()) == set(plain.state_dict())
    assert straight.meta.training["uncertainty"] and straight.meta.training["losses"]["tv"] == 0.01


def test_parameter_groups_as_published(images, monkeypatch) -> None:
    recipe = everything(images)
    trainer = new_trainer(recipe, small_teacher_data(recipe, monkeypatch))
    groups = trainer.optimiser.param_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {id(p) for p in trainer.parameters}
    assert [group["peak"] for group in groups] == [1e-3, 1e-2, 1e-5, 1e-4]
    assert [group["weight_decay"] for group in groups] == [0, 0, 0, 0.01]
    assert all(parameter.shape == (1, 1) for parameter in groups[3]["params"]) and len(groups[3]["params"]) == 5


def test_side_losses_are_added_with_their_weights(images, monkeypatch) -> None:
    teacher_data = small_teacher_data(small_recipe(images), monkeypatch)
    found = {}
    for name in ("none", "tv", "crf", "mmd"):
        recipe = small_recipe(images, downsampler={"name": "average"}, losses={} if name == "none" else {name: 3.0})
        trainer = new_trainer(recipe, teacher_data)
        with torch.no_grad():
            found[name] = float(trainer.loss(open_samples(recipe, teacher_data).next(), [0]))
    assert all(found[name] != found["none"] for name in ("tv", "crf", "mmd"))
    assert found["tv"] > found["none"] and found["crf"] > found["none"]


def test_uncertainty_is_a_likelihood() -> None:
    """Constant u: the error counts exp(-u), and u/2 is paid; at u = 0 nothing changes."""
    sharp, target = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    homographies = random_homographies(2, ViewSettings(shift=0.0), torch.Generator().manual_seed(0))
    down = AverageDownsampler(2)
    plain = consistency_loss(sharp, target, homographies, down, None)
    for u in (0.0, 0.7):
        doubt = torch.full((2, 1, 8, 8), u)
        found = consistency_loss(sharp, target, homographies, down, None, doubt)
        assert torch.allclose(found, plain * torch.exp(torch.tensor(-u)) + u / 2, rtol=1e-4)


def test_uncertainty_starts_at_zero_and_sends_no_gradient_back() -> None:
    net, sharp = UncertaintyNet(4), torch.randn(1, 4, 6, 6, requires_grad=True)
    assert not net(sharp).any()
    net(sharp).sum().backward()
    assert sharp.grad is None and net.last.weight.grad.abs().max() > 0


def test_uncertainty_grows_where_the_error_is() -> None:
    net = UncertaintyNet(4)
    sharp, target = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 4, 4)
    sharp[:, :2, :4] = 3.0  # wrong in the upper half only
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        optimiser.zero_grad()
        consistency_loss(sharp, target, torch.eye(3)[None], AverageDownsampler(2), None, net(sharp)).backward()
        optimiser.step()
    u = net(sharp)[0, 0]
    assert u[:3].mean() > 0.2 and u[5:].mean() < 0


def test_spectral_scale_is_the_largest_singular_value_of_each_part() -> None:
    layer = nn.Module()
    layer.qkv, layer.w12, layer.other = nn.Linear(12, 36), nn.Linear(12, 16), nn.Linear(12, 5)
    inputs, before = torch.randn(4, 12), {}
    scales = attach_spectral(layer)
    assert len(scales) == 3 + 2 + 1
    for name, parts in (("qkv", 3), ("w12", 2), ("other", 1)):
        weight = getattr(layer, name).weight
        for piece in weight.chunk(parts):
            assert float(torch.linalg.svdvals(piece.detach())[0]) == pytest.approx(1.0, rel=0.02)
        weight.sum().backward()
    assert all(scale.grad is not None for scale in scales)
    with torch.no_grad():
        scales[0].fill_(2.0)
    layer.eval()
    before = {name: getattr(layer, name)(inputs) for name in ("qkv", "w12", "other")}
    bake_spectral(layer)
    for name, expected in before.items():
        assert torch.allclose(getattr(layer, name)(inputs), expected, atol=1e-6)
        assert set(getattr(layer, name).state_dict()) == {"weight", "bias"}
    assert float(torch.linalg.svdvals(layer.qkv.weight[:12].detach())[0]) == pytest.approx(
        float(F.softplus(torch.tensor(2.0))) + 0.05, rel=0.02
    )


def test_spectral_scales_are_where_their_weights_are() -> None:
    layer = nn.Sequential(nn.Linear(4, 3)).double()
    scales = attach_spectral(layer)
    assert {tensor.dtype for tensor in (*scales, *layer.buffers())} == {torch.float64}
    assert layer(torch.randn(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_a_reparametrised_block_still_starts_as_its_first_map() -> None:
    block = FusionBlock(8, 4, heads=2, window=3, hidden=8, layer_scale=0.1)
    attach_spectral(block)
    maps = torch.randn(1, 8, 5, 6)
    assert torch.equal(block(maps), maps[:, :4])


@pytest.mark.parametrize("name", ["simple", "place_attention"])
@pytest.mark.parametrize(("factor", "kernel"), [(2, 5), (3, 7), (4, 4)])
def test_other_downsamplers_start_near_the_average_and_keep_constants(name: str, factor: int, kernel: int) -> None:
    downsampler = build_downsampler(name, dim=8, factor=factor, kernel=kernel).eval()
    features = torch.randn(2, 8, 5 * factor, 4 * factor)
    average = AverageDownsampler(factor)(features)
    out = downsampler(features)
    assert out.shape == (2, 8, 5, 4) and (out - average).square().mean() < 0.3 * average.square().mean()
    for parameter in downsampler.parameters():
        nn.init.normal_(parameter)
    assert torch.allclose(downsampler(torch.full_like(features, 2.5)), torch.tensor(2.5), atol=1e-5)


def test_place_attention_by_hand() -> None:
    downsampler = build_downsampler("place_attention", dim=3, factor=2, kernel=4).eval()
    for parameter in downsampler.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(1, 3, 8, 8)
    line = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / 2)
    kernel = (torch.outer(line, line) / line.sum() ** 2).expand(3, 1, 5, 5)
    blurred = F.conv2d(F.pad(features, (2,) * 4, mode="replicate"), kernel, groups=3)
    logits = downsampler.salience(blurred)[0, 0, 1:5, 3:7].flatten()  # the 4 x 4 around cell (1, 2)
    weights = (downsampler.scale[:, 0] * logits + downsampler.prior[:, 0]).softmax(dim=0)
    expected = (features[0, :, 1:5, 3:7].flatten(1) * weights).sum(dim=1)
    assert torch.allclose(downsampler(features)[0, :, 1, 2], expected, atol=1e-5)


def test_mirrored_views_are_mirrored_and_seeds_without_them_are_as_before() -> None:
    still = {"zoom": (1.0, 1.0), "perspective": (0.0, 0.0), "rotation": 0.0, "shift": 0.0}
    mirrored = random_homographies(1, ViewSettings(**still, hflip=1.0), torch.Generator().manual_seed(0))
    maps = torch.randn(1, 2, 4, 6)
    assert torch.allclose(warp(maps, mirrored), maps.flip(3), atol=1e-5)
    assert inside_share(mirrored, (4, 6)).eq(1).all()
    first, again = (random_homographies(9, s, torch.Generator().manual_seed(1)) for s in (ViewSettings(),) * 2)
    assert torch.equal(first, again) and (torch.linalg.det(first) > 0).all()
    half = random_homographies(40, ViewSettings(hflip=0.5), torch.Generator().manual_seed(1))
    assert 5 < int((torch.linalg.det(half) < 0).sum()) < 35


@torch.no_grad()
def test_conditional_bias_starts_as_nothing_and_sees_each_pass_for_itself() -> None:
    conditional, features = ConditionalBias(8, 2), torch.randn(2, 8, 8, 6)
    assert not conditional(features, 2).any()
    for parameter in conditional.parameters():
        nn.init.normal_(parameter, std=0.3)
    whole = conditional(features, 2)
    assert torch.allclose(whole[:, :, 4:, :3], conditional(features[:, :, 4:, :3]), atol=1e-5)
    assert not torch.allclose(whole, conditional(features))


def test_disturbance_counts_where_views_agree() -> None:
    added, mask = torch.ones(1, 2, 1, 3), torch.tensor([[[[1.0, 1.0, 0.0]]]])
    seen, expected = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)
    expected[..., 1] = 2.0  # d^2 = 4
    assert float(disturbance(added, seen, expected, mask)) == pytest.approx((1 + 2.718281828**-4) / 2, rel=1e-4)


def test_an_adapter_with_a_conditional_bias_trains_and_comes_back(images, tmp_path, monkeypatch) -> None:
    recipe = small_recipe(images, conditional={"heads": 2, "penalty": 0.5})
    teacher_data = small_teacher_data(recipe, monkeypatch)
    adapter, _ = train_one(recipe, teacher_data)
    assert all(parameter.abs().max() > 0 for parameter in adapter.conditional.parameters())
    sample = teacher_data.store.gather(torch.arange(2))
    with torch.no_grad():
        expected = adapter(sample.views, sample.guidance())
        loaded = Adapter.from_pretrained(adapter.save_pretrained(tmp_path / "adapter"), teacher_data.spec)
        assert torch.equal(loaded(sample.views, sample.guidance()), expected)
    trainer = new_trainer(recipe, teacher_data)
    nn.init.normal_(trainer.adapter.conditional.proj.weight)
    assert float(trainer.penalty(sample, [0, 1]).detach()) > 0
    with pytest.raises(UserError, match="heads"):
        ConditionalBias(8, 3)
