"""Convolutions of a standardised image, made for one in [0, 1]."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class ImageScale:
    """The published programs standardise the image by the encoder's mean and std before everything else, so that what
    looks at it was trained on standardised pixels; ours are in [0, 1]. A 1 x 1 convolution takes the difference in:
    W (x - mean) / std + b = (W / std) x + (b - sum W mean / std). It has no padding, where the two would differ.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors, with every first convolution of the image (`key.0`, `rgb`) made for pixels in [0, 1]."""
        folded = dict(tensors)
        for name, weight in tensors.items():
            layer, _, part = name.rpartition(".")
            if part == "weight" and (layer == "rgb" or layer.endswith("key.0")):
                scaled = weight.double() / self.std.view(1, 3, 1, 1)
                bias = tensors[f"{layer}.bias"].double() - (scaled.flatten(1) * self.mean).sum(dim=1)
                folded |= {name: scaled.to(weight.dtype), f"{layer}.bias": bias.to(weight.dtype)}
        return folded
