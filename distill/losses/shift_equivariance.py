"""Shift equivariance (C-RADIOv4, arXiv 2601.17237, equation 1): the student and every teacher see crops of their own.

A batch comes as canvases a little larger than what anybody sees. Each viewer's crop lies a whole number of the
student's patches from the middle, drawn for every image, viewer and update; features are compared where both have seen
the same place. What sticks to positions instead of to the image (a teacher's border or tile artefacts) averages out.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from common.keyed_random import mix
from common.keyed_tensors import normal
from distill.recipe import Recipe

#: Shift along an axis in patches: N(0, STD^2) rounded; the canvas has room for MOST on either side (1 in 370).
STD, MOST = 0.5, 2

Compare = Callable[[Tensor, Tensor], Tensor]
_SHIFT = 0x5817  # keeps these random numbers apart from the other uses of a seed


def margin(recipe: Recipe, patch: int) -> int:
    """Pixels by which a canvas is higher and wider than the student's image; 0 without shifts."""
    return 2 * MOST * patch if recipe.loss.shift else 0


class Shifts:
    """Who sees which part of a canvas, as a function of (seed, process, update, batch of it, partition, viewer).

    Arms side by side have equal ones, so teachers look once for all of them. `begin` is told the update, `next_batch`
    that a partition's next batch of it comes (its next micro-batch, where an update has several).
    """

    def __init__(self, seed: int, rank: int, patch: int, update: int = 0) -> None:
        self.seed, self.rank, self.patch, self.update = seed, rank, patch, update
        self._batches: dict[str, int] = {}

    def begin(self, update: int) -> None:
        """What comes now belongs to update number `update` (1, 2, ...)."""
        self.update, self._batches = update, {}

    def next_batch(self, partition: str) -> None:
        """Another batch of the partition comes."""
        self._batches[partition] = self._batches.get(partition, 0) + 1

    def offsets(self, viewer: str, partition: str, count: int) -> Tensor:
        """Whole patches from the middle, down and across: [count, 2] int64 on the CPU."""
        names = [mix(*name.encode()) for name in (viewer, partition)]
        where = (self.seed, self.rank, self.update, self._batches.get(partition, 0))
        drawn = normal((count, 2), torch.device("cpu"), *where, *names, _SHIFT)
        return (STD * drawn).round().long().clamp(-MOST, MOST)

    def cut(self, canvases: Tensor, viewer: str, partition: str) -> Tensor:
        """[B, 3, H + m, W + m] -> what the viewer sees of them, [B, 3, H, W]; m is `margin`."""
        return cut(canvases, self.offsets(viewer, partition, len(canvases)), self.patch)

    def between(self, viewer: str, other: str, partition: str, count: int) -> Tensor:
        """How many patches further down and to the right `other` looks than `viewer`: [count, 2]."""
        return self.offsets(other, partition, count) - self.offsets(viewer, partition, count)


def cut(canvases: Tensor, offsets: Tensor, patch: int) -> Tensor:
    """[B, 3, H + m, W + m] and offsets [B, 2] in patches from the middle -> [B, 3, H, W]."""
    room = 2 * MOST * patch
    height, width = canvases.shape[2] - room, canvases.shape[3] - room
    places = ((offsets + MOST) * patch).tolist()
    pairs = zip(canvases, places, strict=True)
    return torch.stack([canvas[:, top : top + height, left : left + width] for canvas, (top, left) in pairs])


def centre_crop(canvases: Tensor, margin: int) -> Tensor:
    """The middle of canvases [B, 3, H + margin, W + margin] -> [B, 3, H, W]."""
    if not margin:
        return canvases
    edge = margin // 2
    return canvases[:, :, edge:-edge, edge:-edge].contiguous()


def move(features: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """F: [B, C, h, w] as one who looks `by` [B, 2] tokens further down and right would see it, and where it is known.

    Returns [B, C, h, w] and a mask [B, h, w]. Fractions of a token are interpolated linearly, whole ones are exact.
    """
    moved, down = _move_axis(features, by[:, 0], 2)
    moved, across = _move_axis(moved, by[:, 1], 3)
    return moved, down[:, :, None] & across[:, None, :]


def _move_axis(features: Tensor, by: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    length = features.shape[axis]
    places = torch.arange(length, dtype=torch.float64) + by.double()[:, None]
    known = (places >= 0) & (places <= length - 1)
    low = places.floor().clamp(0, length - 1)
    share = (places - low).clamp(0, 1)
    found = _take(features, low, axis)
    if bool((share[known] > 0).any()):
        high = _take(features, (low + 1).clamp(max=length - 1), axis)
        found = found + (high - found) * _along(share.to(features), axis)
    return found, known.to(features.device)


def _take(features: Tensor, places: Tensor, axis: int) -> Tensor:
    index = _along(places.long().to(features.device), axis)
    shape = list(features.shape)
    shape[axis] = places.shape[1]
    return features.gather(axis, index.expand(shape))


def _along(values: Tensor, axis: int) -> Tensor:
    return values[:, None, :, None] if axis == 2 else values[:, None, None, :]


def overlap_mean(compare: Compare, ours: Tensor, theirs: Tensor, by: Tensor) -> Tensor:
    """Mean of `compare` over Omega, where both have seen the image: [B, C, h, w], [B, C, h, w] -> [B].

    by: how many tokens further down and right `theirs` looks, [B, 2]. `compare` gives a value per position [B, h, w].
    An image without any common position counts 0.
    """
    moved, known = move(ours, by)
    values = compare(moved, theirs)
    seen = known.to(values)
    return (values * seen).flatten(1).sum(1) / seen.flatten(1).sum(1).clamp_min(1)
