"""The tiny teachers' network: a plain timm ViT, and for the CLIP-like one a text tower beside it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from teachers.contracts import Backbone, BackboneSpec, Features, check_size
from teachers.tiny.text import TextTower, Tokenizer

MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Architecture:
    """What rebuilds the network. `summary` is "token" (a class token), "mean" (of all tokens) or None.

    `embedding` is the width that the summary shares with the text tower, None where there is none.
    """

    image_size: int
    patch: int
    dim: int
    depth: int
    heads: int
    summary: str | None
    embedding: int | None = None
    text_dim: int = 96
    text_depth: int = 2

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


ARCHITECTURES = {
    "clip": Architecture(image_size=112, patch=16, dim=128, depth=6, heads=4, summary="mean", embedding=128),
    "dino": Architecture(image_size=112, patch=16, dim=160, depth=5, heads=5, summary="token"),
    "sam": Architecture(image_size=224, patch=16, dim=128, depth=4, heads=4, summary=None),
}


class TinyNetwork(nn.Module):
    """The weights of a tiny teacher: `vit`, and with an embedding `projection` (no bias) and `text`."""

    def __init__(self, architecture: Architecture, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.vit = VisionTransformer(
            img_size=architecture.image_size,
            patch_size=architecture.patch,
            embed_dim=architecture.dim,
            depth=architecture.depth,
            num_heads=architecture.heads,
            num_classes=0,
            class_token=architecture.summary == "token",
            global_pool="",
        )
        self.projection: nn.Linear | None = None
        self.text: TextTower | None = None
        if architecture.embedding is not None:
            if tokenizer is None:
                raise ValueError("a network with a text embedding needs a tokenizer")
            self.projection = nn.Linear(architecture.dim, architecture.embedding, bias=False)
            self.text = TextTower(tokenizer, architecture.text_dim, architecture.text_depth, architecture.embedding)

    @property
    def grid(self) -> int:
        return self.architecture.image_size // self.architecture.patch

    @property
    def summary_dim(self) -> int:
        """S of the summary; ValueError where there is none."""
        if self.architecture.summary is None:
            raise ValueError("this network has no summary")
        return self.architecture.embedding or self.architecture.dim

    def forward(self, images: Tensor) -> Features:
        """[B, 3, H, W] in [0, 1] at the native size -> summary [B, S] or None, spatial [B, C, h, w]."""
        tokens = self.vit.forward_features(normalise(images))
        prefix = self.vit.num_prefix_tokens
        spatial = tokens[:, prefix:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return Features(self._summary(tokens), spatial)

    def _summary(self, tokens: Tensor) -> Tensor | None:
        if self.architecture.summary is None:
            return None
        pooled = tokens[:, 0] if self.architecture.summary == "token" else tokens.mean(1)
        return pooled if self.projection is None else self.projection(pooled)


def normalise(images: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [-1, 1], as MEAN and STD say."""
    return (images - MEAN[0]) / STD[0]


class TinyBackbone(Backbone):
    """A tiny teacher behind the backbone contract; loads through `teachers.tiny.backbone.load`."""

    def __init__(self, network: TinyNetwork, spec: BackboneSpec) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.num_blocks = network.architecture.depth

    def forward(self, images: Tensor) -> Features:
        """[B, 3, H, W] in [0, 1] -> summary [B, S] (None for sam), spatial [B, C, h, w]."""
        check_size(self.spec, images)
        return self.network(images)

    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Spatial features after each of `blocks` (0-based), final norm applied: a list of [B, C, h, w]."""
        check_size(self.spec, images)
        wrong = [block for block in blocks if not 0 <= block < self.num_blocks]
        if wrong:
            raise UserError(f"{self.spec.name} has blocks 0 to {self.num_blocks - 1}, got {wrong}")
        vit, order = self.network.vit, sorted(set(blocks))
        maps: Any = vit.forward_intermediates(normalise(images), indices=order, norm=True, intermediates_only=True)
        return [maps[order.index(block)] for block in blocks]


class TinyTextBackbone(TinyBackbone):
    """A tiny teacher whose summary shares a space with text."""

    def encode_text(self, texts: list[str]) -> Tensor:
        """Any strings -> [N, S] in the space of the summary; unknown words count as <unk>."""
        text = self.network.text
        if text is None:
            raise ValueError("the network has no text tower")
        return text.encode(texts)


def initialise(architecture: Architecture, seed: int, tokenizer: Tokenizer | None = None) -> TinyNetwork:
    """A freshly initialised network that depends on `seed` alone; leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyNetwork(architecture, tokenizer)
