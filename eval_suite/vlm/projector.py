"""From views of a backbone to tokens in a language model's space."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eval_suite.vlm.recipe import VlmRecipe
from eval_suite.vlm.tokens import merge_tokens, reduce_grid, reduced_channels
from eval_suite.vlm.views import Views, unpad


class Projector(nn.Module):
    """Linear, GELU, linear (LLaVA-1.5's mlp2x_gelu), after a layer norm if asked; and the row end mark of anyres."""

    def __init__(self, channels: int, grid: tuple[int, int], width: int, recipe: VlmRecipe) -> None:
        """`channels` and `grid` of the backbone's map of one view; `width` of the language model's embeddings."""
        super().__init__()
        self.reduce, self.side = recipe.reduce, recipe.side
        inner = reduced_channels(channels, grid, recipe.reduce, recipe.side)
        layers: list[nn.Module] = [nn.LayerNorm(inner)] if recipe.projector == "norm_mlp2x_gelu" else []
        self.layers = nn.Sequential(*layers, nn.Linear(inner, width), nn.GELU(), nn.Linear(width, width))
        self.row_end = nn.Parameter(torch.randn(width) * width**-0.5) if recipe.views == "anyres" else None

    def forward(self, spatial: Tensor, pictures: Sequence[Views]) -> list[Tensor]:
        """Maps [sum of V, C, h, w] of all the pictures' views -> tokens [T, D] of each picture."""
        if self.reduce == "tome":
            assert self.side is not None
            tokens = self.layers(merge_tokens(spatial.flatten(2).transpose(1, 2), self.side**2))
            return list(tokens)
        cells = reduce_grid(spatial, self.reduce, self.side)
        cells = self.layers(cells.movedim(1, -1)).movedim(-1, 1)  # [sum V, D, h, w]
        parts = cells.split([len(picture.images) for picture in pictures])
        return [self._stitch(part, picture) for part, picture in zip(parts, pictures, strict=True)]

    def _stitch(self, cells: Tensor, picture: Views) -> Tensor:
        """[V, D, h, w] -> [T, D]: the whole picture first, then the stitched tiles, a row end mark after every row."""
        base = cells[0].flatten(1).t()
        if picture.grid is None or self.row_end is None:
            return base
        columns, rows = picture.grid
        tiles = cells[1:].unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        tiles = unpad(tiles, picture.shape)
        ends = self.row_end.to(tiles.dtype)[:, None, None].expand(-1, tiles.shape[1], 1)
        return torch.cat([base, torch.cat([tiles, ends], 2).flatten(1).t()])
