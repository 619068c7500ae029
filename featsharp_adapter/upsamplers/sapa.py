"""SAPA (arXiv 2209.12866): fine cells take from the coarse cells that resemble what the encoder sees at their place.

Published code: poppinace/sapa, whose LICENCE file is MIT while its README asks for academic use only, with a CUDA
extension; this is written from the paper and needs none. Any whole factor.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.parts import ChannelNorm, check_odd, conv_tower, pool_guidance
from featsharp_adapter.upsamplers.taps import compare_taps, to_cells, to_map, weigh_taps


class SapaUpsampler(Upsampler):
    """softmax over the K x K coarse cells around of <query at the fine cell, key of the coarse cell>, on raw features.

    gated: SAPA-G, the query is g * W_e encoder + (1 - g) * W_d decoder with g = sigmoid(w decoder); else SAPA-B, the
    encoder alone. A vision transformer has no fine encoder stage: a small tower of convolutions on the image stands in.
    """

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        kernel: int = 5,
        width: int = 32,
        gated: bool = True,
    ) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        check_odd("kernel", kernel)
        self.kernel = kernel
        self.encoder = conv_tower(3, width, kernel=3, block_kernel=3, blocks=1)
        self.encoder_norm, self.decoder_norm = ChannelNorm(width), ChannelNorm(dim)
        self.query = nn.Conv2d(width, width, 1)
        self.key = nn.Conv2d(dim, width, 1)
        self.decoder_query = nn.Conv2d(dim, width, 1) if gated else None
        self.gate = nn.Conv2d(dim, 1, 1) if gated else None

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        normed = self.decoder_norm(low)
        logits = compare_taps(self._queries(normed, guidance), self.key(normed), self.kernel)
        return to_map(weigh_taps(low, logits.softmax(dim=1)), self.factor)

    def _queries(self, normed: Tensor, guidance: Tensor) -> Tensor:
        """[B, width, factor^2, g, g']; the coarse cell's own query and gate are shared by its fine cells."""
        size = (normed.shape[-2] * self.factor, normed.shape[-1] * self.factor)
        fine = self.encoder(pool_guidance(guidance, size, 2))
        fine = self.query(self.encoder_norm(nn.functional.adaptive_avg_pool2d(fine, size)))
        queries = to_cells(fine, self.factor)
        if self.gate is None or self.decoder_query is None:
            return queries
        gate = torch.sigmoid(self.gate(normed))[:, :, None]
        return gate * queries + (1 - gate) * self.decoder_query(normed)[:, :, None]
