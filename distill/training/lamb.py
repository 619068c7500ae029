"""LAMB (arXiv 1904.00962), exact also where an engine cut the weights up.

Its step is not separable over elements: a parameter's step is scaled to the norm of the whole parameter. DeepSpeed's
ZeRO gives an optimiser one flat tensor per group, a share of the group's parameters laid end to end, and an optimiser
that takes norms of what it is given computes something else there. Here a flat tensor comes with its `Layout`: norms
are taken piece by piece and summed over the processes before their root is drawn (`distill.training.zero_layout`).

The arithmetic is that of NVLAMB as in timm's `Lamb`, which the tests compare with: gradients averaged, moments
bias-corrected, weight decay inside the step, and no scaling for parameters without weight decay.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

#: Tensors whose temporaries exist at the same time: enough to keep a GPU busy, few enough not to double the weights.
TOGETHER = 16


@dataclass(frozen=True)
class Piece:
    """Where a flat tensor holds elements of parameter number `parameter`."""

    parameter: int
    start: int
    length: int


@dataclass(frozen=True)
class Layout:
    """Which parameters a flat tensor holds shares of; what no piece covers is padding and stays as it is."""

    parameters: int  #: that the flat tensors of all processes together hold
    pieces: tuple[Piece, ...]  #: of this process
    processes: Any = None  #: the process group that holds the other shares; None: all of them


class Lamb(torch.optim.Optimizer):
    """LAMB without clipping: the loop clips the whole gradient. Groups may differ in lr and weight_decay."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})
        self._layouts: dict[int, Layout] | None = None  #: by the flat tensor's id; None: parameters are whole

    def lay_out(self, layouts: Sequence[tuple[Tensor, Layout]]) -> None:
        """Say what the flat tensors hold that an engine put in the place of the parameters."""
        self._layouts = {id(flat): layout for flat, layout in layouts}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # takes no closure, so returns no loss
        """One update. Where tensors are laid out, all processes that hold shares of them must call it alike."""
        if closure is not None:
            raise RuntimeError("LAMB takes no closure")
        for group in self.param_groups:
            found = [tensor for tensor in group["params"] if tensor.grad is not None]
            for some in (found[at : at + TOGETHER] for at in range(0, len(found), TOGETHER)):
                self._update(some, group)

    def _update(self, tensors: list[Tensor], group: Mapping[str, Any]) -> None:
        steps = self._adam_steps(tensors, group)
        if group["weight_decay"]:
            torch._foreach_add_(steps, tensors, alpha=group["weight_decay"])
            for tensor, step in zip(tensors, steps, strict=True):
                if self._layouts is None:
                    step.mul_(trust_ratio(tensor.norm(), step.norm()))
                else:
                    scale_pieces(tensor, step, self._layouts[id(tensor)])
        torch._foreach_add_(tensors, steps, alpha=-group["lr"])

    def _adam_steps(self, tensors: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
        """Bias-corrected first moments over the roots of the second, whose new values are kept; separable."""
        beta1, beta2 = group["betas"]
        states = [self._state(tensor) for tensor in tensors]
        firsts, seconds = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        counts = [state["step"] for state in states]
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        torch._foreach_add_(counts, 1)
        torch._foreach_lerp_(firsts, gradients, 1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gradients, gradients, value=1 - beta2)
        passed = [int(count) for count in counts]  # on the CPU, so nothing waits for the device
        roots = torch._foreach_sqrt(seconds)
        torch._foreach_div_(roots, [(1 - beta2**n) ** 0.5 for n in passed])
        torch._foreach_add_(roots, group["eps"])
        steps = torch._foreach_div(firsts, [1 - beta1**n for n in passed])
        torch._foreach_div_(steps, roots)
        return list(steps)

    def _state(self, tensor: Tensor) -> dict[str, Tensor]:
        """The tensor's moments, and its own count: an engine may call `step` several times in an update."""
        state = self.state[tensor]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(tensor), torch.zeros_like(tensor)
        return state


def trust_ratio(weight: Tensor, step: Tensor) -> Tensor:
    """How much a step is scaled: to the norm of its weight (algorithm 2, phi = identity); 1 where either norm is 0."""
    return torch.where((weight > 0) & (step > 0), weight / step, 1.0)


def scale_pieces(flat: Tensor, step: Tensor, layout: Layout) -> None:
    """Scale every parameter's piece of `step`, in place, by the ratio of the whole parameter; waits for the others."""
    indices = torch.tensor([piece.parameter for piece in layout.pieces], dtype=torch.long, device=flat.device)
    squares = torch.zeros(2, layout.parameters, dtype=torch.float64, device=flat.device)
    if layout.pieces:
        for row, whole in enumerate((flat, step)):
            norms = torch.stack(torch._foreach_norm(list(_cut(whole, layout))))
            squares[row].index_add_(0, indices, norms.double() ** 2)
    if dist.is_initialized() and dist.get_world_size(layout.processes) > 1:
        dist.all_reduce(squares, group=layout.processes)
    weight, update = squares.sqrt()
    ratios = trust_ratio(weight, update).to(step.dtype)[indices]
    for part, ratio in zip(_cut(step, layout), ratios.unbind(), strict=True):
        part.mul_(ratio)


def _cut(flat: Tensor, layout: Layout) -> Iterator[Tensor]:
    return (flat.narrow(0, piece.start, piece.length) for piece in layout.pieces)
