"""FeatUp (arXiv 2403.10516), the joint bilateral stack: low-resolution features and the image, no tiles."""

from collections.abc import Mapping

from torch import Tensor, nn

from featsharp_adapter.model.jbu import JBUStack
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.strips import in_strips


class FeatUpUpsampler(Upsampler):
    """As FeatSharp (arXiv 2502.16025) ports it: no dropout, no residual corrections, any integer factor."""

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int], sigma: float = 0.35) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        self.jbu = JBUStack(factor, sigma=sigma)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        if self.strip_rows is None:
            return self.jbu(low, guidance)
        pyramid = self.jbu.pyramid(guidance, (low.shape[-2], low.shape[-1]))
        return in_strips(
            lambda start, stop: self.jbu.rows(low, pyramid, start, stop), low, self.factor, self.strip_rows
        )

    @property
    def local(self) -> bool:
        return True

    def guide_parameters(self) -> list[nn.Parameter]:
        return list(self.jbu.parameters())
