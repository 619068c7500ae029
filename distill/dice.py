"""Random numbers that belong to one arm, when several arms train in one process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Dice:
    """torch's random state of one arm; inside `with dice.hold():` that arm draws as if it were alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._mine: list[Tensor] | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Go on where this arm's random numbers stopped, and put the others' back at the end."""
        others = self._read()
        if self._mine is not None:
            self._write(self._mine)
        try:
            yield
        finally:
            self._mine = self._read()
            self._write(others)

    def _read(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def _write(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)
