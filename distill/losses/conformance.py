"""Does a loss of yours keep the contract? Call `check_loss` from your own tests; it raises with what is wrong.

from distill.losses.conformance import check_loss
check_loss(my_lab.losses.l1)                        # spatial; check_loss(f, summary=True) for a summary loss
"""

import torch

from distill.losses.teacher_dropping import Loss

TOLERANCE = 1e-5


def check_loss(loss: Loss, *, summary: bool = False) -> None:
    """AssertionError unless (student, teacher) of [B, S] or [B, C, h, w] give a finite scalar that is a mean over the
    batch (so that equal shares on several processes average to the whole), with a gradient for the student alone.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (4, 6) if summary else (4, 6, 3, 5)
    student = torch.randn(shape, generator=generator, requires_grad=True)
    teacher = torch.randn(shape, generator=generator)
    whole = loss(student, teacher)
    value = float(whole.detach().mean())
    assert whole.ndim == 0, f"the loss has shape {list(whole.shape)}; it is one number for the batch"
    assert bool(torch.isfinite(whole)), f"the loss is {value}"
    halves = [loss(*pair) for pair in zip(student.split(2), teacher.split(2), strict=True)]
    share = float(torch.stack(halves).mean().detach())
    assert abs(share - value) <= TOLERANCE * max(1.0, abs(value)), "it is no mean over the batch"
    (gradient,) = torch.autograd.grad(whole, student)
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().sum()) > 0, "no finite gradient"
    nearer = loss(student.detach() * 0.5 + teacher * 0.5, teacher)
    assert float(nearer) < value, "a student half way to the teacher has no smaller loss"
    positions = getattr(loss, "positions", None)
    if positions is not None:
        each = positions(student, teacher)
        assert tuple(each.shape) == (4, 3, 5), f"positions gives {list(each.shape)}, not [B, h, w]"
        assert abs(float(each.detach().mean()) - value) <= TOLERANCE * max(1.0, abs(value)), (
            "positions has another mean"
        )
