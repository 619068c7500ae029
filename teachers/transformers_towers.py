"""How each family of transformers models is asked for its features: one explicit table, by `model_type`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from teachers.contracts import Features
from teachers.library import Tower, to_map
from teachers.weights import loading

TEXT_AND_IMAGE = ("clip", "siglip", "siglip2")


class TokenTower(Tower):
    """A vision transformer of transformers; subclasses say how it is called and what stands before its patch tokens."""

    def __init__(self, model: nn.Module, summary: str, spatial: str, patch: int) -> None:
        super().__init__()
        self.model = model
        self.summary = summary
        self.spatial = spatial
        self.patch = patch

    @property
    def vision(self) -> nn.Module:
        """The image tower: part of an image-text model, or the model itself."""
        whole = self.model.config.model_type in TEXT_AND_IMAGE
        return self.model.vision_model if whole else self.model

    @property
    def prefix(self) -> int:
        """How many tokens stand before the patches."""
        return 0

    def run(self, pixels: Tensor, blocks: bool) -> Any:
        """The library's output for pixels [B, 3, H, W]; with every block's tokens if `blocks`."""
        return self.vision(pixels, output_hidden_states=blocks)

    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features."""
        output = self.run(pixels, blocks=self.spatial == "last_block")
        tokens = output.hidden_states[-1] if self.spatial == "last_block" else output.last_hidden_state
        return Features(self._summary(output), self._map(self._normed(tokens), pixels))

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

    def _normed(self, tokens: Tensor) -> Tensor:
        return tokens

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

    def _normed(self, tokens: Tensor) -> Tensor:
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


class SamTower(TokenTower):
    """SAM's image encoder: maps, not tokens; [B, C, h, w] after the neck, [B, h, w, C] in the blocks before it."""

    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features without a summary: SAM has none."""
        if self.spatial == "last_block":
            return Features(None, self.block_maps(pixels, None)[-1])
        return Features(None, self.run(pixels, blocks=False).last_hidden_state)

    def _map(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        return tokens.permute(0, 3, 1, 2).contiguous()


class HubText:
    """`encode_text` of an image-text model of transformers; the tokenizer is read at the first call."""

    def __init__(self, model: nn.Module, path: str) -> None:
        self.model = model
        self.path = path
        self.tokenizer: Any = None

    def __call__(self, texts: list[str]) -> Tensor:
        """N texts -> [N, S], as the library's get_text_features gives them."""
        if self.tokenizer is None:
            with loading(f"the tokenizer of {self.path}", fetch=not Path(self.path).is_dir()):
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.path)
        text = self.model.config.text_config
        # SigLIP reads the last position, so it must be padded to the length it was trained with.
        padding = "max_length" if self.model.config.model_type in ("siglip", "siglip2") else "longest"
        tokens = self.tokenizer(
            texts, padding=padding, truncation=True, max_length=text.max_position_embeddings, return_tensors="pt"
        )
        device = next(self.model.parameters()).device
        found = self.model.get_text_features(**{key: value.to(device) for key, value in tokens.items()})
        return found if isinstance(found, Tensor) else found.pooler_output  # transformers 4 and 5


@dataclass(frozen=True)
class Family:
    """A kind of model: its tower, the summaries and maps it gives (first: default), whether it takes other sizes."""

    tower: type[Any]
    summaries: tuple[str, ...]
    spatials: tuple[str, ...]
    resizable: bool
    grid_of_patches: bool = False  #: the configuration states a number of patches instead of a size


_PLAIN = ("final", "last_block")
_SIGLIP_VISION = ("pooled", "none")
FAMILIES: dict[str, Family] = {
    "siglip": Family(InterpolatingTower, ("embedding", "none"), _PLAIN, True),
    "siglip_vision_model": Family(InterpolatingTower, _SIGLIP_VISION, _PLAIN, True),
    "siglip2": Family(NaFlexTower, ("embedding", "none"), _PLAIN, True, grid_of_patches=True),
    "siglip2_vision_model": Family(NaFlexTower, _SIGLIP_VISION, _PLAIN, True, grid_of_patches=True),
    "clip": Family(ClipTower, ("embedding", "pooled", "cls", "none"), ("final", "normed"), True),
    "clip_vision_model": Family(ClipTower, ("pooled", "cls", "none"), ("final", "normed"), True),
    "dinov2": Family(ClsTower, ("cls", "none"), _PLAIN, True),
    "dinov2_with_registers": Family(RegisterTower, ("cls", "none"), _PLAIN, True),
    "dinov3_vit": Family(RegisterTower, ("cls", "none"), _PLAIN, True),
    "vit": Family(ViTTower, ("cls", "pooled", "none"), _PLAIN, True),
    "sam": Family(SamTower, ("none",), _PLAIN, False),
    "sam_vision_model": Family(SamTower, ("none",), _PLAIN, False),
}


def vision_config(config: Any) -> Any:
    """The image tower's part of a configuration, or the configuration itself where it has only that."""
    whole = config.model_type in (*TEXT_AND_IMAGE, "sam")
    return config.vision_config if whole else config
