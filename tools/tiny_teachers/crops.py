"""Random square crops of cached scenes: what a training step sees."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tools.tiny_teachers.cache import SceneCache

SAMPLES = 8  #: label samples per patch side


@dataclass(frozen=True)
class Crops:
    """A batch of B crops. Labels are point samples, n = SAMPLES per patch side: [B, g*n, g*n]."""

    images: Tensor  #: [B, 3, H, W] in [0, 1]
    semantic: Tensor  #: int64
    coarse: Tensor  #: int64
    part: Tensor  #: int64
    instance: Tensor  #: int64, 0 = background
    depth: Tensor  #: float32 metres, 0 = none
    normals: Tensor  #: float32 [B, 3, g*n, g*n], 0 = none
    indoor: Tensor  #: float32 [B]
    light: Tensor  #: float32 [B, 3]
    grid: int  #: g
    whole: Tensor  #: bool [B], whether the crop shows the whole scene
    rows: np.ndarray  #: cache rows


def draw_windows(count: int, size: int, zoom: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """[count, 3] int64: top, left, side in pixels; side = zoom * size with the zoom uniform in its range."""
    side = np.rint(size * rng.uniform(*zoom, count)).astype(np.int64)
    offsets = np.floor(rng.random((count, 2)) * (size - side + 1)[:, None]).astype(np.int64)
    return np.concatenate([offsets, side[:, None]], axis=1)


def take_crops(cache: SceneCache, rows: np.ndarray, windows: np.ndarray, image_size: int, patch: int) -> Crops:
    """Cut `windows` [B, 3] out of the cache's `rows` [B]; images are resized with antialiasing, labels sampled."""
    grid = image_size // patch
    maps = cache.maps
    images = [_image(maps["rgb"], row, window, image_size) for row, window in zip(rows, windows, strict=True)]
    points = [_points(window, grid * SAMPLES) for window in windows]

    def sample(name: str, reduction: int = 1) -> Tensor:
        picked = [
            maps[name][row][(y // reduction)[:, None], (x // reduction)[None, :]]
            for row, (y, x) in zip(rows, points, strict=True)
        ]
        return torch.from_numpy(np.stack(picked))

    labels = {name: sample(name).long() for name in ("semantic", "coarse", "part", "instance")}
    return Crops(
        images=torch.cat(images),
        depth=sample("depth", 2).float(),
        normals=sample("normals", 2).permute(0, 3, 1, 2).float() / 127,
        indoor=torch.from_numpy(cache.facts["indoor"][rows]).float(),
        light=torch.from_numpy(np.array(cache.facts["light"][rows])),
        grid=grid,
        whole=torch.from_numpy(windows[:, 2] == cache.size),
        rows=rows,
        **labels,
    )


def _image(rgb: np.ndarray, row: int, window: np.ndarray, size: int) -> Tensor:
    top, left, side = (int(value) for value in window)
    piece = torch.from_numpy(np.array(rgb[row, top : top + side, left : left + side]))
    image = piece.permute(2, 0, 1).unsqueeze(0).float() / 255
    if side == size:
        return image
    return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def _points(window: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    top, left, side = (int(value) for value in window)
    steps = np.floor((np.arange(count) + 0.5) * side / count).astype(np.int64)
    return top + steps, left + steps
