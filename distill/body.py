"""The way of tokens through a student's ViT: positions, windows, blocks, with everything that training draws.

timm's VisionTransformer holds the weights; for a student without any of these the way is timm's own.
"""

import random
from collections.abc import Collection

import torch
from timm.layers import use_reentrant_ckpt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.linear import StudentLinear
from distill.positions import positions
from distill.recipe import StudentNode
from distill.windows import Windows, global_blocks
from imagery.order import mix

Grid = tuple[int, int]
_WINDOW = 2  # keeps these random numbers apart from others of the same forward


class Body:
    """Runs a timm ViT as a `StudentNode` says. `key`s are of one training forward (`distill.draws`), None otherwise."""

    def __init__(self, vit: VisionTransformer, node: StudentNode) -> None:
        self.vit, self.node = vit, node
        self.globals = global_blocks(len(vit.blocks), node.global_blocks)
        self.linears = [
            [layer for layer in block.modules() if isinstance(layer, StudentLinear)] for block in vit.blocks
        ]

    def begin(self, update: int) -> None:
        """Tell the layers which update comes next."""
        for layers in self.linears:
            for layer in layers:
                layer.update = update

    def run(
        self, images: Tensor, grid: Grid, key: int | None, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Normalised images [B, 3, H, W] -> tokens [B, P + h*w, D] after the last norm, and those after blocks `taps`.

        The tapped ones are in the same layout, before any norm.
        """
        tokens = self._embed(images, grid, key)
        windows, mask, kept = None, None, {}
        for index, block in enumerate(self.vit.blocks):
            wanted = None if index in self.globals else self.windows(grid, key)
            if wanted != windows:
                tokens = windows.join(tokens) if windows else tokens
                tokens = wanted.cut(tokens) if wanted else tokens
                mask = wanted.mask(len(images), tokens.device) if wanted else None
                windows = wanted
            tokens = self._block(index, block, tokens, mask, key)
            if index in taps:
                kept[index] = windows.join(tokens) if windows else tokens
        return self.vit.norm(tokens), kept

    def windows(self, grid: Grid, key: int | None) -> Windows | None:
        """The windows of this forward; None where one would cover the whole image."""
        size = self.node.window
        if key is not None and self.node.window_train is not None:
            size = random.Random(mix(key, _WINDOW)).randint(*self.node.window_train)
        if size is None or size >= max(grid):
            return None
        return Windows(grid, size, self.vit.num_prefix_tokens)

    def _embed(self, images: Tensor, grid: Grid, key: int | None) -> Tensor:
        vit = self.vit
        tokens = vit.patch_embed(images)
        if self.node.cpe is None:
            tokens = vit._pos_embed(tokens)
        else:
            square = vit.pos_embed.transpose(1, 2).unflatten(2, vit.patch_embed.grid_size)
            where = positions(square, grid, len(images), key, self.node.position_dropout)
            tokens = (tokens + where.permute(0, 2, 3, 1).to(tokens.dtype)).flatten(1, 2)
            tokens = vit.pos_drop(torch.cat([vit.reg_token.expand(len(tokens), -1, -1), tokens], dim=1))
        return vit.norm_pre(vit.patch_drop(tokens))

    def _block(self, index: int, block: nn.Module, tokens: Tensor, mask: Tensor | None, key: int | None) -> Tensor:
        def call(tokens: Tensor, mask: Tensor | None) -> Tensor:
            for layer in self.linears[index]:  # here, so that computing a block again draws the same again
                layer.key = key
            return block(tokens) if mask is None else block(tokens, attn_mask=mask)

        if self.vit.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(call, tokens, mask, use_reentrant=use_reentrant_ckpt())
        return call(tokens, mask)
