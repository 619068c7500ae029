"""What DeepSpeed's flat tensors hold, for an optimiser that needs whole parameters; and who may run without knowing."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from distill.training.lamb import Lamb, Layout, Piece

#: Optimisers that treat every element alike and alone: how tensors are cut up is nothing to them.
SEPARABLE = (torch.optim.AdamW,)


def fit_to_zero(zero: Any, optimiser: torch.optim.Optimizer) -> None:
    """Make an optimiser exact on the flat tensors of `zero`, the ZeRO optimiser that DeepSpeed put around it.

    UserError where this cannot be done: an optimiser that takes norms of whole parameters would compute another thing.
    """
    if zero is optimiser or type(optimiser) in SEPARABLE:  # stage 0 puts nothing around it
        return
    if type(optimiser) is not Lamb:
        raise UserError(f"{type(optimiser).__name__} is not known to be exact under ZeRO; set engine.deepspeed: off")
    try:
        layouts = list(_of_stage_3(zero) if hasattr(zero, "fp32_partitioned_groups_flat") else _of_stage_1_and_2(zero))
    except AttributeError as error:
        raise UserError(
            f"this DeepSpeed does not say where its flat tensors hold which parameter ({error}), and LAMB without that "
            "is another optimiser; install the version of constraints.txt, or set engine.deepspeed: off"
        ) from error
    for flat, layout in layouts:
        _refuse_overlap(flat, layout)
    optimiser.lay_out(layouts)


def _of_stage_1_and_2(zero: Any) -> Iterator[tuple[Tensor, Layout]]:
    """A group's parameters lie end to end, each process has an equal share of the whole."""
    for number, parameters in enumerate(zero.bit16_groups):
        held = [(index, parameter._hp_mapping) for index, parameter in enumerate(parameters)]
        addresses = [(index, mapping.hp_fragment_address) for index, mapping in held if mapping is not None]
        pieces = tuple(Piece(index, address.start, address.numel) for index, address in addresses)
        processes = zero.real_dp_process_group[number]
        yield zero.single_partition_of_fp32_groups[number], Layout(len(parameters), pieces, processes)


def _of_stage_3(zero: Any) -> Iterator[tuple[Tensor, Layout]]:
    """Each parameter is cut in equal shares, the last ones padded; a process's shares lie end to end."""
    for number, parameters in enumerate(zero.fp16_groups):
        processes = zero.sub_group_process_groups[number]
        rank, pieces, start = torch.distributed.get_rank(processes), [], 0
        for index, parameter in enumerate(parameters):
            share = parameter.partition_numel()
            length = min(share, parameter.ds_numel - rank * share)
            if length > 0:
                pieces.append(Piece(index, start, length))
            start += share
        flat = zero.fp32_partitioned_groups_flat[number]
        if start != flat.numel():
            raise AttributeError(f"a flat tensor of {flat.numel()} elements for shares of {start}")
        yield flat, Layout(len(parameters), tuple(pieces), processes)


def _refuse_overlap(flat: Tensor, layout: Layout) -> None:
    """RuntimeError unless the pieces lie one after another within the tensor."""
    end = 0
    for piece in sorted(layout.pieces, key=lambda piece: piece.start):
        if piece.start < end or piece.start + piece.length > flat.numel():
            raise RuntimeError("pieces of a flat tensor overlap: DeepSpeed lays parameters out in another way")
        end = piece.start + piece.length
