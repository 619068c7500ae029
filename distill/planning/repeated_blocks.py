"""A ViT is one block many times: while a frozen one is counted, what is like something counted before is not run again.

Two modules are alike when all their submodules have the same types, the same plain settings (numbers, names, flags) and
the same shapes of weights, and are called with tensors of the same shapes. Blocks that differ in their window, or in
anything else, are counted each for itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from distill.planning.counting import Cost, CostCounter

Key = tuple[Any, ...]
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class TensorShape:
    """Shape, strides, type and place of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorShape":
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)

    def make(self) -> Tensor:
        """A tensor like it."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


class RepeatedBlocks:
    """Makes a frozen network, on fake tensors, count like parts once; its results are right in shape, and no numbers.

    The parts' `forward` is replaced on these modules themselves: the network is good for nothing else afterwards.
    """

    def __init__(self, network: nn.Module) -> None:
        self._known: dict[Key, tuple[Cost, Any]] = {}
        self._counted: CostCounter | None = None
        for module in network.modules():
            if next(module.children(), None) is not None:  # the ones without parts are as quick to run
                module.forward = wraps(module.forward)(partial(self._forward, module.forward, signature(module)))

    def measure(self, function: Callable[[], object]) -> Cost:
        """As `distill.planning.counting.measure`, of a function that calls the network."""
        with CostCounter(meta=True) as self._counted:
            function()
        cost = Cost(float(self._counted.flops), self._counted.peak)
        self._counted = None
        return cost

    def _forward(self, forward: Callable[..., Any], alike: Key, /, *args: Any, **kwargs: Any) -> Any:
        if self._counted is None:
            return forward(*args, **kwargs)
        key = (alike, repr(_shapes((args, kwargs))), torch.is_autocast_enabled("cpu"))
        if key not in self._known:
            cost, out = self._first(self._counted, partial(forward, *args, **kwargs))
            if _is_tensors(out):
                self._known[key] = cost, _shapes(out)
            return out
        cost, out = self._known[key]
        self._counted.flops += int(cost.flops)
        self._counted.peak = max(self._counted.peak, self._counted.current + cost.peak)
        return _made(out)

    def _first(self, counted: CostCounter, forward: Callable[[], Any]) -> tuple[Cost, Any]:
        flops, peak, current = counted.flops, counted.peak, counted.current
        counted.peak = current
        out = forward()
        cost = Cost(float(counted.flops - flops), counted.peak - current)
        counted.peak = max(peak, counted.peak)
        return cost, out


def signature(module: nn.Module) -> Key:
    """What modules that are alike have in common, and others do not."""
    return tuple(_part(name, each) for name, each in module.named_modules())


def _part(name: str, module: nn.Module) -> Key:
    plain = tuple((key, value) for key, value in vars(module).items() if _is_plain(value))
    weights = tuple(
        (key, tuple(tensor.shape), tensor.dtype, tensor.device.type)
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    )
    return name, type(module), plain, weights


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(_is_plain(part) for part in value))


def _is_tensors(out: Any) -> bool:
    """A tensor, or a plain tuple or list of tensors: what can be made again from shapes."""
    return isinstance(out, Tensor) or (type(out) in (tuple, list) and all(isinstance(part, Tensor) for part in out))


def _shapes(given: Any) -> Any:
    """The same with a TensorShape for every tensor in tuples, lists and dicts."""
    if isinstance(given, Tensor):
        return TensorShape.of(given)
    if isinstance(given, (tuple, list)):
        return [type(given).__name__, *(_shapes(part) for part in given)]
    if isinstance(given, dict):
        return {key: _shapes(part) for key, part in given.items()}
    return given


def _made(shapes: Any) -> Any:
    """New tensors of what `_shapes` said about a result."""
    if isinstance(shapes, TensorShape):
        return shapes.make()
    kind, *parts = shapes
    made = [part.make() for part in parts]
    return tuple(made) if kind == "tuple" else made
