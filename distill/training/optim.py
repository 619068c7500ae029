"""The optimiser with every parameter in exactly one group, and the learning rate as a pure function of the step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.lr_schedule import half_cosine
from distill.recipe_training import OptimNode
from distill.student.model import Student
from distill.training.lamb import Lamb


@dataclass(frozen=True)
class Place:
    """What decides the rate of a parameter: how far above the input it is (0: the patches), and whose it is."""

    layer: int
    body: bool


def parameter_groups(
    model: nn.Module, weight_decay: float, place: Callable[[str], Place] | None = None
) -> list[dict[str, Any]]:
    """Matrices and kernels decay; biases, norms, tokens and positions do not. RuntimeError if one is left out.

    With `place`, parameters of different places are in different groups too, and the groups carry it as "place".
    """
    groups: dict[tuple[bool, Place | None], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise RuntimeError(f"{name} takes no gradient and would never be trained")
        token = name.endswith(("pos_embed", "reg_token", "cls_token"))
        rest = parameter.ndim < 2 or token
        groups.setdefault((rest, place(name) if place else None), []).append(parameter)
    if sum(len(members) for members in groups.values()) != len(list(model.parameters())):
        raise RuntimeError("every parameter must be in exactly one group")
    ordered = sorted(groups.items(), key=lambda entry: entry[0][0])  # decaying ones first
    return [
        {"params": members, "weight_decay": 0.0 if rest else weight_decay} | ({"place": where} if where else {})
        for (rest, where), members in ordered
    ]


def place_in(depth: int) -> Callable[[str], Place]:
    """Places in a `Student` of this many blocks: patches and tokens 0, block i at i + 1, norm and heads on top."""

    def place(name: str) -> Place:
        if not name.startswith("vit."):
            return Place(depth + 1, body=False)
        if name.startswith("vit.blocks."):
            return Place(int(name.split(".")[2]) + 1, body=True)
        return Place(depth + 1 if name.startswith("vit.norm") else 0, body=True)

    return place


def build_optimiser(model: Student, node: OptimNode, *, freezes: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimiser over `model`; the rates are set each step by `learning_rate` and `rate_shares`.

    freezes: whether a stage freezes the body, if `node` itself does not.
    """
    graded = node.layer_decay < 1 or node.freeze_body_steps > 0 or freezes
    groups = parameter_groups(model, node.weight_decay, place_in(len(model.vit.blocks)) if graded else None)
    if node.name == "lamb":
        return Lamb(groups, lr=node.lr, betas=node.betas)
    return torch.optim.AdamW(groups, lr=node.lr, betas=node.betas)


def rate_shares(step: int, node: OptimNode, places: Sequence[Place | None]) -> list[float]:
    """Share of the rate that each group gets at update `step`: layer decay, and 0 for a body that is still frozen.

    Without a rate neither the gradient nor weight decay moves a weight; the moments already gather.
    """
    top = max((place.layer for place in places if place), default=0)
    return [
        1.0
        if place is None
        else 0.0
        if place.body and step < node.freeze_body_steps
        else node.layer_decay ** (top - place.layer)
        for place in places
    ]


def learning_rate(step: int, node: OptimNode) -> float:
    """Rate of update number `step` (0, 1, ...): linear warm-up to `lr`, then a cosine to `lr * final_share`."""
    if step < node.warmup_steps:
        return node.lr * (step + 1) / node.warmup_steps
    low = node.lr * node.final_share
    return low + (node.lr - low) * half_cosine(step, node.warmup_steps, node.steps)


def local_batch(node: OptimNode, world: int) -> int:
    """Images of one process; UserError when the batch does not divide evenly."""
    if node.batch_size % world:
        raise UserError(f"optim.batch_size {node.batch_size} does not divide over {world} processes")
    return node.batch_size // world
