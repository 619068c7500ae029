"""Models that bring their own code (the RADIO models do), run only when the recipe says `trust_remote_code: true`.

They are asked for what RADIO's models give: `summary [B, S], tokens [B, h*w, C] = model(pixels)`. Nothing in their
configuration states size, patch or normalisation in a common way, so all of these are required options.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from common.errors import UserError
from teachers.contracts import Features
from teachers.library import Tower, to_map


class RemoteTower(Tower):
    """A model with code of its own that returns (summary, tokens)."""

    def __init__(self, model: nn.Module, summary: str, spatial: str, patch: int) -> None:
        super().__init__()
        self.model = model
        self.summary = summary
        self.spatial = spatial
        self.patch = patch

    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features; UserError when the model returns something else."""
        output = self.model(pixels)
        fits = isinstance(output, tuple) and len(output) == 2 and output[0].ndim == 2 and output[1].ndim == 3
        if not fits:
            raise UserError("code from this repository does not return (summary [B, S], tokens [B, h*w, C])")
        summary, tokens = output
        grid = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        return Features(summary if self.summary == "pooled" else None, to_map(tokens, 0, grid))

    def block_maps(self, pixels: Tensor, blocks: Sequence[int] | None) -> list[Tensor]:
        """Such a model says nothing about its blocks, so there are none."""
        return []
