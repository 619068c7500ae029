"""Properties of the fast formulations over shapes nobody chose, and what happens on a device that is not exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_jbu import slow_level
from test_local_attention import slow_attention
from torch import Tensor, nn

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.model import adaptive_upsample, exactness, local_attention
from featsharp_adapter.model.adaptive_upsample import side_plan
from featsharp_adapter.model.bias import BiasBuffer
from featsharp_adapter.model.jbu import JBULevel
from featsharp_adapter.model.local_attention import POSITIONS, LocalAttention, block_bias, rope_angles
from featsharp_adapter.model.phi_s import PhiS
from featsharp_adapter.model.views import stitch, tile_images
from featsharp_adapter.sharpening.backbone import SharpenedBackbone
from featsharp_adapter.upsamplers.table import build_upsampler

PROPERTY = settings(max_examples=15, deadline=None)


@PROPERTY
@given(st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 3, 5, 7, 9]), st.sampled_from(POSITIONS))
@torch.no_grad()
def test_window_attention_is_dense_attention_in_float64(height: int, width: int, window: int, position: str) -> None:
    attention = LocalAttention(16, heads=4, window=window, position=position)
    tokens = torch.randn(1, height, width, 16)
    assert torch.allclose(attention(tokens).double(), slow_attention(attention, tokens), atol=2e-6)


@PROPERTY
@given(st.integers(4, 21), st.integers(4, 21), st.sampled_from([2, 3, 5, 7]))
@torch.no_grad()
def test_joint_bilateral_upsampling_is_its_definition(height: int, width: int, factor: int) -> None:
    level = JBULevel(factor).double()
    source = torch.randn(1, 3, height, width, dtype=torch.float64)
    guidance = torch.rand(1, 3, factor * height, factor * width, dtype=torch.float64)
    assert torch.allclose(level(source, guidance), slow_level(level, source, guidance), atol=1e-8)


@PROPERTY
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.booleans())
@torch.no_grad()
def test_the_bias_of_a_stitched_map_is_that_of_its_tiles(n: int, height: int, width: int, own: bool) -> None:
    bias = BiasBuffer(3, (height, width) if own else (4, 3))
    nn.init.normal_(bias.buffer)
    maps = torch.randn(2, 3, n * height, n * width)
    assert torch.allclose(bias(maps, n), stitch(bias(tile_images(maps, n)), n), atol=1e-6)
    added = bias(torch.zeros_like(maps), n)
    assert torch.allclose(bias(maps, n) - maps, added, atol=1e-6)  # whatever the features are


@PROPERTY
@given(st.integers(4, 9), st.integers(4, 9), st.integers(2, 4), st.sampled_from(["jbu", "bilinear", "tiles"]))
@torch.no_grad()
def test_before_training_the_first_input_comes_out(height: int, width: int, factor: int, first: str) -> None:
    inputs = [first, "tiles" if first != "tiles" else "jbu"]
    upsampler = build_upsampler("featsharp", dim=4, factor=factor, grid=(height, width), heads=2, inputs=inputs)
    low, guidance = torch.randn(1, 4, height, width), torch.rand(1, 3, 61, 43)
    tiles = {factor: torch.randn(1, 4, factor * height, factor * width)}
    expected = {
        "jbu": lambda: build_from(upsampler, low, guidance),
        "bilinear": lambda: build_upsampler("bilinear", dim=4, factor=factor, grid=(4, 4))(low, {}, guidance),
        "tiles": lambda: tiles[factor],
    }[first]()
    assert torch.allclose(upsampler(low, tiles, guidance), expected, atol=1e-6)


def build_from(upsampler: nn.Module, low: Tensor, guidance: Tensor) -> Tensor:
    return upsampler.levels[0].jbu(low, guidance)


@torch.no_grad()
def test_this_device_is_exact_and_the_plain_forms_are_the_fast_ones() -> None:
    exactness.check_device.cache_clear()
    trials = (adaptive_upsample.TRIAL, local_attention.TRIAL)
    for trial in (*trials, *trials):
        exactness.check_backend(torch.zeros(1), trial)
        assert torch.allclose(trial.fast(torch.device("cpu")).double(), trial.plain(), atol=1e-5)
    assert exactness.check_device.cache_info().currsize == 2


def test_a_backend_that_is_too_coarse_refuses_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 products stand for whatever a device may do to float32."""
    exact = local_attention.windowed_attention

    def coarse(query: Tensor, key: Tensor, value: Tensor, *rest: int, **how: float) -> Tensor:
        return exact(query.bfloat16(), key.bfloat16(), value.bfloat16(), *rest, **how).float()

    monkeypatch.setattr(local_attention, "windowed_attention", coarse)
    exactness.check_device.cache_clear()
    upsampler = build_upsampler("featsharp", dim=8, factor=2, grid=(4, 5), heads=2)
    given = torch.randn(1, 8, 4, 5), {2: torch.randn(1, 8, 8, 10)}, torch.rand(1, 3, 32, 40)
    try:
        with pytest.raises(UserError, match=r"window attention on cpu differs from float64 by .* \(allowed: 1e-04\)"):
            upsampler(*given)
    finally:
        exactness.check_device.cache_clear()
    monkeypatch.undo()
    upsampler(*given)


@pytest.mark.parametrize("options", [{}, {"position": "rope"}])
def test_constants_made_in_inference_mode_can_be_trained_with(options: dict[str, str]) -> None:
    for cached in (side_plan, block_bias, rope_angles):
        cached.cache_clear()
    upsampler = build_upsampler("featsharp", dim=8, factor=2, grid=(5, 4), heads=2, **options)
    given = torch.randn(1, 8, 5, 4), {2: torch.randn(1, 8, 10, 8)}, torch.rand(1, 3, 40, 32)
    with torch.inference_mode():
        upsampler(*given)
    upsampler(*given).square().sum().backward()


class Network(nn.Module):
    """Somebody's: features of their own at two scales, sharpened inside, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.colours = nn.Conv2d(3, 3, 1)
        self.sharpen = build_upsampler("featsharp", dim=8, factor=2, grid=(4, 5), heads=2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, 64, 80] -> [B, 2, 8, 10]."""
        low = self.stem(nn.functional.avg_pool2d(images, 2))
        tiles = {2: self.stem(images)}
        return self.head(self.sharpen(low, tiles, self.colours(images).sigmoid()))


def test_an_upsampler_is_a_layer_of_somebodys_network() -> None:
    network, images = Network(), torch.rand(2, 3, 64, 80)
    wanted = torch.stack([images[:, 0], images[:, 1]], dim=1)
    wanted = nn.functional.avg_pool2d(wanted, 8)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for step in range(15):
        loss = (network(images) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        if step == 1:  # at the very first, what is behind the zeros of an untrained block waits
            assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_a_teacher_that_is_not_frozen_learns_through_its_adapter(teacher) -> None:
    meta = AdapterMeta(teacher.spec, "test", "featsharp", 2, options={"heads": 2})
    sharp = SharpenedBackbone(teacher, Adapter.build(meta, PhiS(8)), "layer")
    images = torch.rand(2, 3, 64, 48, requires_grad=True)
    sharp(images).spatial.square().mean().backward()
    assert images.grad.abs().max() > 0
    assert teacher.patches.weight.grad.abs().max() > 0 and teacher.position.grad.abs().max() > 0
