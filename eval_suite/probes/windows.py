"""Sliding-window prediction as mmsegmentation and DINOv3 do it: overlapping crops, their logits averaged."""

from collections.abc import Callable

import torch
from torch import Tensor

from eval_suite.maps import resize_map


def window_starts(side: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last one is moved back so that it ends at the edge."""
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [min(at * stride, max(side - crop, 0)) for at in range(count)]


def slide(
    logits_of: Callable[[Tensor], Tensor], image: Tensor, classes: int, crop: int, stride: int, size: tuple[int, int]
) -> Tensor:
    """Image [3, H, W] -> logits [classes, *size]: windows' logits summed, divided by their count, resized bilinearly.

    `logits_of` maps a window [1, 3, h, w] to logits [1, classes, h, w]. Where both sides are smaller than the crop it
    shrinks to the shorter one (DINOv3).
    """
    height, width = image.shape[-2:]
    crop = min(crop, height, width) if max(height, width) < crop else crop
    total, seen = torch.zeros(classes, height, width), torch.zeros(height, width)
    for top in window_starts(height, crop, stride):
        for left in window_starts(width, crop, stride):
            part = slice(top, min(top + crop, height)), slice(left, min(left + crop, width))
            total[:, *part] += logits_of(image[None, :, *part])[0].float().cpu()
            seen[part] += 1
    return resize_map((total / seen)[None], size)[0]
