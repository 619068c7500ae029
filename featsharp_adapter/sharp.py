"""A teacher with its adapter, as a backbone: entry point `sharp`, short form `sharp:ADAPTER_FOLDER`."""

import hashlib
from dataclasses import replace
from typing import Any

from torch import Tensor

from featsharp_adapter.adapter import Adapter
from featsharp_adapter.views import teacher_views
from teachers.contracts import Backbone, BackboneSpec, Features, capability, check_size, state_digest
from teachers.registry import load_backbone


class SharpenedBackbone(Backbone):
    """images [B, 3, k*R, k*R'] -> the low-resolution pass's summary [B, S], and the sharpened map [B, C, k*g, k*g'].

    Has `encode_text` if the teacher has: the summary is the teacher's own, so its text tower still fits.
    """

    def __init__(self, teacher: Backbone, adapter: Adapter, name: str, *, chunk: int = 64) -> None:
        super().__init__()
        self.teacher, self.adapter, self.chunk = teacher, adapter, chunk
        self.spec = sharpened_spec(teacher.spec, adapter, name)
        encode_text = capability(teacher, "encode_text")
        if encode_text is not None:
            self.encode_text = encode_text

    def forward(self, images: Tensor) -> Features:
        check_size(self.spec, images)
        views = teacher_views(self.teacher, images, self.adapter.tile_grids, chunk=self.chunk)
        return Features(views.summary, self.adapter(views, images))


def sharpened_spec(teacher: BackboneSpec, adapter: Adapter, name: str) -> BackboneSpec:
    """The teacher's spec at k times its size; the digest covers teacher and adapter."""
    digest = hashlib.sha256(f"{teacher.digest} {state_digest(adapter)}".encode()).hexdigest()
    height, width = teacher.native_size
    return replace(
        teacher,
        name=f"sharp:{name}",
        library="sharp",
        native_size=(height * adapter.factor, width * adapter.factor),
        resizable=False,
        digest=f"sha256:{digest}",
        other_sizes=f"{adapter.factor} times its teacher's native size",
    )


def load(folder: str, teacher: str | dict[str, Any] | None = None, chunk: int = 64) -> SharpenedBackbone:
    """Load an adapter folder (or `builtin:NAME`, or a Hub repository) and the teacher it names.

    teacher: a backbone node that loads the same weights from elsewhere; the digest is checked either way.
    """
    adapter = Adapter.from_pretrained(folder)
    backbone = load_backbone(adapter.meta.teacher_node if teacher is None else teacher)
    return SharpenedBackbone(backbone, Adapter.from_pretrained(folder, backbone.spec), folder, chunk=chunk)
