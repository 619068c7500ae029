"""Operations and bytes of a call, on real tensors or on fake ones: those have shapes and no numbers.

Operations are matrix products, convolutions and attention by the formulas of torch.utils.flop_counter; bytes are those
of live tensors. One mode does both, for each mode on the way of an operation costs more than the operation does here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from featsharp_adapter.sharpening.peak_memory import PeakMemory

M = TypeVar("M", bound=nn.Module)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_rest: Any, **_named: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_rest: Any, **_named: Any) -> int:
    """Twice the way there: a gradient for each factor of its two products.

    torch counts the fused kernels' 2.5 times, for they compute the map again, which plain attention does not. What is
    computed a second time to save memory is no FLOP of the model (PaLM, arXiv 2204.02311, appendix B), and the same
    network must not cost more where another kernel is taken.
    """
    return 2 * _attention(query, key, value)


def _whole_attention(query: Tensor, key: Tensor, value: Tensor, width: int, *_rest: Any, **_named: Any) -> int:
    """`nn.MultiheadAttention` [B, L, D] in one kernel, unknown to torch's counter: projections and products."""
    batch, length, _ = query.shape
    return int(2 * batch * length * (4 * width**2 + 2 * key.shape[1] * width))


#: Names that torch gives kernels which its counter does not know, or counts in another way.
KERNELS: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "_scaled_dot_product_flash_attention_backward": _attention_backward,
    "_scaled_dot_product_efficient_attention_backward": _attention_backward,
    "_scaled_dot_product_cudnn_attention_backward": _attention_backward,
    "_native_multi_head_attention": _whole_attention,
}
#: By operation; a kernel that this torch does not have is not called either.
FORMULAS: dict[Any, Callable[..., int]] = dict(flop_registry) | {
    getattr(torch.ops.aten, name): formula for name, formula in KERNELS.items() if hasattr(torch.ops.aten, name)
}


@dataclass(frozen=True)
class Cost:
    """flops: of a call. peak: bytes of tensors it made that lived at one time, results included."""

    flops: float
    peak: int


class CostCounter(PeakMemory):
    """`with CostCounter() as counted: ...` -> counted.flops beside counted.peak."""

    def __init__(self, *, meta: bool = False) -> None:
        super().__init__(meta=meta)
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":  # questions of which device and layout, of which there are more than of operations
            return func(*args, **(kwargs or {}))
        out = super().__torch_dispatch__(func, types, args, kwargs)
        formula = FORMULAS.get(func._overloadpacket)
        # A plan that is made while something real is counted computes nothing.
        if formula is not None and (args[0].untyped_storage().device.type == "meta") == self.meta:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def measure(function: Callable[[], object]) -> Cost:
    """Of one call inside `FakeTensorMode`, whose tensors lie on the meta device: nothing is computed."""
    with CostCounter(meta=True) as counted:
        function()
    return Cost(float(counted.flops), counted.peak)


class SkipInit(TorchFunctionMode):
    """Leaves tensors on the meta device as they are instead of "filling" them: half of what building a model costs."""

    _FILLS = frozenset(
        getattr(Tensor, name)
        for name in ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "zero_", "fill_", "copy_")
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def as_fake(module: M) -> M:
    """The module with fake parameters and buffers on the CPU; call it inside `FakeTensorMode`."""
    return module.to_empty(device="cpu")


def parameter_bytes(module: nn.Module) -> int:
    """Parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
