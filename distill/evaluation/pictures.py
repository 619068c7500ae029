"""Feature maps as colours: image, teacher, every upsampler, every student, for each teacher in one PCA basis.

A basis per panel would give every panel its own colours and make any two look different or alike by accident. Here the
three axes and the colour range are fitted once, on all maps of a teacher together, so equal colours are equal features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.exported import ExportedStudent
from distill.recipe import Recipe
from distill.targets.target_upsampler import TargetUpsampler
from featsharp_adapter.model.views import Views, teacher_views
from featsharp_adapter.sharpening.pictures import save_panels
from teachers.contracts import Backbone
from teachers.registry import load_backbone


@dataclass(frozen=True)
class Sheet:
    """One teacher's pictures: `rows[title]` holds N pictures uint8 [H, W, 3], one per image.

    grids: tokens down x across, of the teacher and of what was made of it: "7x7 -> 14x14".
    """

    teacher: str
    grids: str
    rows: Mapping[str, Sequence[np.ndarray]]


@torch.no_grad()
def draw(arms: Mapping[str, Recipe], students: Mapping[str, ExportedStudent], images: Tensor) -> list[Sheet]:
    """images [N, 3, H, W] in [0, 1] -> a sheet per teacher of the arms; every arm has its student."""
    first = next(iter(arms.values()))
    answers = {arm: student(images) for arm, student in students.items()}
    sheets = []
    for name in first.teachers:
        backbone = load_backbone(first.teachers[name].backbone)
        maps = teacher_maps(name, backbone, arms, images)
        for arm, student in students.items():
            adaptor = student.adaptor(name)
            projected = adaptor.project(answers[arm]).spatial
            if projected is not None:
                maps[f"student, {arm}"] = projected
        size = (int(images.shape[-2]), int(images.shape[-1]))
        rows = {"image": to_pictures(images)}
        rows |= {f"{title}, {grid_of(maps[title])}": enlarge(rgb, size) for title, rgb in pca_colours(maps).items()}
        sheets.append(Sheet(name, " -> ".join(dict.fromkeys(grid_of(each) for each in maps.values())), rows))
    return sheets


def grid_of(maps: Tensor) -> str:
    """Tokens down x across of maps [N, C, h, w], e.g. "7x7"."""
    return f"{maps.shape[-2]}x{maps.shape[-1]}"


def save_sheet(sheet: Sheet, path: Path) -> Path:
    """The sheet as a PNG: an image a row, a view of it a column."""
    return save_panels(sheet.rows, path)


def teacher_maps(name: str, backbone: Backbone, arms: Mapping[str, Recipe], images: Tensor) -> dict[str, Tensor]:
    """What the teacher says at its own resolution, and after every different upsampler of the arms."""
    target_upsamplers = {}
    for recipe in arms.values():
        node = recipe.teachers[name]
        if node.upsampler != "none":
            title = f"{node.upsampler} {node.effective_factor}x"
            target_upsamplers[title] = TargetUpsampler(name, node, backbone.spec).eval()
    grids = sorted({n for target_upsampler in target_upsamplers.values() for n in target_upsampler.tile_grids})
    views: Views = teacher_views(backbone, images, grids)
    return {f"teacher {name}": views.low} | {title: make(views, images) for title, make in target_upsamplers.items()}


def pca_colours(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps [N, C, h, w] of any grids, one C -> colours [N, 3, h, w] in [0, 1]; one basis and one range for all.

    Each map counts alike in the fit, however many tokens it has.
    """
    tokens = {title: values.double().transpose(0, 1).flatten(1) for title, values in maps.items()}
    mean = torch.stack([values.mean(1) for values in tokens.values()]).mean(0)
    covariance = torch.stack([_scatter(values, mean) for values in tokens.values()]).mean(0)
    axes = torch.linalg.eigh(covariance).eigenvectors[:, -3:].flip(1).T
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # eigenvectors have no sign of their own
    flat = torch.cat([axes @ (values - mean[:, None]) for values in tokens.values()], dim=1)
    low, high = torch.quantile(flat[:, :: max(1, flat.shape[1] // 100_000)], torch.tensor([0.01, 0.99]).double(), dim=1)
    return {title: _paint(values, axes, mean, low, high) for title, values in maps.items()}


def to_pictures(images: Tensor) -> list[np.ndarray]:
    """[N, 3, H, W] in [0, 1] -> N pictures uint8 [H, W, 3]."""
    return list((images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())


def enlarge(colours: Tensor, size: tuple[int, int]) -> list[np.ndarray]:
    """[N, 3, h, w] -> N pictures of the images' size; tokens stay visible squares."""
    return to_pictures(F.interpolate(colours, size=size, mode="nearest"))


def _scatter(values: Tensor, mean: Tensor) -> Tensor:
    centred = values - mean[:, None]
    return centred @ centred.T / values.shape[1]


def _paint(values: Tensor, axes: Tensor, mean: Tensor, low: Tensor, high: Tensor) -> Tensor:
    projected = torch.einsum("oc,nchw->nohw", axes, values.double() - mean[:, None, None])
    span = (high - low).clamp(min=1e-12)[:, None, None]
    return ((projected - low[:, None, None]) / span).clamp(0, 1).float()
