"""Bilinear upsampling followed by a filter that differs at every pixel, without the upsampled map or its unfold.

The straightforward form unfolds 49 shifted copies of a [B, C, H, W] map. But reflection padding and bilinear
interpolation are linear and separable: one matrix U [H + 2r, h] a side. Folding them into the filter makes it act on
the few low-resolution tokens around a pixel, and a block of pixels shares its tokens, so everything that touches C is
one batched matrix product [pixels, tokens] @ [tokens, C].

Shapes: h x w tokens, H x W = f*h x f*w pixels, K = 2r + 1 taps a side; along one side there are N blocks of s pixels,
each reading q tokens. Pixels are padded to N*s, and the padding is cut off at the end.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from featsharp_adapter.model.constants import remembered_constants
from featsharp_adapter.model.exactness import Trial, random_numbers

Interpolation = Literal["bilinear", "bicubic"]

#: Up to this many tokens a side, one block for the whole side is fastest (the operator is then simply dense).
WHOLE_SIDE = 16
#: Pixels in a block on larger grids; its tokens are about BLOCK / f + 4 a side.
BLOCK = 14


class SidePlan(NamedTuple):
    """How one side is cut: `tokens` int64 [N, q] read by each block; `weights` [N*s, K, q] = U, tap by tap."""

    blocks: int
    pixels: int
    tokens: Tensor
    weights: Tensor


def adaptive_upsample(source: Tensor, kernel: Tensor, factor: int, mode: Interpolation = "bilinear") -> Tensor:
    """[B, C, h, w], kernel [B, H, W, K, K] -> [B, C, H, W]: filter the reflection-padded upsampling of the source.

    Memory is a few times the output, whatever K; needs H, W > K // 2.
    """
    batch, channels, height, width = source.shape
    taps = kernel.shape[-1]
    rows = side_plan(height, factor, taps, source.device, source.dtype, mode)
    columns = side_plan(width, factor, taps, source.device, source.dtype, mode)
    # [B, N, s, N', s', q, q'] -> blocks first
    operator = _on_tokens(kernel, rows, columns).unflatten(1, (rows.blocks, rows.pixels))
    operator = operator.unflatten(3, (columns.blocks, columns.pixels)).permute(0, 1, 3, 2, 4, 5, 6)
    operator = operator.flatten(5).flatten(3, 4)  # [B, N, N', s*s', q*q']
    tokens = source.permute(0, 2, 3, 1).index_select(1, rows.tokens.flatten())
    tokens = tokens.index_select(2, columns.tokens.flatten())
    tokens = tokens.unflatten(1, tuple(rows.tokens.shape)).unflatten(3, tuple(columns.tokens.shape))
    tokens = tokens.permute(0, 1, 3, 2, 4, 5).flatten(3, 4)  # [B, N, N', q*q', C]
    out = (operator @ tokens).unflatten(3, (rows.pixels, columns.pixels))
    out = out.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows.blocks * rows.pixels, -1)
    return out[:, :, : height * factor, : width * factor]


def _on_tokens(kernel: Tensor, rows: SidePlan, columns: SidePlan) -> Tensor:
    """Fold U into the kernel, one side after the other: [B, H, W, K, K] -> [B, N*s, N'*s', q, q']."""
    extra_rows = rows.blocks * rows.pixels - kernel.shape[1]
    extra_columns = columns.blocks * columns.pixels - kernel.shape[2]
    kernel = F.pad(kernel, (0, 0, 0, 0, 0, extra_columns, 0, extra_rows))
    half = torch.einsum("byxde,xej->byxdj", kernel, columns.weights)
    return torch.einsum("byxdj,ydi->byxij", half, rows.weights)


@remembered_constants(64)
def side_plan(
    size: int,
    factor: int,
    taps: int,
    device: torch.device,
    dtype: torch.dtype,
    mode: Interpolation = "bilinear",
) -> SidePlan:
    """The plan for a side of `size` tokens. Cached: it depends on nothing else, and a model meets few sizes."""
    matrix = _padded_interpolation(size, factor, taps // 2, mode)
    count = 1 if size <= WHOLE_SIDE else -(-size * factor // BLOCK)
    pixels = -(-size * factor // count)
    taps_of = torch.zeros(count * pixels, taps, size, dtype=torch.float64)
    taps_of[: size * factor] = matrix.unfold(0, taps, 1).transpose(1, 2)  # pixel y reads padded rows y .. y + K - 1
    by_block = taps_of.unflatten(0, (count, pixels))
    touched = by_block.abs().sum(dim=(1, 2)) > 0  # [N, h]
    first = touched.int().argmax(dim=1)
    reach = int((size - touched.flip(1).int().argmax(dim=1) - first).max())
    tokens = first.clamp(max=size - reach)[:, None] + torch.arange(reach)
    weights = by_block.gather(3, tokens[:, None, None, :].expand(-1, pixels, taps, -1)).flatten(0, 1)
    return SidePlan(count, pixels, tokens.to(device), weights.to(device, dtype))


def _padded_interpolation(size: int, factor: int, radius: int, mode: Interpolation) -> Tensor:
    """U [f*size + 2r, size] in float64: interpolation by `factor`, then reflection padding by `radius`."""
    # Each row of the unit matrix is a signal of its own: the other side keeps its size, which leaves it as it is.
    eye = torch.eye(size, dtype=torch.float64)[None, None]
    matrix = F.interpolate(eye, size=(size, factor * size), mode=mode, align_corners=False)[0]
    return F.pad(matrix, (radius, radius), mode="reflect")[0].T.contiguous()


def plain_upsample(source: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """`adaptive_upsample` as it is written down: every neighbourhood of the upsampled map, unfolded."""
    height, width, taps = kernel.shape[1], kernel.shape[2], kernel.shape[3]
    fine = F.interpolate(source, scale_factor=factor, mode="bilinear", align_corners=False)
    patches = F.unfold(F.pad(fine, (taps // 2,) * 4, mode="reflect"), taps)
    patches = patches.view(*source.shape[:2], taps**2, height, width)
    return torch.einsum("bcnyx,byxn->bcyx", patches, kernel.flatten(3))


def _trial_numbers() -> tuple[Tensor, Tensor]:
    return random_numbers(1, 16, 18, 5), random_numbers(1, 36, 10, 49).softmax(dim=-1).unflatten(-1, (7, 7))


def _trial_fast(device: torch.device) -> Tensor:
    source, kernel = _trial_numbers()
    return adaptive_upsample(source.float().to(device), kernel.float().to(device), 2)


TRIAL = Trial("joint bilateral upsampling", _trial_fast, lambda: plain_upsample(*_trial_numbers(), 2))
