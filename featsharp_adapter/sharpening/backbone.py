"""A teacher with its adapter, as a backbone: entry point `sharp`, short form `sharp:ADAPTER_FOLDER`.

A node says more: {spec: sharp:ADAPTER_FOLDER, fit: auto} takes images of any size and shape (see sharpener.py).
"""

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.budget import check_passes
from featsharp_adapter.sharpening.max_memory import parse_memory
from featsharp_adapter.sharpening.sharpener import FITS, Fit, Sharpener, SharpenSettings, choose_fit, resample
from teachers.artefacts import BackboneNode, check_artefact_node
from teachers.contracts import Backbone, BackboneSpec, Features, capability, check_size, resize_images, state_digest
from teachers.frozen import FrozenBackbone, dtype_of
from teachers.registry import load_backbone


class SharpenedBackbone(Backbone):
    """images [B, 3, k*R, k*R'] -> the low-resolution pass's summary [B, S], and the sharpened map [B, C, k*g, k*g'].

    With `settings` images of any size in whole patches, H x W, and a map of H/patch x W/patch, or of all the cells that
    their `fit` gives where those are fewer. Has `encode_text` if the teacher has: the summary is the teacher's own, so
    its text tower still fits.
    """

    def __init__(
        self,
        teacher: Backbone,
        adapter: Adapter,
        name: str,
        *,
        chunk: int = 64,
        settings: SharpenSettings | None = None,
        passes: float | None = None,
    ) -> None:
        super().__init__()
        self.teacher, self.adapter, self.chunk, self.settings, self.passes = teacher, adapter, chunk, settings, passes
        self.spec = sharpened_spec(teacher.spec, adapter, name, settings, passes, dtype_of(teacher))
        encode_text = capability(teacher, "encode_text")
        if encode_text is not None:
            self.encode_text = encode_text

    def forward(self, images: Tensor) -> Features:
        check_size(self.spec, images)
        if self.settings is not None:
            return self._any_size(images, self.settings)
        views = self.adapter.views(self.teacher, images, chunk=self.chunk, passes=self.passes)
        return Features(views.summary, self.adapter(views, images))

    def low_res(self, images: Tensor) -> Tensor:
        """The denoised map [B, C, g, g'] of the whole image that sharpening starts from, beside the sharp one."""
        check_size(self.spec, images)
        settings = SharpenSettings(fit="squash", chunk=self.chunk) if self.settings is None else self.settings
        return Sharpener(self.teacher, self.adapter, settings).low_res(images)

    def _any_size(self, images: Tensor, settings: SharpenSettings) -> Features:
        patch, factor = self.spec.patch_size, self.adapter.factor
        height, width = images.shape[-2:]
        wanted = (height // patch, width // patch)
        if choose_fit(settings.fit, self.teacher.spec, images) == "resize":  # up to whole patches of the small view
            step = factor * patch
            images = resize_images(images, (-(-height // step) * step, -(-width // step) * step))
        features = Sharpener(self.teacher, self.adapter, settings)(images)
        given = features.spatial.shape[-2:]
        return Features(
            features.summary, resample(features.spatial, (min(wanted[0], given[0]), min(wanted[1], given[1])))
        )


def sharpened_spec(
    teacher: BackboneSpec,
    adapter: Adapter,
    name: str,
    settings: SharpenSettings | None = None,
    passes: float | None = None,
    dtype: str = "float32",
) -> BackboneSpec:
    """The teacher's spec at k times its size; the digest covers teacher, adapter, and what else features depend on."""
    parts = f"{teacher.digest} {state_digest(adapter)}"
    if passes is not None:
        parts += f" passes {passes}"
    if dtype != "float32":
        parts += f" teacher in {dtype}"
    if adapter.dtype is not None:
        parts += f" adapter in {adapter.dtype}"
    if settings is not None:
        parts += f" {settings.fit} {settings.overlap}"
    height, width = teacher.native_size
    return replace(
        teacher,
        name=f"sharp:{name}",
        library="sharp",
        native_size=(height * adapter.factor, width * adapter.factor),
        resizable=settings is not None,
        digest=f"sha256:{hashlib.sha256(parts.encode()).hexdigest()}",
        other_sizes="fit: auto takes any" if settings is None else "",
    )


def recorded_teacher(folder: str, adapter: Adapter) -> BackboneNode:
    """The node of the teacher that an adapter was made for, as far as a file may name one."""
    remedy = f"Type it: {{spec: sharp:{folder}, teacher: NODE}}, or --teacher SPEC"
    return check_artefact_node(adapter.meta.teacher_node, folder, remedy)


def load(
    folder: str,
    teacher: str | dict[str, Any] | None = None,
    chunk: int = 64,
    fit: Fit | None = None,
    overlap: float = 0.0,
    max_memory: str | None = None,
    dtype: str | None = None,
    upsampler: str | None = None,
    passes: float | None = None,
    frozen: bool = True,
    adapter_dtype: str | None = None,
) -> SharpenedBackbone:
    """Load an adapter folder (or `builtin:NAME`, or a Hub repository) and the teacher it names.

    teacher: a backbone node that loads the same weights from elsewhere; the digest is checked either way.
    chunk: tiles in the teacher at a time. fit: without one, k times the teacher's size is the only size; auto, squash,
    resize and windows take any (sharpener.py), where overlap (a share of a tile) and max_memory ("2G") are settings.
    dtype: bfloat16 or float16, of the teacher's matrix products, of a frozen one. The adapter stays in float32, unless
    adapter_dtype: bfloat16 says otherwise (how far that moves the map: docs/adapters.md).
    frozen: False lets gradients reach the teacher's and the adapter's weights.
    passes: a budget of teacher passes an image, counted over a batch (adapter/budget.py).
    upsampler: the class:PACKAGE.MODULE.NAME that the adapter may run, where it is not of this package.
    """
    settings = _settings(fit, overlap, max_memory, chunk, passes)
    adapter = Adapter.from_pretrained(folder, trusted=upsampler)
    backbone = load_backbone(recorded_teacher(folder, adapter) if teacher is None else teacher)
    if dtype is not None and not frozen:
        raise UserError("dtype is of a frozen teacher: leave it out, or frozen: false")
    if frozen:
        backbone = FrozenBackbone(backbone, dtype=dtype, chunk=chunk)
    adapter = Adapter.from_pretrained(folder, backbone.spec, trusted=upsampler)
    if passes is not None:
        check_passes(adapter.upsampler, passes)
    if adapter_dtype not in (None, "float32", "bfloat16"):
        raise UserError(f'adapter_dtype is float32 or bfloat16, got "{adapter_dtype}"')
    adapter.dtype = torch.bfloat16 if adapter_dtype == "bfloat16" else None
    adapter.requires_grad_(not frozen)
    return SharpenedBackbone(backbone, adapter, folder, chunk=chunk, settings=settings, passes=passes)


def _settings(
    fit: Fit | None, overlap: float, max_memory: str | None, chunk: int, passes: float | None
) -> SharpenSettings | None:
    """How images of any size are taken; None where only one size is."""
    if fit is not None:
        budget = None if max_memory is None else parse_memory(str(max_memory))
        return SharpenSettings(fit=fit, overlap=overlap, max_memory=budget, chunk=chunk, passes=passes)
    if overlap or max_memory is not None:
        raise UserError(f"overlap and max_memory are for images of any size; add a fit: {', '.join(FITS)}")
    return None
