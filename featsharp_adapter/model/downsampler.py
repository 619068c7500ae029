"""From a sharpened map back to the teacher's grid: what makes training possible without a sharp ground truth.

Shapes: k*g x k*g' the sharpened grid, g x g' the teacher's, K the kernel side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError, unknown
from featsharp_adapter.model.layers import bias_of

KEEP = 0.8


class AverageDownsampler(nn.Module):
    """[B, C, k*g, k*g'] -> [B, C, g, g'], the mean of each cell. Fixed, and so the same measure for every upsampler."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, features: Tensor) -> Tensor:
        return F.avg_pool2d(features, self.factor)


class AttentionDownsampler(nn.Module):
    """[B, C, k*g, k*g'] -> [B, C, g, g']: per cell, a softmax over the K x K features around it.

    After FeatSharp (arXiv 2502.16025), which names FeatUp's: logits are a convolution of the blurred map. Three things
    are ours. It starts as the mean of the cell (a flat 7 x 7 average takes hundreds of steps to narrow). The window is
    centred on the cell and continues the border instead of adding zeros, which no teacher would give. Logits are
    dropped at random in training only.
    """

    blur: Tensor

    def __init__(self, dim: int, factor: int, *, kernel: int = 7) -> None:
        super().__init__()
        _check_kernel(factor, kernel)
        self.factor, self.kernel = factor, kernel
        self.before, self.after = (kernel - factor) // 2, (kernel - factor + 1) // 2
        self.logits = nn.Conv2d(dim, kernel**2, kernel, stride=factor)
        nn.init.normal_(self.logits.weight, std=0.01 / kernel)
        nn.init.zeros_(bias_of(self.logits))
        self.prior = nn.Parameter(self._cell_prior())
        line = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / 0.5**0.5)
        self.register_buffer("blur", torch.outer(line, line) / line.sum() ** 2, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        dim = features.shape[1]
        blurred = F.conv2d(F.pad(features, (2,) * 4, mode="replicate"), self.blur.expand(dim, 1, 5, 5), groups=dim)
        sides = (self.before, self.after) * 2
        logits = self.logits(F.pad(blurred, sides, mode="replicate"))
        if self.training:
            logits = logits * (torch.rand_like(logits) < KEEP)
        weights = (logits + self.prior).softmax(dim=1).flatten(2)  # [B, K*K, g*g']
        patches = F.unfold(F.pad(features, sides, mode="replicate"), self.kernel, stride=self.factor)
        out = (patches.unflatten(1, (dim, -1)) * weights[:, None]).sum(dim=2)
        return out.unflatten(2, tuple(logits.shape[-2:]))

    def _cell_prior(self) -> Tensor:
        """[K*K, 1, 1]: 0 on the cell itself, e^-4 of its weight around it."""
        prior = torch.full((self.kernel, self.kernel), -4.0)
        cell = slice(self.before, self.before + self.factor)
        prior[cell, cell] = 0.0
        return prior.view(-1, 1, 1)


class SimpleDownsampler(nn.Module):
    """[B, C, k*g, k*g'] -> [B, C, g, g']: one learned K x K kernel for all places and channels, of sum one."""

    def __init__(self, factor: int, *, kernel: int = 7) -> None:
        super().__init__()
        _check_kernel(factor, kernel)
        self.factor, self.kernel = factor, kernel
        self.sides = ((kernel - factor) // 2, (kernel - factor + 1) // 2) * 2
        prior = torch.full((kernel, kernel), -4.0)  # softplus of it is small; the cell itself starts near one
        cell = slice(self.sides[0], self.sides[0] + factor)
        prior[cell, cell] = 0.5
        self.weight = nn.Parameter(prior)

    def forward(self, features: Tensor) -> Tensor:
        dim = features.shape[1]
        weight = F.softplus(self.weight)
        kernel = (weight / weight.sum()).expand(dim, 1, -1, -1)
        return F.conv2d(F.pad(features, self.sides, mode="replicate"), kernel, stride=self.factor, groups=dim)


class PlaceAttentionDownsampler(nn.Module):
    """[B, C, k*g, k*g'] -> [B, C, g, g'], FeatUp's own (arXiv 2403.10516): a place's logit is linear in its feature.

    softmax over the K x K places around a cell of (w[place] * <v, feature> + b[place]). Blurred first by a Gaussian of
    sigma 1; logits are dropped at random in training only, and the window continues the border, as in the other one.
    """

    blur: Tensor

    def __init__(self, dim: int, factor: int, *, kernel: int = 7) -> None:
        super().__init__()
        _check_kernel(factor, kernel)
        self.factor, self.kernel = factor, kernel
        self.sides = ((kernel - factor) // 2, (kernel - factor + 1) // 2) * 2
        self.salience = nn.Conv2d(dim, 1, 1)
        self.scale = nn.Parameter(torch.ones(kernel**2, 1) + 0.01 * torch.randn(kernel**2, 1))
        prior = torch.full((kernel, kernel), -4.0)
        cell = slice(self.sides[0], self.sides[0] + factor)
        prior[cell, cell] = 0.0
        self.prior = nn.Parameter(prior.view(-1, 1))
        line = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / 2)
        self.register_buffer("blur", torch.outer(line, line) / line.sum() ** 2, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        dim, (height, width) = features.shape[1], features.shape[-2:]
        blurred = F.conv2d(F.pad(features, (2,) * 4, mode="replicate"), self.blur.expand(dim, 1, 5, 5), groups=dim)
        salience = F.pad(self.salience(blurred), self.sides, mode="replicate")
        logits = F.unfold(salience, self.kernel, stride=self.factor)  # [B, K*K, g*g']
        if self.training:
            logits = logits * (torch.rand_like(logits) < KEEP)
        weights = (self.scale * logits + self.prior).softmax(dim=1)
        patches = F.unfold(F.pad(features, self.sides, mode="replicate"), self.kernel, stride=self.factor)
        out = (patches.unflatten(1, (dim, -1)) * weights[:, None]).sum(dim=2)
        return out.unflatten(2, (height // self.factor, width // self.factor))


DOWNSAMPLERS = ("attention", "average", "simple", "place_attention")


def build_downsampler(name: str, *, dim: int, factor: int, kernel: int) -> nn.Module:
    """By name; `kernel` is of all but the average. UserError for an unknown one."""
    if name not in DOWNSAMPLERS:
        raise unknown("downsampler", name, DOWNSAMPLERS)
    if name == "average":
        return AverageDownsampler(factor)
    if name == "simple":
        return SimpleDownsampler(factor, kernel=kernel)
    made = AttentionDownsampler if name == "attention" else PlaceAttentionDownsampler
    return made(dim, factor, kernel=kernel)


def _check_kernel(factor: int, kernel: int) -> None:
    if kernel < factor:
        raise UserError(f"a downsampler kernel of {kernel} does not cover a cell of {factor}x{factor}")
