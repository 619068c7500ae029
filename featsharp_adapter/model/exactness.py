"""A device whose float32 is too coarse for the fast formulations is refused, before it gives wrong features.

The tests hold the fast joint bilateral upsampling and window attention to slow twins, on the CPU. What another device's
libraries do (reduced-precision products, a fused kernel with a fault) no test here sees. So the first use on a device
compares both with a straightforward form in float64: a few milliseconds, once a process.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from common.errors import UserError

#: Largest difference to float64 in shares of the largest value. Float32 has about 1e-6 here, TF32 and bfloat16 1e-3.
TOLERANCE = 1e-4


def check_backend(values: Tensor) -> None:
    """UserError if the device of `values` computes the fast formulations worse than TOLERANCE.

    Of float32 alone: who gives other types has chosen their precision. Nothing is computed on the meta device.
    """
    if values.dtype == torch.float32 and values.device.type != "meta":
        _check_device(values.device)


@lru_cache(maxsize=64)
def _check_device(device: torch.device) -> None:
    # Neither autocast nor whatever counts, records or fakes tensors around the caller is to see this.
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), _disable_current_modes():
        for name, (fast, slow) in _trials().items():
            expected = slow()
            error = float((fast(device).double().cpu() - expected).abs().max() / expected.abs().max())
            if not error <= TOLERANCE:
                raise UserError(
                    f"{name} on {device} differs from float64 by {error:.0e} of its largest value (allowed: "
                    f"{TOLERANCE:.0e}); have torch compute float32 in full precision "
                    '(torch.set_float32_matmul_precision("highest")), or run the adapter on the CPU'
                )


def _trials() -> dict[str, tuple[Callable[[torch.device], Tensor], Callable[[], Tensor]]]:
    """Of each formulation: the fast one on a device, and the plain one in float64 on the CPU, of the same numbers."""
    from featsharp_adapter.model import adaptive_upsample, local_attention  # both ask for this check

    generator = torch.Generator(device="cpu").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float64)

    source, kernel = draw(1, 16, 18, 5), draw(1, 36, 10, 49).softmax(dim=-1).unflatten(-1, (7, 7))
    query, key, value = draw(3, 1, 2, 17, 20, 8)

    def upsampled(device: torch.device) -> Tensor:
        return adaptive_upsample.adaptive_upsample(source.float().to(device), kernel.float().to(device), 2)

    def attended(device: torch.device) -> Tensor:
        parts = (part.float().to(device) for part in (query, key, value))
        return local_attention.windowed_attention(*parts, 3, alibi_heads=2, scale=1.0)

    return {
        "joint bilateral upsampling": (upsampled, lambda: plain_upsample(source, kernel, 2)),
        "window attention": (attended, lambda: plain_attention(query, key, value, 3)),
    }


def plain_upsample(source: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """`adaptive_upsample` as it is written down: every neighbourhood of the upsampled map, unfolded."""
    height, width, taps = kernel.shape[1], kernel.shape[2], kernel.shape[3]
    fine = F.interpolate(source, scale_factor=factor, mode="bilinear", align_corners=False)
    patches = F.unfold(F.pad(fine, (taps // 2,) * 4, mode="reflect"), taps)
    patches = patches.view(*source.shape[:2], taps**2, height, width)
    return torch.einsum("bcnyx,byxn->bcyx", patches, kernel.flatten(3))


def plain_attention(query: Tensor, key: Tensor, value: Tensor, radius: int) -> Tensor:
    """`windowed_attention` with ALiBi distances and scale 1, of every token to every other."""
    heads, height, width = query.shape[1:4]
    row = torch.arange(height, device="cpu").repeat_interleave(width)
    column = torch.arange(width, device="cpu").repeat(height)
    down, across = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    distance = torch.stack([2.0 ** -(head // 2 + 1) * (across if head % 2 else down) for head in range(heads)])
    query, key, value = (part.flatten(2, 3) for part in (query, key, value))
    scores = (query @ key.transpose(-1, -2) - distance).masked_fill((down > radius) | (across > radius), float("-inf"))
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).unflatten(1, (height, width))
