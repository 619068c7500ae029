"""Label maps of a set by row: decoded when asked for, held against their photographs, brought to one size, kept."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from eval_suite.readers.fitting import Fit
from eval_suite.readers.photo_sizes import PhotoSize, check_label

KEEP_BYTES = 1 << 30  #: label maps held in memory once decoded


@dataclass
class DecodedMaps:
    """`maps[rows]` [b, h, w] or [b, 3, h, w].

    `decode(row)` gives [H, W] or [H, W, 3] at any size whose aspect is that of `photo(row)`, the photograph it belongs
    to; UserError names the label and both sizes where it is not.
    """

    decode: Callable[[int], np.ndarray]
    fit: Fit
    fill: float
    names: Callable[[int], str]
    photo: Callable[[int], PhotoSize]
    _kept: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _bytes: int = 0

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack([self._fitted(row) for row in rows.tolist()])

    def original(self, row: int) -> Tensor:
        """The label at its own size, [H, W] or [3, H, W]."""
        label = self.decode(row)
        check_label(label.shape, self.photo(row), self.names(row))
        return _channels_first(label)

    def _fitted(self, row: int) -> Tensor:
        if row in self._kept:
            return self._kept[row]
        label = self.decode(row)
        check_label(label.shape, self.photo(row), self.names(row))
        out = _channels_first(self.fit.labels(label, self.fill))
        if self._bytes < KEEP_BYTES:
            self._kept[row] = out
            self._bytes += out.numel() * out.element_size()
        return out


def _channels_first(values: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor
