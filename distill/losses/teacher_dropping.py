"""Teacher dropping (UNIC, arXiv 2408.05088): the teacher an image finds hardest always counts, the others by chance."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def per_image(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    """A loss that is a mean over the batch, image by image: [B, ...] and [B, ...] -> [B]."""
    return torch.vmap(lambda ours, theirs: loss(ours[None], theirs[None]))(student, teacher)


def keep(losses: Tensor, probability: float) -> Tensor:
    """Coefficients [T, B] for losses [T, B] of T teachers: 1 for each image's largest, 0 with `probability` for others.

    They are scaled so that their sum over teachers and images is T * B: with nothing dropped all are 1, and what is
    dropped makes the rest count more, instead of the step smaller. Draws from torch's random numbers.
    """
    kept = (torch.rand(losses.shape, device=losses.device) >= probability).to(losses.dtype)
    kept.scatter_(0, losses.argmax(0, keepdim=True), 1.0)
    return kept * (kept.numel() / kept.sum())


def drop(terms: Mapping[str, Mapping[str, Tensor]], probability: float) -> dict[str, Tensor]:
    """Per teacher and kind losses [B] -> "teacher/kind" terms whose sum is the loss of the step."""
    whole = torch.stack([torch.stack(list(kinds.values())).sum(0) for kinds in terms.values()])
    coefficients = keep(whole.detach(), probability)
    return {
        f"{name}/{kind}": (row * values).mean()
        for row, (name, kinds) in zip(coefficients, terms.items(), strict=True)
        for kind, values in kinds.items()
    }
