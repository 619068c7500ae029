"""An adapter: everything that stands between one teacher's views and its sharpened features.

PHI-S and the bias are applied to the low-resolution map and to every tile before upsampling, and PHI-S is undone after:
raw teacher units in, raw teacher units out. Upsampling raw maps and normalising the result would be another function.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.plugins import CLASS
from featsharp_adapter.adapter.budget import check_passes, choose_tiles, encode_tiles, with_tiles
from featsharp_adapter.adapter.card import adapter_card
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.adapter.folder import find_folder, read_description, read_weights, upload_folder, write_folder
from featsharp_adapter.model.bias import BiasBuffer
from featsharp_adapter.model.conditional_bias import ConditionalBias
from featsharp_adapter.model.normalisers import Normaliser, new_normaliser
from featsharp_adapter.model.phi_s import CovarianceStatistics, PhiS
from featsharp_adapter.model.views import Views, teacher_views
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.checkout import CONSENT
from featsharp_adapter.upsamplers.options import check_options
from featsharp_adapter.upsamplers.table import build_upsampler
from teachers.contracts import Backbone, BackboneSpec, chunked, resize_images


class Adapter(nn.Module):
    """views, guidance -> sharpened features of one teacher."""

    def __init__(
        self,
        normaliser: Normaliser,
        bias: BiasBuffer,
        upsampler: Upsampler,
        meta: AdapterMeta,
        conditional: ConditionalBias | None = None,
    ) -> None:
        super().__init__()
        self.normaliser, self.bias, self.upsampler, self.meta = normaliser, bias, upsampler, meta
        self.conditional = conditional
        #: of the upsampler's matrix products (autocast); None: as its weights. PHI-S and bias stay in float32.
        self.dtype: torch.dtype | None = None

    @classmethod
    def build(cls, meta: AdapterMeta, normaliser: Normaliser) -> "Adapter":
        """An untrained adapter as `meta` describes it."""
        dim, grid = meta.teacher.spatial_dim, meta.teacher.native_grid
        upsampler = build_upsampler(meta.upsampler, dim=dim, factor=meta.factor, grid=grid, **meta.options)
        conditional = None if meta.conditional_heads is None else ConditionalBias(dim, meta.conditional_heads)
        return cls(normaliser, BiasBuffer(dim, grid), upsampler, meta, conditional)

    @property
    def factor(self) -> int:
        """k: how much finer the output grid is."""
        return self.upsampler.factor

    @property
    def tile_grids(self) -> tuple[int, ...]:
        """The tile grids its views need."""
        return self.upsampler.tile_grids

    def forward(self, views: Views, guidance: Tensor) -> Tensor:
        """views in raw teacher units, guidance [B, 3, H, W] in [0, 1] -> [B, C, k*g, k*g'] in raw teacher units."""
        return self.normaliser.denormalise(self.forward_normalised(views, guidance))

    def forward_normalised(self, views: Views, guidance: Tensor) -> Tensor:
        """As `forward`, but left in PHI-S space, where training and fidelity live."""
        low = self.denoise_normalised(views.low)
        tiles = {n: self.denoise_normalised(views.tiles[n], n) for n in self.tile_grids}
        if self.dtype is None:
            return self.upsampler(low, tiles, guidance, views.chosen)
        with torch.autocast(low.device.type, self.dtype):
            return self.upsampler(low, tiles, guidance, views.chosen).float()

    def views(self, backbone: Backbone, images: Tensor, *, chunk: int = 64, passes: float | None = None) -> Views:
        """What this adapter needs of its teacher for images [B, 3, H, W] in [0, 1] of any size.

        passes: a budget of teacher passes an image, counted over the batch (`budget.py`); None: all of them.
        """
        antialias = not self.meta.published_views
        if passes is not None and check_passes(self.upsampler, passes) < 1 + self.tile_grids[0] ** 2:
            low = teacher_views(backbone, images, (), chunk=chunk, antialias=antialias)
            chosen = choose_tiles(self.upsampler, self.denoise_normalised(low.low), images, passes)
            if chosen is not None:
                size = tuple(chosen.shape[-1] * side for side in backbone.spec.native_size)
                large = resize_images(images, (size[0], size[1]), antialias=antialias)
                tiles = encode_tiles(lambda part: chunked(backbone, part, chunk).spatial, large, chosen, low.low)
                return with_tiles(low, tiles, chosen)
        return teacher_views(backbone, images, self.tile_grids, chunk=chunk, antialias=antialias)

    def denoise(self, low: Tensor) -> Tensor:
        """[B, C, g, g'] in raw teacher units -> the same without the position bias; no upsampling."""
        return self.normaliser.denormalise(self.denoise_normalised(low))

    def denoise_normalised(self, features: Tensor, n: int = 1) -> Tensor:
        """Raw [B, C, n*g, n*g'], stitched from n x n tiles -> same shape in PHI-S space, without the position bias."""
        fixed = self.denoise_fixed(features, n)
        return fixed if self.conditional is None else fixed + self.conditional(fixed, n)

    def denoise_fixed(self, features: Tensor, n: int = 1) -> Tensor:
        """As `denoise_normalised`, but without the conditional bias."""
        return self.bias(self.normaliser.normalise(features), n)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write adapter.safetensors, adapter.json and README.md; the folder appears complete or not at all."""
        size = sum(parameter.numel() for parameter in self.parameters())
        return write_folder(
            Path(folder), self.state_dict(), self.meta.to_dict(), adapter_card(self.meta.portable(), size)
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, backbone_spec: BackboneSpec | None = None, *, trusted: str | None = None
    ) -> "Adapter":
        """Load a folder, `builtin:NAME` or a Hub repository, in eval mode.

        UserError when it is missing or damaged, or, given a teacher's spec, made for another teacher. trusted: the
        class:PACKAGE.MODULE.NAME that it may run; a folder may come from anywhere, so it cannot name code by itself.
        """
        path = find_folder(str(folder))
        description = read_description(path)
        meta = AdapterMeta.from_dict(description, str(path))
        if meta.upsampler.startswith(CLASS) and meta.upsampler != trusted and os.environ.get(CONSENT) != "1":
            raise UserError(
                f"the adapter {path} runs {meta.upsampler}, code that is not of this package; to allow it, write "
                f"upsampler: {meta.upsampler} in the node or recipe that loads the adapter, or set {CONSENT}=1"
            )
        if backbone_spec is not None:
            meta.check_teacher(str(folder), backbone_spec)
        check_options(meta.upsampler, meta.options)
        adapter = cls.build(meta, new_normaliser(meta.normaliser, meta.teacher.spatial_dim))
        try:
            adapter.load_state_dict(read_weights(path))
        except RuntimeError as error:
            raise UserError(f"the weights in {path} do not fit the description beside them: {error}") from error
        return adapter.eval()

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload the folder to ORGANISATION/NAME on the Hugging Face Hub (log in first); returns the address."""
        with tempfile.TemporaryDirectory() as scratch:
            return upload_folder(self.save_pretrained(Path(scratch) / "adapter"), repository, private=private)


def make_untrained(
    name: str,
    backbone_spec: BackboneSpec,
    factor: int,
    statistics: CovarianceStatistics | None = None,
    *,
    teacher_node: str | dict[str, Any] | None = None,
) -> Adapter:
    """An adapter around an untrained upsampler, for those without weights. Without statistics PHI-S is the identity."""
    node = backbone_spec.name if teacher_node is None else teacher_node
    meta = AdapterMeta(teacher=backbone_spec, teacher_node=node, upsampler=name, factor=factor)
    normaliser = PhiS(backbone_spec.spatial_dim) if statistics is None else PhiS.fit(statistics)
    return Adapter.build(meta, normaliser).eval()
