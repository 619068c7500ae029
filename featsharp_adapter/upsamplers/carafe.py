"""CARAFE (arXiv 1905.02188): every fine cell is a softmax-weighted sum of the coarse cells around its own.

The weights are predicted from the features alone; the image is not looked at. Published code: part of mmcv
(open-mmlab/mmcv), Apache-2.0; this is written from the paper. Any whole factor.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.parts import check_odd, same_conv
from featsharp_adapter.upsamplers.taps import to_map, weigh_taps


class CarafeUpsampler(Upsampler):
    """Compress, predict k x k weights for each of the factor^2 fine cells, normalise, reassemble (sections 3.1, 3.2).

    kernel: k_up. encoder_kernel: of the convolution that predicts. width: C_m. One change: beyond the border both
    convolution and reassembly continue the last cell; the paper's zeros would darken features there.
    """

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        kernel: int = 5,
        encoder_kernel: int = 3,
        width: int = 64,
    ) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        check_odd("kernel", kernel)
        check_odd("encoder_kernel", encoder_kernel)
        self.kernel = kernel
        self.compress = nn.Conv2d(dim, width, 1)
        self.predict = same_conv(width, (kernel * factor) ** 2, encoder_kernel)
        nn.init.xavier_uniform_(self.compress.weight)
        # Nearly flat weights at first, as published.
        nn.init.normal_(self.predict.weight, std=0.001)
        for layer in (self.compress, self.predict):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        logits = self.predict(self.compress(low)).unflatten(1, (self.kernel**2, self.factor**2))
        return to_map(weigh_taps(low, logits.softmax(dim=1)), self.factor)
