"""Frozen teachers of which every process holds a share: ZeRO-3 without an optimiser (arXiv 1910.02054).

A block's weights are gathered when its turn comes and let go of after it. What lies outside of blocks (patches, tokens,
positions, norms) is gathered for the whole pass, because towers reach it in ways that DeepSpeed does not see.
"""

from collections.abc import Iterable

import torch.distributed as dist
from torch import nn

from common.errors import UserError
from distill.schedule import Stage
from distill.training.engine import no_compiler
from teachers.frozen import FrozenBackbone

CONFIG = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "steps_per_print": 10**9}


def shard(teachers: Iterable[FrozenBackbone], stages: Iterable[Stage]) -> None:
    """Leave each process its share of these teachers' weights, in place; a single process keeps all.

    UserError where processes show their teachers different things: all must gather the same weights together.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    for stage in stages:
        if stage.by_ranks:
            raise UserError(
                f"engine.teachers: zero3 needs every process at every teacher, and stage {stage.name} splits its "
                "partitions by ranks; use split: step or engine.teachers: replicated"
            )
    for teacher in teachers:
        shard_one(teacher.backbone)


def shard_one(backbone: nn.Module) -> None:
    """Partition one frozen module; its forward, and its blocks', gather what they need."""
    import deepspeed

    no_compiler()
    inside = {id(parameter) for block in blocks(backbone) for parameter in block.parameters()}
    deepspeed.initialize(model=backbone, config=CONFIG)
    for parameter in backbone.parameters():
        if id(parameter) not in inside:
            deepspeed.zero.register_external_parameter(backbone, parameter)


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The members of its lists of modules, which are its layers in every library we load from."""
    lists = (part for part in backbone.modules() if isinstance(part, nn.ModuleList | nn.Sequential))
    return [member for part in lists for member in part]
