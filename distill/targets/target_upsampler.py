"""What stands between a teacher's views and its target map: nothing, an upsampler without weights, or an adapter."""

import torch
from torch import Tensor, nn

from common.errors import UserError
from distill.recipe_models import TeacherNode
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.budget import check_passes, choose_tiles
from featsharp_adapter.model.views import Views
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.table import build_upsampler
from teachers.contracts import BackboneSpec, state_digest


class TargetUpsampler(nn.Module):
    """views, images [B, 3, H, W] -> [B, C, k*g, k*g'] in the teacher's raw units.

    An upsampler with weights comes as a trained adapter. One without is affine in the features, with weights that sum
    to one, so it does the same in raw units as inside any PHI-S, and needs no adapter around it.
    """

    def __init__(self, name: str, node: TeacherNode, spec: BackboneSpec) -> None:
        super().__init__()
        self.adapter: Adapter | None = None
        self.plain: Upsampler | None = None
        self.denoise_only = node.denoise is not None
        self.tile_grids: tuple[int, ...] = ()
        folder = node.denoise or node.adapters.get(node.upsampler)
        if folder is not None:
            self.adapter = Adapter.from_pretrained(folder, backbone_spec=spec, trusted=node.upsampler)
            check_adapter(name, node, folder, self.adapter)
            self.adapter.dtype = adapter_dtype(node)
        elif node.upsampler != "none":
            self.plain = plain_upsampler(name, node, spec)
        if node.passes is not None:
            if self.adapter is None:
                raise UserError(
                    f"teachers.{name}: passes: {node.upsampler} needs all of its tiles; ridge can do with less"
                )
            check_passes(self.adapter.upsampler, node.passes)
        source = self.adapter if self.adapter is not None and not self.denoise_only else self.plain
        if source is not None:
            self.tile_grids = tuple(source.tile_grids)
        #: of trained weights; None for upsamplers without any, whose name says everything
        self.digest = state_digest(self.adapter) if self.adapter is not None else None

    def chosen_tiles(self, low: Tensor, images: Tensor, passes: float) -> Tensor | None:
        """bool [B, n, n], the tiles a budget of passes is spent on (None: all); low [B, C, g, g'] in raw units."""
        assert self.adapter is not None
        return choose_tiles(self.adapter.upsampler, self.adapter.denoise_normalised(low), images, passes)

    def forward(self, views: Views, images: Tensor) -> Tensor:
        """Pure in its inputs: the teacher has already looked."""
        if self.plain is not None:
            return self.plain(views.low, views.tiles, images)
        if self.adapter is None:
            return views.low
        return self.adapter.denoise(views.low) if self.denoise_only else self.adapter(views, images)


def adapter_dtype(node: TeacherNode) -> torch.dtype | None:
    """What the products of a node's adapter are computed in; None: float32, as its weights."""
    return torch.bfloat16 if node.adapter_dtype == "bfloat16" else None


def check_adapter(name: str, node: TeacherNode, folder: str, adapter: Adapter) -> None:
    """UserError when an adapter holds another upsampler or another factor than the recipe says."""
    if adapter.meta.published_views:
        raise UserError(
            f"teachers.{name}: adapter {folder} wants views resized without antialiasing, which no distillation "
            "makes; convert it with --antialiased-views (a few per cent from what was published)"
        )
    if node.denoise is not None:
        return
    held, wanted = f"{adapter.meta.upsampler} {adapter.factor}x", f"{node.upsampler} {node.factor}x"
    if held != wanted:
        raise UserError(f"teachers.{name}: adapter {folder} holds {held}, the recipe says {wanted}")


def plain_upsampler(name: str, node: TeacherNode, spec: BackboneSpec) -> Upsampler:
    """An upsampler without weights; UserError when this one has weights and no trained adapter is given."""
    made = build_upsampler(node.upsampler, dim=spec.spatial_dim, factor=node.factor, grid=spec.native_grid)
    if any(True for _ in made.parameters()):
        known = ", ".join(node.adapters) or "none"
        raise UserError(
            f'teachers.{name}: upsampler "{node.upsampler}" must be trained; give teachers.{name}.adapters='
            f"{{'{node.upsampler}': FOLDER}} (adapters given: {known}), see featsharp_adapter/train.py"
        )
    return made
