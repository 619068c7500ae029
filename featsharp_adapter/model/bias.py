"""The denoising bias of FeatSharp (arXiv 2502.16025, section 3.4): what a ViT adds at each position whatever it sees.

It is the input-independent part of DVT's decomposition (arXiv 2401.02957). Views of one image disagree where it is not
removed, and that disagreement is all it learns from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BiasBuffer(nn.Module):
    """Adds one learned map [1, C, G, G'] to features in PHI-S space; starts at zero."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.buffer = nn.Parameter(torch.zeros(1, dim, *grid))

    def forward(self, features: Tensor, n: int = 1) -> Tensor:
        """[B, C, n*g, n*g'], stitched from n x n passes of the teacher, each of which has the bias -> same shape."""
        height, width = (side // n for side in features.shape[-2:])
        bias: Tensor = self.buffer
        if bias.shape[-2:] != (height, width):
            bias = F.interpolate(bias, size=(height, width), mode="bilinear", align_corners=False)
        return features + bias.repeat(1, 1, n, n)
