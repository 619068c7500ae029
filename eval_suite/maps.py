"""Operations on maps [B, C, h, w] that the probes spend their time in, where the library's own are slow on a CPU.

Each has the library's function for a twin in tests/eval_suite/test_maps.py; benchmarks/probe_maps.py times both.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, K, h, w] -> [B, K, *size], bilinear, pixel centres (align_corners False).

    Bilinear resizing is linear and separable, so that on a CPU it is two matrix products, which are faster
    than `F.interpolate` both ways; elsewhere it is that function.
    """
    h, w = values.shape[-2:]
    if (h, w) == size:
        return values
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return F.interpolate(values, size=size, mode="bilinear", align_corners=False)
    rows, columns = _bilinear(h, size[0], values.dtype), _bilinear(w, size[1], values.dtype)
    return rows @ (values @ columns.T)


@lru_cache(maxsize=64)
def _bilinear(cells: int, size: int, dtype: torch.dtype) -> Tensor:
    """[size, cells]: what each of `size` places takes of each cell along one side."""
    with torch.inference_mode(False), torch.no_grad():
        return F.interpolate(torch.eye(cells, dtype=dtype)[None], size=size, mode="linear")[0].T.contiguous()


def length(vectors: Tensor) -> Tensor:
    """[b, C, ...] -> [b, ...]: the Euclidean length along dimension 1, for a handful of channels."""
    return vectors.square().sum(1).sqrt()


def unit(vectors: Tensor) -> Tensor:
    """[b, C, ...] -> the same, of length 1 along dimension 1 (`F.normalize`); for a handful of channels."""
    return vectors * vectors.square().sum(1, keepdim=True).clamp(min=1e-24).rsqrt()


def best_class(scores: Tensor) -> Tensor:
    """[b, K, ...] -> int64 [b, ...]: the class with the highest score, the first one where several have it."""
    return scores.max(1).indices


def channel_moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C, h, w] -> mean and (unbiased) standard deviation of every channel, each [1, C, 1, 1]."""
    mean = maps.flatten(2).mean((0, 2)).view(1, -1, 1, 1)
    squares = torch.stack([(part - mean).flatten(2).square().sum((0, 2)) for part in maps.split(64)]).sum(0)
    count = maps.numel() // maps.shape[1]
    return mean, (squares / (count - 1)).sqrt().view(1, -1, 1, 1)
