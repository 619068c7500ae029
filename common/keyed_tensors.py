"""Random numbers as a function of (seed, rank, update, forward): nothing to save and nothing to restore.

torch's own random state belongs to a process. What a student draws here depends on where the training stands alone, so
a resumed run, an arm beside others and a block that is computed again in the backward pass all draw the same.
"""

import torch
from torch import Tensor

from common.keyed_random import mix


class Draws:
    """The keys of one student's forwards. `begin` is told the update; a student nobody tells stays at update 0."""

    def __init__(self, seed: int = 0, rank: int = 0) -> None:
        self.seed, self.rank = seed, rank
        self.update, self.forwards = 0, 0

    def begin(self, update: int) -> None:
        """From here on, forwards belong to update number `update` (1, 2, ...)."""
        self.update, self.forwards = update, 0

    def next(self) -> int:
        """The key of the next training forward: another one for every update, pass and process."""
        self.forwards += 1
        return mix(self.seed, self.rank, self.update, self.forwards) >> 1  # a positive int64


def normal(shape: tuple[int, ...], device: torch.device, *key: int) -> Tensor:
    """Standard normal float32 numbers that `key` decides."""
    if device.type == "meta":  # for counting alone
        return torch.empty(shape, device=device)
    return torch.randn(shape, device=device, generator=generator(device, *key))


def uniform(shape: tuple[int, ...], *key: int) -> Tensor:
    """float32 numbers in [0, 1) on the CPU that `key` decides."""
    return torch.rand(shape, generator=generator(torch.device("cpu"), *key), device="cpu")


def generator(device: torch.device, *key: int) -> torch.Generator:
    """A new generator whose numbers `key` decides."""
    return torch.Generator(device).manual_seed(mix(*key))
