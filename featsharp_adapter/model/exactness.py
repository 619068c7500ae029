"""A device whose float32 is too coarse for the fast formulations is refused, before it gives wrong features.

The tests hold the fast joint bilateral upsampling and window attention to slow twins, on the CPU. What another device's
libraries do (reduced-precision products, a fused kernel with a fault) no test here sees. So the first use on a device
compares each with a straightforward form in float64: a few milliseconds, once a process.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from common.fresh_thread import in_fresh_thread

#: Largest difference to float64 in shares of the largest value. Float32 has about 1e-6 here, TF32 and bfloat16 1e-3.
TOLERANCE = 1e-4


class Trial(NamedTuple):
    """One formulation on random numbers: `fast` on a device, `plain` as it is written down, float64 on the CPU."""

    name: str
    fast: Callable[[torch.device], Tensor]
    plain: Callable[[], Tensor]


def check_backend(values: Tensor, trial: Trial) -> None:
    """UserError if the device of `values` computes the trial's fast formulation worse than TOLERANCE.

    Of float32 alone: who gives other types has chosen their precision. Nothing is computed on the meta device.
    """
    # A compiled graph has kernels of its own; the eager ones are checked on their first use.
    if torch.compiler.is_compiling():
        return
    if values.dtype == torch.float32 and values.device.type != "meta":
        check_device(values.device, trial)


@lru_cache(maxsize=64)
def check_device(device: torch.device, trial: Trial) -> None:
    """Run the trial once per process and device."""
    # Neither autocast nor whatever counts, records or fakes tensors around the caller is to see this.
    error = in_fresh_thread(partial(relative_error, device, trial))
    if not error <= TOLERANCE:
        raise UserError(
            f"{trial.name} on {device} differs from float64 by {error:.0e} of its largest value (allowed: "
            f"{TOLERANCE:.0e}); have torch compute float32 in full precision "
            '(torch.set_float32_matmul_precision("highest")), or run the adapter on the CPU'
        )


@torch.inference_mode()
def relative_error(device: torch.device, trial: Trial) -> float:
    """Largest difference of the fast formulation on `device` to the plain one, in shares of the largest value."""
    expected = trial.plain()
    return float((trial.fast(device).double().cpu() - expected).abs().max() / expected.abs().max())


def random_numbers(*shape: int) -> Tensor:
    """Float64 on the CPU, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu", dtype=torch.float64)
