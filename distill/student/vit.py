"""The student's ViT: timm's, and for a student with more to it, the way of its tokens through positions and windows.

It is timm's class with another `forward`, not something around it: engines that split weights over processes gather
those of a module (its positions and tokens among them) when the module itself is called.
"""

import random
from collections.abc import Collection
from typing import cast

import torch
from timm.layers import use_reentrant_ckpt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.keyed_random import mix
from distill.recipe_models import StudentNode
from distill.student.cropped_positions import positions
from distill.student.spectral import ReparametrisedLinear
from distill.student.window_attention import Windows, global_blocks

Grid = tuple[int, int]
_WINDOW = 2  # keeps these random numbers apart from others of the same forward


class StudentTransformer(VisionTransformer):
    """A timm ViT that runs as a `StudentNode` says. `key`s are of one training forward, else None."""

    node: StudentNode
    globals: frozenset[int]  #: blocks that attend globally

    @classmethod
    def of(cls, vit: VisionTransformer, node: StudentNode) -> "StudentTransformer":
        """`vit` itself, which from here on is one of these: timm makes named models of its own class only."""
        vit.__class__ = cls
        found = cast(StudentTransformer, vit)
        found.node, found.globals = node, global_blocks(len(found.blocks), node.global_blocks)
        return found

    def forward(  # type: ignore[override]  # taps in the place of an attention mask
        self, images: Tensor, key: int | None = None, taps: Collection[int] = ()
    ) -> Tensor | tuple[Tensor, dict[int, Tensor]]:
        """Normalised images [B, 3, H, W] -> tokens [B, P + h*w, D] after the last norm.

        With `taps` also those after the named blocks, in the same layout, before any norm.
        """
        if self.plain and not taps:
            return self.forward_features(images)
        tokens, kept = self._walk(images, key, taps)
        return (tokens, kept) if taps else tokens

    @property
    def plain(self) -> bool:
        """Whether its way is timm's own."""
        node = self.node
        windowed = node.window is not None or node.window_train is not None
        return node.cpe is None and not windowed and not node.spectral and not node.damp

    def begin(self, update: int) -> None:
        """Tell the layers which update comes next."""
        for layer in self.modules():
            if isinstance(layer, ReparametrisedLinear):
                layer.update = update

    def windows(self, grid: Grid, key: int | None) -> Windows | None:
        """The windows of this forward; None where one would cover the whole image."""
        size = self.node.window
        if key is not None and self.node.window_train is not None:
            size = random.Random(mix(key, _WINDOW)).randint(*self.node.window_train)
        if size is None or size >= max(grid):
            return None
        return Windows(grid, size, self.num_prefix_tokens)

    # What changes from forward to forward (keys, windows) would make torch.compile start again each time; compiled are
    # the blocks that these call.
    @torch.compiler.disable(recursive=False)
    def _walk(self, images: Tensor, key: int | None, taps: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        patch = self.patch_embed.patch_size
        grid = (images.shape[-2] // patch[0], images.shape[-1] // patch[1])
        tokens = self._embed(images, grid, key)
        windows, mask, kept = None, None, {}
        for index, block in enumerate(self.blocks):
            wanted = None if index in self.globals else self.windows(grid, key)
            if wanted != windows:
                tokens = windows.join(tokens) if windows else tokens
                tokens = wanted.cut(tokens) if wanted else tokens
                mask = wanted.mask(len(images), tokens.device) if wanted else None
                windows = wanted
            tokens = self._block(block, tokens, mask, key)
            if index in taps:
                kept[index] = windows.join(tokens) if windows else tokens
        return self.norm(tokens), kept

    def _embed(self, images: Tensor, grid: Grid, key: int | None) -> Tensor:
        tokens = self.patch_embed(images)
        if self.node.cpe is None:
            tokens = self._pos_embed(tokens)
        else:
            assert self.pos_embed is not None and self.reg_token is not None  # it was built with both
            square = self.pos_embed.transpose(1, 2).unflatten(2, self.patch_embed.grid_size)
            where = positions(square, grid, len(images), key, self.node.position_dropout)
            # Not rounded to bf16: what adds up over the blocks stays as precise as the positions are.
            tokens = (tokens + where.permute(0, 2, 3, 1)).flatten(1, 2)
            tokens = self.pos_drop(torch.cat([self.reg_token.expand(len(tokens), -1, -1), tokens], dim=1))
        return self.norm_pre(self.patch_drop(tokens))

    @torch.compiler.disable(recursive=False)
    def _block(self, block: nn.Module, tokens: Tensor, mask: Tensor | None, key: int | None) -> Tensor:
        @torch.compiler.disable(recursive=False)
        def call(tokens: Tensor, mask: Tensor | None) -> Tensor:
            for layer in block.modules():  # here, so that computing a block again draws the same again
                if isinstance(layer, ReparametrisedLinear):
                    layer.key = key
            return block(tokens) if mask is None else block(tokens, attn_mask=mask)

        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(call, tokens, mask, use_reentrant=use_reentrant_ckpt())
        return call(tokens, mask)
