"""AdamW with every parameter in exactly one group, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from distill.recipe import OptimNode
from teachers.errors import UserError


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and kernels decay; biases, norms, tokens and positions do not. RuntimeError if one is left out."""
    decay, rest = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise RuntimeError(f"{name} takes no gradient and would never be trained")
        token = name.endswith(("pos_embed", "reg_token", "cls_token"))
        (decay if parameter.ndim >= 2 and not token else rest).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if len({id(p) for p in decay + rest}) != len(list(model.parameters())):
        raise RuntimeError("every parameter must be in exactly one group")
    return [group for group in groups if group["params"]]


def build_optimiser(model: nn.Module, node: OptimNode) -> torch.optim.AdamW:
    """AdamW over `model`; the rate is set each step by `learning_rate`."""
    return torch.optim.AdamW(parameter_groups(model, node.weight_decay), lr=node.lr, betas=node.betas)


def learning_rate(step: int, node: OptimNode) -> float:
    """Rate of update number `step` (0, 1, ...): linear warm-up to `lr`, then a cosine to `lr * final_share`.

    A function of the step alone, so a resumed run has no schedule to restore.
    """
    if step < node.warmup_steps:
        return node.lr * (step + 1) / node.warmup_steps
    progress = (step - node.warmup_steps) / max(1, node.steps - node.warmup_steps)
    low = node.lr * node.final_share
    return low + (node.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def local_batch(node: OptimNode, world: int) -> int:
    """Images of one process; UserError when the batch does not divide evenly."""
    if node.batch_size % world:
        raise UserError(f"optim.batch_size {node.batch_size} does not divide over {world} processes")
    return node.batch_size // world
