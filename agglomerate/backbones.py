"""Backbones, adapters, and features of images in one call."""

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.errors import UserError
from distill.exported import ExportedStudent, from_pretrained
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.sharpening.backbone import SharpenedBackbone
from featsharp_adapter.sharpening.backbone import load as load_sharpened
from featsharp_adapter.sharpening.sharpener import Fit
from imagery.decode import BadImage, decode_image
from teachers.contracts import Backbone, Features
from teachers.known import KNOWN
from teachers.registry import load_backbone as _load_backbone

Images = str | PathLike[str] | Image.Image | np.ndarray | Tensor


def known_teachers() -> dict[str, dict[str, Any]]:
    """The teachers of the papers: short name -> the backbone node that loads it."""
    return {name: known.node() for name, known in KNOWN.items()}


def load_backbone(spec: str | dict[str, Any]) -> Backbone:
    """Any backbone by its short form or node: `timm:NAME`, `open_clip:ARCH:TAG`, `transformers:NAME`, `tiny:clip`,
    `sharp:ADAPTER_FOLDER`, `run:RUN_OR_STUDENT_FOLDER`, `class:PACKAGE.MODULE.NAME`, or a name of `known_teachers`.

    It takes images [B, 3, H, W] in [0, 1] and gives Features(summary [B, S] or None, spatial [B, C, h, w]); its `spec`
    says sizes, widths and the licence. UserError says what is wrong with the name or the weights.
    """
    return _load_backbone(spec)


def load_student(folder: str | PathLike[str]) -> ExportedStudent:
    """A distilled student from a run's folder, a student folder, or a Hub repository ORGANISATION/NAME."""
    return from_pretrained(fspath(folder))


def load_adapter(folder: str | PathLike[str]) -> Adapter:
    """An adapter folder, `builtin:NAME` (shipped), or a Hub repository ORGANISATION/NAME, in eval mode."""
    return Adapter.from_pretrained(fspath(folder))


def sharpened(
    adapter: str | PathLike[str],
    teacher: str | dict[str, Any] | None = None,
    *,
    fit: Fit = "auto",
    max_memory: str | None = None,
    passes: float | None = None,
) -> SharpenedBackbone:
    """A teacher with its adapter as one frozen backbone, for images of any size; `low_res(images)` is the map before.

    adapter: a folder, `builtin:NAME` or a Hub repository. teacher: a backbone node, where the one that the adapter
    names cannot be loaded, e.g. because its weights are a file of yours. fit: how images of another size than the
    teacher's are shown (auto, squash, resize, windows). max_memory: "2G" bounds the tensors of a call. passes: teacher
    passes an image (below 1: a share of all), for an adapter that can do with less (ridge, ridge_block).
    """
    made = load_sharpened(fspath(adapter), teacher, fit=fit, max_memory=max_memory, passes=passes)
    return made.eval().requires_grad_(False)


@torch.no_grad()
def sharpen(
    images: Images | Sequence[Images],
    adapter: str | PathLike[str] | SharpenedBackbone,
    teacher: str | dict[str, Any] | None = None,
) -> Features:
    """Sharp features of one image or of several of one size: summary [B, S] or None, spatial [B, C, h, w].

    images: paths, Pillow images, uint8 arrays [H, W, 3], or tensors [3, H, W] or [B, 3, H, W] in [0, 1]. Their sides
    are cut to whole patches of the teacher. adapter: as in `sharpened`, or what it gave, which saves loading it again.
    """
    backbone = adapter if isinstance(adapter, SharpenedBackbone) else sharpened(adapter, teacher)
    device = next(backbone.parameters()).device
    several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    loaded = [as_tensor(image) for image in several]
    shapes = {tuple(image.shape[-2:]) for image in loaded}
    if len(shapes) != 1:
        raise UserError(f"images of several sizes ({sorted(shapes)}) make no batch; sharpen them one after the other")
    batch = torch.cat(loaded).to(device)
    patch = backbone.spec.patch_size
    height, width = (side // patch * patch for side in batch.shape[-2:])
    if min(height, width) == 0:
        raise UserError(f"an image of {batch.shape[-2]}x{batch.shape[-1]} px is smaller than one patch ({patch} px)")
    return backbone(batch[..., :height, :width])


def as_tensor(image: Images) -> Tensor:
    """One image, or a batch that is a tensor already -> float32 [B, 3, H, W] in [0, 1]."""
    if isinstance(image, Tensor):
        return _checked(image if image.ndim == 4 else image[None])
    if isinstance(image, str | PathLike):
        try:
            pixels = decode_image(Path(image))
        except (BadImage, OSError) as error:
            raise UserError(f"{fspath(image)} cannot be read as an image: {error}") from error
    else:
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB")) if isinstance(image, Image.Image) else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(
            f"an array is uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}; use a tensor for [0, 1]"
        )
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise UserError(f"a tensor of images is float [B, 3, H, W] in [0, 1], got {images.dtype} {list(images.shape)}")
    if float(images.min()) < 0 or float(images.max()) > 1:
        raise UserError("a tensor of images holds values in [0, 1]: divide by 255, and do not normalise")
    return images.float()
