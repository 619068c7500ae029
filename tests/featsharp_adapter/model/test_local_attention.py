"""Window attention by blocks against dense attention in float64 with an explicit mask, and the fusion block."""

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.model.fusion import FusionBlock
from featsharp_adapter.model.local_attention import ONE_BLOCK_TOKENS, LocalAttention, alibi_slopes


def slow_attention(attention: LocalAttention, tokens: Tensor) -> Tensor:
    """Every token against every other in float64, one head at a time; distances as text-book ALiBi on a grid."""
    _, height, width, dim = tokens.shape
    size = dim // attention.heads
    flat = tokens.double().flatten(1, 2)
    wide = attention.qkv.weight.shape[0] // 3 // attention.heads
    query, key, value = (flat @ attention.qkv.weight.double().T).chunk(3, dim=-1)
    row = torch.arange(height).repeat_interleave(width)
    column = torch.arange(width).repeat(height)
    down, across = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    outside = (down > attention.radius) | (across > attention.radius)
    heads = []
    for head in range(attention.heads):
        part = slice(head * wide, (head + 1) * wide)
        scores = turned(attention, query[..., part], row, column) @ turned(
            attention, key[..., part], row, column
        ).transpose(1, 2)
        scores = scores / size**0.5
        if attention.position == "alibi":
            scores = scores - 2.0 ** -(head // 2 + 1) * (down if head % 2 == 0 else across)
        found = scores.masked_fill(outside, float("-inf")).softmax(dim=-1) @ value[..., part]
        heads.append(found[..., :size])
    out = torch.cat(heads, dim=-1) @ attention.proj.weight.double().T + attention.proj.bias.double()
    return out.unflatten(1, (height, width))


def turned(attention: LocalAttention, values: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Rotary positions as complex numbers: [B, N, d], a quarter of the channels turned by row, a quarter by column."""
    if attention.position != "rope":
        return values
    half = values.shape[-1] // 2
    speeds = 50_000.0 ** -(torch.arange(half // 2, dtype=torch.float64) / (half // 2))
    angles = torch.cat([row[:, None] * speeds, column[:, None] * speeds], dim=1)
    pairs = torch.complex(values[..., :half], values[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


# One block; bands of rows; a last band of one row; blocks of columns; windows larger and smaller than the grid.
CASES = [(7, 7, 7), (16, 16, 7), (17, 20, 7), (21, 13, 5), (2, 150, 7), (9, 65, 9), (300, 1, 3), (1, 1, 7), (18, 18, 1)]
VARIANTS = [("alibi", None), ("none", None), ("rope", None), ("alibi", 8), ("rope", 8)]


@pytest.mark.parametrize(("position", "head_dim"), VARIANTS)
def test_positions_and_wider_heads_equal_dense_float64(position: str, head_dim: int | None) -> None:
    for height, width in [(6, 9), (19, 17)]:
        equals_dense(LocalAttention(16, heads=4, window=5, position=position, head_dim=head_dim), height, width)


@pytest.mark.parametrize(("height", "width", "window"), CASES)
def test_equals_dense_float64(height: int, width: int, window: int) -> None:
    equals_dense(LocalAttention(16, heads=4, window=window), height, width)


def equals_dense(attention: LocalAttention, height: int, width: int) -> None:
    tokens = torch.randn(2, height, width, 16, requires_grad=True)
    assert torch.allclose(attention(tokens).double(), slow_attention(attention, tokens), atol=2e-6)
    attention.double()
    tokens = tokens.detach().double().requires_grad_()
    fast, slow = attention(tokens), slow_attention(attention, tokens)
    weights = torch.randn_like(fast)
    wanted = [tokens, *attention.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad((fast * weights).sum(), wanted),
        torch.autograd.grad((slow * weights).sum(), wanted),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-9)


def test_the_cases_cover_both_paths() -> None:
    assert {height * width <= ONE_BLOCK_TOKENS for height, width, _ in CASES} == {True, False}


def test_slopes_as_published_for_sixteen_heads() -> None:
    expected = [2.0**-power for power in range(1, 9) for _ in range(2)]
    assert alibi_slopes(16).tolist() == expected


def test_a_token_sees_its_window_and_nothing_else() -> None:
    attention = LocalAttention(8, heads=2, window=5)
    tokens = torch.randn(1, 20, 20, 8, requires_grad=True)
    attention(tokens)[0, 9, 18].sum().backward()
    rows, columns = torch.nonzero(tokens.grad[0].abs().sum(dim=-1), as_tuple=True)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (7, 11, 16, 19)


def test_impossible_heads_and_windows_are_refused() -> None:
    with pytest.raises(UserError, match="heads"):
        LocalAttention(16, heads=3)
    with pytest.raises(UserError, match="odd"):
        LocalAttention(16, heads=4, window=4)
    with pytest.raises(UserError, match="positions"):
        LocalAttention(16, heads=4, position="absolute")
    with pytest.raises(UserError, match="multiple of 4"):
        LocalAttention(12, heads=2, position="rope")
    with pytest.raises(UserError, match="or more"):
        LocalAttention(16, heads=4, head_dim=2)


def test_fusion_starts_as_its_first_map_whatever_the_layer_scale() -> None:
    maps = torch.randn(2, 12, 9, 5)
    block = FusionBlock(12, 4, heads=2, window=3, hidden=8, layer_scale=0.1)
    assert torch.equal(block(maps), maps[:, :4])


def test_fusion_is_the_published_block() -> None:
    block = FusionBlock(12, 4, heads=2, window=3, hidden=8, layer_scale=0.5)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    maps = torch.randn(2, 12, 6, 5)
    x = maps.permute(0, 2, 3, 1)
    x1 = x + block.scale1 * slow_attention(block.attention, block.norm1(x)).float()
    hidden = block.mlp.w12(block.norm2(x1))
    gated = torch.nn.functional.silu(hidden[..., :8]) * hidden[..., 8:]
    expected = x1[..., :4] + block.scale2 * block.mlp.w3(gated)
    assert torch.allclose(block(maps), expected.permute(0, 3, 1, 2), atol=1e-5)


def test_fusion_learns_from_the_first_step_and_everything_from_the_second() -> None:
    block = FusionBlock(8, 4, heads=2, window=3, hidden=8, layer_scale=0.1)
    optimiser = torch.optim.NAdam(block.parameters(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        (block(torch.randn(1, 8, 5, 6)) - 1).square().mean().backward()
        assert block.mlp.w3.weight.grad.abs().max() > 0
        optimiser.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in block.parameters())
