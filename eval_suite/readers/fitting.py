"""Bringing photographs of any size, and everything that is known of their pixels, to one size."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Mode = Literal["stretch", "crop", "pad"]


@dataclass(frozen=True)
class Affine:
    """x' = scale_x x + shift_x, and y alike, in pixels with centres at +0.5."""

    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float

    def points(self, points: Tensor) -> Tensor:
        """(x, y) [..., 2] of the photograph -> of the fitted image."""
        scale, shift = points.new_tensor([self.scale_x, self.scale_y]), points.new_tensor([self.shift_x, self.shift_y])
        return points * scale + shift


@dataclass(frozen=True)
class Fit:
    """One size for all. `stretch` changes the aspect, `crop` keeps the centre (short side to size, bicubic: the usual
    evaluation transform), `pad` shrinks the whole photograph into the middle and fills the rest."""

    height: int
    width: int
    mode: Mode = "stretch"

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def affine(self, height: int, width: int) -> Affine:
        """How the pixels of a photograph of that size move."""
        if self.mode == "stretch":
            return Affine(self.width / width, self.height / height, 0.0, 0.0)
        across, down = self.width / width, self.height / height
        if self.mode == "crop":
            scale = max(across, down)
            return Affine(scale, scale, (self.width - scale * width) / 2, (self.height - scale * height) / 2)
        scale = min(across, down)
        inner = max(1, round(scale * width)), max(1, round(scale * height))
        return Affine(inner[0] / width, inner[1] / height, (self.width - inner[0]) // 2, (self.height - inner[1]) // 2)

    def image(self, pixels: np.ndarray) -> Tensor:
        """RGB uint8 [H, W, 3] -> uint8 [3, height, width], bicubic and antialiased; padding is black."""
        height, width = pixels.shape[:2]
        picture = Image.fromarray(pixels)
        if self.mode == "pad":
            move = self.affine(height, width)
            inner = picture.resize(
                (round(move.scale_x * width), round(move.scale_y * height)), Image.Resampling.BICUBIC
            )
            whole = Image.new("RGB", (self.width, self.height))
            whole.paste(inner, (int(move.shift_x), int(move.shift_y)))
        else:
            move = self.affine(height, width)
            left, top = -move.shift_x / move.scale_x, -move.shift_y / move.scale_y
            box = (left, top, left + self.width / move.scale_x, top + self.height / move.scale_y)
            box = (max(0.0, box[0]), max(0.0, box[1]), min(float(width), box[2]), min(float(height), box[3]))
            whole = picture.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box)
        return torch.from_numpy(np.asarray(whole).copy()).movedim(-1, 0)

    def labels(self, values: np.ndarray, fill: float) -> np.ndarray:
        """Labels [H, W, ...] -> [height, width, ...], each the one under the pixel's centre; padding is `fill`."""
        height, width = values.shape[:2]
        move = self.affine(height, width)
        columns = np.floor((np.arange(self.width) + 0.5 - move.shift_x) / move.scale_x).astype(np.int64)
        rows = np.floor((np.arange(self.height) + 0.5 - move.shift_y) / move.scale_y).astype(np.int64)
        if self.mode != "pad":  # rounding may step over the edge by one
            columns, rows = columns.clip(0, width - 1), rows.clip(0, height - 1)
        inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
        out = values[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)].copy()
        out[~inside] = fill
        return out
