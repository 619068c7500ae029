"""Losses between student and teacher. All are means over the batch, so equal shares on several processes average."""

import functools
import inspect
from typing import cast

import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.plugins import is_plugin, load_plugin
from distill.losses.teacher_dropping import Loss
from distill.recipe_training import LOSSES, LossNode
from distill.targets.dispersion import angles

#: AM-RADIO (arXiv 2312.06709): spatial loss = 0.9 cosine + 0.1 smooth L1; the beta of the original is not published.
COSINE_SHARE = 0.9


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos, summary [B, S] against [B, S] -> scalar."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=1)).mean()


def angular(student: Tensor, teacher: Tensor, dispersion: float) -> Tensor:
    """angle^2 / Disp, [B, S] against [B, S] -> scalar (C-RADIOv4, arXiv 2601.17237).

    Divided by how much the teacher's own summaries spread (targets/dispersion.py), a loss of 1 means the same for all:
    predicting the teacher's mean direction.
    """
    return angles(student.float(), teacher.float()).square().mean() / dispersion


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of [B, C, h, w] over everything; in PHI-S space predicting the mean costs 1 (2410.01680)."""
    return F.mse_loss(student.float(), teacher.float())


def hybrid(student: Tensor, teacher: Tensor, cosine_share: float = COSINE_SHARE, beta: float = 1.0) -> Tensor:
    """share (1 - cos per position) + (1 - share) smooth L1, [B, C, h, w] -> scalar."""
    angle = (1 - F.cosine_similarity(student.float(), teacher.float(), dim=1)).mean()
    return cosine_share * angle + (1 - cosine_share) * F.smooth_l1_loss(student.float(), teacher.float(), beta=beta)


def hybrid_map(student: Tensor, teacher: Tensor, cosine_share: float = COSINE_SHARE, beta: float = 1.0) -> Tensor:
    """As `hybrid`, but one cosine over an image's whole flattened map (Theia, arXiv 2407.20179)."""
    return hybrid(student.flatten(1), teacher.flatten(1), cosine_share, beta)


def mse_positions(student: Tensor, teacher: Tensor) -> Tensor:
    """`mse` at every position: [B, C, h, w] -> [B, h, w]."""
    return (student.float() - teacher.float()).square().mean(1)


def hybrid_positions(student: Tensor, teacher: Tensor, cosine_share: float = COSINE_SHARE, beta: float = 1.0) -> Tensor:
    """`hybrid` at every position: [B, C, h, w] -> [B, h, w]."""
    angle = 1 - F.cosine_similarity(student.float(), teacher.float(), dim=1)
    smooth = F.smooth_l1_loss(student.float(), teacher.float(), beta=beta, reduction="none").mean(1)
    return cosine_share * angle + (1 - cosine_share) * smooth


def summary_loss(node: LossNode, dispersion: float | None) -> Loss:
    """The recipe's summary loss for a teacher whose summaries have this dispersion."""
    if is_plugin(node.summary, LOSSES):
        return own_loss(node.summary)
    if node.summary == "cosine":
        return cosine
    if not dispersion:
        raise UserError(
            "loss.summary: angular divides by how far a teacher's summaries spread, and there is "
            + ("no estimate; start the run anew" if dispersion is None else "a teacher whose summaries are all alike")
        )
    return lambda student, teacher: angular(student, teacher, dispersion)


def spatial_loss(node: LossNode) -> Loss:
    """The recipe's spatial loss."""
    if is_plugin(node.spatial, LOSSES):
        return own_loss(node.spatial)
    if node.spatial == "mse":
        return mse
    chosen = hybrid if node.spatial == "hybrid" else hybrid_map
    return lambda student, teacher: chosen(student, teacher, node.cosine_share, node.beta)


def position_loss(node: LossNode) -> Loss:
    """The recipe's spatial loss at every position, [B, C, h, w] -> [B, h, w]; not every loss has one."""
    if is_plugin(node.spatial, LOSSES):
        found = getattr(own_loss(node.spatial), "positions", None)
        if not callable(found):
            raise UserError(
                f"loss.shift compares position by position, and {node.spatial} has no `positions`: "
                "an attribute (student, teacher [B, C, h, w]) -> [B, h, w]"
            )
        return cast(Loss, found)
    if node.spatial == "mse":
        return mse_positions
    return lambda student, teacher: hybrid_positions(student, teacher, node.cosine_share, node.beta)


def own_loss(name: str) -> Loss:
    """A user's function (student, teacher) -> scalar, a mean over the batch; UserError where it is none."""
    found = load_plugin(name, LOSSES)
    asked = "a loss takes (student, teacher) and gives a scalar"
    if isinstance(found, type) or not callable(found):
        raise UserError(f"{name} is no function; {asked}")
    try:
        inspect.signature(found).bind(None, None)
    except TypeError as error:
        raise UserError(f"{name}: {error}; {asked}") from error
    except ValueError:  # of a builtin nothing is known
        pass

    @functools.wraps(found)  # with its `positions`
    def checked(student: Tensor, teacher: Tensor) -> Tensor:
        value = found(student, teacher)
        if not isinstance(value, Tensor) or value.ndim:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{name} gave {got}; {asked}")
        return value

    return checked
