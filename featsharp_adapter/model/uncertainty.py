"""Where views of one image cannot agree (reflections, cut-off objects), the error may count less, at a cost.

A network reads the sharpened map and predicts u: the squared error counts exp(-u) there, and u/2 is added, the negative
log-likelihood of a Gaussian up to scale. It is in FeatSharp's code and not in its paper, so it is an option here.
"""

import torch
from torch import Tensor, nn

HIDDEN = 256


class UncertaintyNet(nn.Module):
    """Sharpened maps [B, C, H, W] -> u [B, 1, H, W]; starts at zero: every place counts once. No gradient goes back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(dim, HIDDEN, 5, padding=2, padding_mode="reflect")
        self.last = nn.Conv2d(HIDDEN, 1, 1, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, sharp: Tensor) -> Tensor:
        return self.last(nn.functional.gelu(self.near(sharp.detach())))


def discount(u: Tensor) -> Tensor:
    """How much the squared error counts at each place."""
    return torch.exp(-u)
