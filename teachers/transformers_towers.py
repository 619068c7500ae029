"""How vision transformers of transformers are asked for features; teachers/transformers_families.py says which."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from teachers.contracts import Features
from teachers.library import Tower, to_map

TEXT_AND_IMAGE = ("clip", "siglip", "siglip2")
TEXT_PARTS = ("text_model", "text_projection")  #: of those


class TokenTower(Tower):
    """A vision transformer of transformers; subclasses say how it is called and what stands before its patch tokens.

    `spatial`: "final" (last_hidden_state), "last_block" (before the final norm) or "selected" (the hidden states
    `layers` that a language model reads, side by side; 0 is the embedding).
    """

    layers: tuple[int, ...] = ()

    def __init__(self, model: nn.Module, summary: str, spatial: str, patch: int) -> None:
        super().__init__()
        self.model = model
        self.summary = summary
        self.spatial = spatial
        self.patch = patch

    @property
    def vision(self) -> Any:
        """The image tower: part of an image-text model, or the model itself."""
        whole = self.model.config.model_type in TEXT_AND_IMAGE
        return self.model.vision_model if whole else self.model

    @property
    def image_part(self) -> nn.Module:
        """The image tower."""
        return self.vision

    def drop_text(self) -> None:
        """Keep the image tower, and what projects its summary."""
        for name in TEXT_PARTS:
            if isinstance(getattr(self.model, name, None), nn.Module):
                setattr(self.model, name, None)

    @property
    def prefix(self) -> int:
        """How many tokens stand before the patches."""
        return 0

    def run(self, pixels: Tensor, blocks: bool) -> Any:
        """The library's output for pixels [B, 3, H, W]; with every block's tokens if `blocks`."""
        return self.vision(pixels, output_hidden_states=blocks)

    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features."""
        output = self.run(pixels, blocks=self.spatial in ("last_block", "selected"))
        return Features(self._summary(output), self._map(self._tokens(output), pixels))

    def _tokens(self, output: Any) -> Tensor:
        """[B, prefix + h*w, C] that `spatial` asks for."""
        if self.spatial == "selected":
            return torch.cat([output.hidden_states[layer] for layer in self.layers], dim=-1)
        if self.spatial == "last_block":
            return output.hidden_states[-1]
        return output.last_hidden_state

    def block_maps(self, pixels: Tensor, blocks: Sequence[int] | None) -> list[Tensor]:
        """[B, 3, H, W] -> [B, C, h, w] after each block; the first hidden state is the embedding, so it is left out."""
        states = self.run(pixels, blocks=True).hidden_states[1:]
        wanted = range(len(states)) if blocks is None else blocks
        return [self._map(states[block], pixels) for block in wanted]

    def _summary(self, output: Any) -> Tensor | None:
        if self.summary == "none":
            return None
        if self.summary == "cls":
            return output.last_hidden_state[:, 0]
        return output.pooler_output

    def _map(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        grid = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        return to_map(tokens, self.prefix, grid)


class ClsTower(TokenTower):
    """DINOv2: one class token; other sizes need no asking."""

    @property
    def prefix(self) -> int:
        """The class token."""
        return 1


class RegisterTower(ClsTower):
    """DINOv2 with registers, DINOv3: the registers stand between the class token and the patches."""

    @property
    def prefix(self) -> int:
        """The class token and the registers."""
        return 1 + int(self.model.config.num_register_tokens)


class InterpolatingTower(TokenTower):
    """SigLIP: no prefix; position embeddings are interpolated when asked to, and left alone at the native size."""

    def run(self, pixels: Tensor, blocks: bool) -> Any:
        """The library's output for pixels [B, 3, H, W]."""
        return self.vision(pixels, interpolate_pos_encoding=True, output_hidden_states=blocks)


class ViTTower(InterpolatingTower):
    """ViT: one class token."""

    @property
    def prefix(self) -> int:
        """The class token."""
        return 1


class ClipTower(ViTTower):
    """CLIP: `last_hidden_state` comes before post_layernorm, and the summary is projected into the text's space."""

    def _summary(self, output: Any) -> Tensor | None:
        if self.summary == "embedding":
            return self.model.visual_projection(output.pooler_output)
        return super()._summary(output)

    def _tokens(self, output: Any) -> Tensor:
        tokens = super()._tokens(output)
        return self.vision.post_layernorm(tokens) if self.spatial == "normed" else tokens


class NaFlexTower(TokenTower):
    """SigLIP2 in its NaFlex form: takes patches, channels last, with the grid's shape beside them."""

    def run(self, pixels: Tensor, blocks: bool) -> Any:
        """The library's output for pixels [B, 3, H, W]."""
        height, width = pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch
        patches = pixels.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(len(pixels), height * width, -1)
        # The library reads the shapes and the mask as numbers, which a meta tensor cannot give.
        mask = None if pixels.is_meta else torch.ones(patches.shape[:2], dtype=torch.int32, device=pixels.device)
        shapes = torch.tensor([[height, width]] * len(pixels), device="cpu")
        return self.vision(patches, pixel_attention_mask=mask, spatial_shapes=shapes, output_hidden_states=blocks)


class RadioTower(TokenTower):
    """RADIO as transformers builds it: several class tokens, of which the model itself picks its summary, registers."""

    def __init__(self, model: nn.Module, summary: str, spatial: str, patch: int) -> None:
        super().__init__(model, summary, spatial, patch)
        model.input_conditioner = nn.Identity()  # the Backbone normalises, with the mean and std of the configuration

    @property
    def prefix(self) -> int:
        """Class tokens and registers."""
        return int(self.model.config.num_summary_tokens)

    def _summary(self, output: Any) -> Tensor | None:
        return None if self.summary == "none" else output.summary
