"""A ViT is one block many times: while a frozen one is counted, what is like something counted before is not run again.

Two modules are alike when all their submodules have the same types, the same plain settings (numbers, names, flags) and
the same shapes of weights, and are called with tensors of the same shapes. Blocks that differ in their window, or in
anything else, are counted each for itself.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from distill.planning.counting import Cost, CostCounter

Key = tuple[Any, ...]
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


class RepeatedBlocks:
    """`with repeats.skipped(): ...` in eval mode without gradients; results are right in shape, and are no numbers."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[Cost, Any]] = {}
        self._alike: dict[int, tuple[nn.Module, Key | None]] = {}  # the module too, for an id may come again
        self.counted: CostCounter | None = None  #: the mode that takes part in it, if any does

    def skipped(self) -> Any:
        """The context manager."""
        call = nn.Module.__call__
        return patch.object(nn.Module, "__call__", lambda module, *a, **k: self._call(call, module, a, k))

    def measure(self, function: Callable[[], object]) -> Cost:
        """As `distill.planning.counting.measure`."""
        with CostCounter(meta=True) as self.counted, self.skipped():
            function()
        cost = Cost(float(self.counted.flops), self.counted.peak)
        self.counted = None
        return cost

    def _call(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        alike = self._signature(module)
        if alike is None:
            return call(module, *args, **kwargs)
        key = (alike, _shapes((args, kwargs)), torch.is_autocast_enabled("cpu"), self.counted is None)
        if key not in self._known:
            cost, out = self._first(call, module, args, kwargs)
            self._known[key] = cost, tree_map_only(Tensor, _described, out)
            return out
        cost, out = self._known[key]
        if self.counted is not None:
            self.counted.flops += int(cost.flops)
            self.counted.peak = max(self.counted.peak, self.counted.current + cost.peak)
        return tree_map_only(_Described, _Described.make, out)

    def _first(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> tuple[Cost, Any]:
        if self.counted is None:
            return Cost(0.0, 0), call(module, *args, **kwargs)
        flops, peak, current = self.counted.flops, self.counted.peak, self.counted.current
        self.counted.peak = current
        out = call(module, *args, **kwargs)
        cost = Cost(float(self.counted.flops - flops), self.counted.peak - current)
        self.counted.peak = max(peak, self.counted.peak)
        return cost, out

    def _signature(self, module: nn.Module) -> Key | None:
        """What makes modules alike; None for the ones without parts, which are as quick to run."""
        if id(module) not in self._alike:
            parts = signature(module) if module._modules else None
            self._alike[id(module)] = module, parts
        return self._alike[id(module)][1]


def signature(module: nn.Module) -> Key:
    """What modules that are alike have in common, and others do not."""
    return tuple(_part(name, each) for name, each in module.named_modules())


def _part(name: str, module: nn.Module) -> Key:
    plain = tuple((key, value) for key, value in vars(module).items() if _is_plain(value))
    weights = tuple(
        (key, tuple(tensor.shape), tensor.dtype, tensor.device.type)
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    )
    return name, type(module), plain, weights


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(_is_plain(part) for part in value))


class _Described:
    """Shape, strides, type and place of a result."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = (tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)

    def make(self) -> Tensor:
        """A tensor like it."""
        shape, strides, dtype, device = self.tensor
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def _described(tensor: Tensor) -> _Described:
    return _Described(tensor)


def _shapes(given: Any) -> Key:
    leaves, structure = tree_flatten(given)
    return str(structure), tuple(
        (tuple(leaf.shape), tuple(leaf.stride()), leaf.dtype, leaf.device.type)
        if isinstance(leaf, Tensor)
        else repr(leaf)
        for leaf in leaves
    )
