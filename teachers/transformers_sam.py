"""The image encoders of SAM, SAM2 and SAM3 as transformers builds them: maps rather than tokens, and no summary."""

from collections.abc import Sequence

from torch import Tensor

from teachers.contracts import Features
from teachers.transformers_towers import TokenTower


class SamTower(TokenTower):
    """SAM's image encoder: maps, not tokens; [B, C, h, w] after the neck, [B, h, w, C] in the blocks before it."""

    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features without a summary: SAM has none."""
        if self.spatial == "last_block":
            return Features(None, self.block_maps(pixels, None)[-1])
        return Features(None, self.run(pixels, blocks=False).last_hidden_state)

    def _map(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        return channels_first(tokens)


class Sam2Tower(SamTower):
    """SAM2's Hiera encoder.

    `final` is the coarsest map of its feature pyramid (stride 16, 256 wide: its decoder attends to it), `last_block`
    the last stage before the pyramid (stride 32).
    """

    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features without a summary."""
        if self.spatial == "last_block":
            return Features(None, channels_first(self.model.backbone(pixels).last_hidden_state))
        return Features(None, self.run(pixels, blocks=False).fpn_hidden_states[-1])

    def block_maps(self, pixels: Tensor, blocks: Sequence[int] | None) -> list[Tensor]:
        """[B, 3, H, W] -> [B, C, h, w] at the end of each of the four stages, strides 4, 8, 16, 32."""
        stages = self.model.backbone(pixels).intermediate_hidden_states
        wanted = range(len(stages)) if blocks is None else blocks
        return [channels_first(stages[stage]) for stage in wanted]


class Sam3Tower(SamTower):
    """SAM3's encoder: `final` is its neck's map at the patch grid (256 wide), `last_block` the map before the neck."""

    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features without a summary."""
        if self.spatial == "last_block":
            grid = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
            tokens = self.model.backbone(pixels).last_hidden_state
            return Features(None, channels_first(tokens.reshape(len(pixels), *grid, -1)))
        level = list(self.model.config.scale_factors).index(1.0)
        return Features(None, self.run(pixels, blocks=False).fpn_hidden_states[level])

    def block_maps(self, pixels: Tensor, blocks: Sequence[int] | None) -> list[Tensor]:
        """[B, 3, H, W] -> [B, C, h, w] after each block."""
        states = self.model.backbone(pixels, output_hidden_states=True).hidden_states[1:]
        wanted = range(len(states)) if blocks is None else blocks
        return [channels_first(states[block]) for block in wanted]


def channels_first(tokens: Tensor) -> Tensor:
    """[B, h, w, C] -> [B, C, h, w]."""
    return tokens.permute(0, 3, 1, 2).contiguous()
