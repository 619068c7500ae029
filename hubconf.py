"""For users of torch.hub: `torch.hub.load(CHECKOUT_OR_REPOSITORY, "backbone", "tiny:clip", trust_repo=True)`.

Entries give torch modules; images are [B, 3, H, W] in [0, 1], answers Features(summary, spatial).
"""

from typing import Any

import agglomerate
from teachers.contracts import Backbone

dependencies = ["torch", "torchvision", "timm", "open_clip", "transformers", "safetensors", "pydantic", "yaml", "PIL"]


def backbone(spec: str | dict[str, Any] = "tiny:dino") -> Backbone:
    """Any backbone by its short form or node, e.g. "timm:vit_small_patch14_dinov2.lvd142m"."""
    return agglomerate.load_backbone(spec)


def student(folder: str) -> Backbone:
    """A distilled student: a run's folder, a student folder, or a Hub repository ORGANISATION/NAME."""
    return agglomerate.load_student(folder)


def sharpened(adapter: str = "builtin:tiny-clip-featsharp-2x", teacher: str | None = None) -> Backbone:
    """A teacher with its adapter, for images of any size in whole patches of the teacher."""
    return agglomerate.sharpened(adapter, teacher)
