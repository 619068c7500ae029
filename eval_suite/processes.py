"""Several processes probing one backbone: who does what, and how what they found comes together.

`accelerate launch --multi_gpu -m eval_suite run ...` or torchrun starts them. In one process everything here does
nothing, and so it does inside a program that has processes of its own (a distillation judges its student in its first).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import UserError
from common.other_processes import in_words
from eval_suite.metrics.score import Tally

_joined = False
_patient: Any = None  #: for meeting before a probe
PATIENCE = 10.0  #: minutes that a process waits for another in the middle of what they do together
LONG = timedelta(hours=12)  #: the first process may train a probe for long while the others wait for the next one


@contextmanager
def joined_processes(device: str, patience: float = PATIENCE) -> Iterator[str]:
    """Join the processes that a launcher started, and leave them at the end; gives the device of this one.

    patience: minutes after which a process that waits for another ends with a UserError.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    global _joined, _patient
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=patience))
        _patient = dist.new_group(backend="gloo", timeout=LONG)
        _joined = True
        yield str(place)
    except RuntimeError as error:
        raise in_words(error, "Finished probes are kept") or error from error
    finally:
        _joined, _patient = False, None
        if dist.is_initialized():
            dist.destroy_process_group()


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _joined else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def own_rows(count: int) -> range:
    """This process' part of rows 0 .. count - 1: contiguous, so that parts in rank order are the whole in order."""
    return range(rank() * count // world(), (rank() + 1) * count // world())


def split_forward(function: Callable[[Tensor], Sequence[Tensor]], batch: Tensor) -> list[Tensor]:
    """`function` of a batch [B, ...] -> tensors [B, ...], each process computing its part and all having the whole.

    Without gradients: it is for frozen backbones.
    """
    if world() == 1:
        return list(function(batch))
    each = -(-len(batch) // world())
    rows = torch.arange(rank() * each, (rank() + 1) * each).clamp(max=len(batch) - 1)  # the last row may come twice
    out = []
    for part in function(batch[rows.to(batch.device)]):
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, part.contiguous())
        out.append(torch.cat(parts)[: len(batch)])
    return out


def average_gradients(module: nn.Module) -> None:
    """Mean of the gradients over processes; a parameter without one counts as zero."""
    if world() == 1:
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= world()


def same_everywhere(module: nn.Module) -> None:
    """Parameters and buffers of the first process in all: what was trained apart may have drifted by rounding."""
    if world() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, 0)


def gather(*metrics: Tally) -> None:
    """What all processes saw, in each of them, in rank order."""
    if world() > 1:
        for metric in metrics:
            metric.gather()


def all_say(value: Any, *, patient: bool = False) -> list[Any]:
    """What every process says, in rank order. patient: they may be far apart, as before a probe."""
    if world() == 1:
        return [value]
    out: list[Any] = [None] * world()
    dist.all_gather_object(out, value, group=_patient if patient else None)
    return out


def in_turns(make: Callable[[int, Tensor], Mapping[str, Tensor]], items: list[tuple[int, Tensor]]) -> Iterator[Mapping]:
    """`make(*item)` of all items: each process makes every n-th, and they come out of the first process in order.

    A UserError in one process is raised in all.
    """
    for first in range(0, len(items), world()):
        part: Mapping[str, Tensor] = {}
        trouble = None
        if first + rank() < len(items):
            try:
                part = make(*items[first + rank()])
            except UserError as error:
                trouble = str(error)
        if told := [text for text in all_say(trouble) if text is not None]:
            raise UserError(told[0])
        yield from (made for made in to_first(part) if made)


def to_first(part: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    """CPU tensors by name of every process, in rank order, on the first one; the others get nothing."""
    shapes = all_say({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in part.items()})
    if rank():
        for tensor in part.values():
            dist.send(tensor.contiguous(), 0)
        return []
    out: list[Mapping[str, Tensor]] = [part]
    for other in range(1, world()):
        received = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes[other].items()}
        for tensor in received.values():
            dist.recv(tensor, other)
        out.append(received)
    return out
