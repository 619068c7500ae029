"""Small things that are asked of torch's layers."""

from torch import Tensor, nn


def bias_of(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The layer's bias [outputs]; ValueError where it was made without one."""
    if layer.bias is None:
        raise ValueError(f"{layer} has no bias")
    return layer.bias
