"""Backbones for counting alone: built without weights, and without a network even where the weights are gated."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from common.errors import UserError
from distill.planning.counting import SkipInit
from teachers.contracts import Backbone, BackboneSpec, Features
from teachers.known import NORMALISATIONS, ROWS, KnownTeacher
from teachers.library import as_size
from teachers.registry import load_backbone, parse_spec

#: Libraries that build a model without its weights.
ON_META = ("timm", "open_clip", "transformers")
#: Gated repositories whose configuration is its library's default.
DEFAULTS = {"facebook/sam3": "Sam3VideoConfig"}
HEAD_WIDTH = 64  #: of an attention head, in every ViT of this field


def shapes_only(node: str | Mapping[str, Any]) -> Backbone:
    """The backbone of a node with weights that are no numbers, where its library can build that; else as it is.

    One that cannot be built here (no network, its own code) and is in teachers/known.py is a `TableBackbone`.
    """
    prefix, rest, options = parse_spec(node)
    options = {key: value for key, value in options.items() if key != "digest"}
    spec = f"{prefix}:{rest}"
    if prefix not in ON_META:
        return load_backbone({"spec": spec, **options})
    row = next((row for row in ROWS if row.spec == spec), None)
    with SkipInit():
        if rest in DEFAULTS and row is not None:
            return _by_default(row, DEFAULTS[rest], options)
        try:
            return load_backbone({"spec": spec, **options, "device": "meta"})
        except UserError:
            if row is None:
                raise
    return TableBackbone(row, options)


def _by_default(row: KnownTeacher, config: str, options: Mapping[str, Any]) -> Backbone:
    mean, std = NORMALISATIONS[row.norm]
    with tempfile.TemporaryDirectory() as folder:
        getattr(transformers, config)().save_pretrained(folder)
        node = {"spec": f"transformers:{folder}", "mean": list(mean), "std": list(std), "device": "meta", **options}
        made = load_backbone(node)
    made.spec = replace(made.spec, name=row.spec)
    return made


class TableBackbone(Backbone):
    """A plain ViT of a table row's width and patch, as deep as its parameters allow: near the real one, not equal."""

    def __init__(self, row: KnownTeacher, options: Mapping[str, Any]) -> None:
        super().__init__()
        mean, std = NORMALISATIONS[row.norm]
        native = as_size(options.get("image_size", row.native))
        summary = None if options.get("summary") == "none" else row.summary_dim
        self.spec = BackboneSpec(
            name=f"{row.spec} (by its size in teachers/known.py)",
            library="transformers",
            patch_size=row.patch,
            spatial_dim=row.spatial_dim,
            summary_dim=summary,
            native_size=native,
            resizable=True,
            mean=mean,
            std=std,
            licence=row.licence,
            source=row.repository,
            digest="meta",
        )
        width = row.spatial_dim
        depth = max(1, round(row.parameters * 1e6 / (12 * width**2)))
        with torch.device("meta"), SkipInit():
            self.patches = nn.Conv2d(3, width, row.patch, row.patch)
            self.blocks = nn.Sequential(
                *(Block(width, max(1, width // HEAD_WIDTH), qkv_bias=True) for _ in range(depth))
            )
            self.pool = nn.Linear(width, summary) if summary else None
        self.eval()

    def forward(self, images: Tensor) -> Features:
        """[B, 3, H, W] -> Features of the right shapes."""
        patches = self.patches(images)
        tokens = self.blocks(patches.flatten(2).transpose(1, 2))
        summary = None if self.pool is None else self.pool(tokens.mean(dim=1))
        return Features(summary, tokens.transpose(1, 2).unflatten(2, tuple(patches.shape[-2:])))
