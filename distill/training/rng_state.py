"""Random numbers that belong to one arm, when several arms train in one process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class RngState:
    """torch's random state of one arm; inside `with state.hold():` that arm draws as if it were alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._mine: list[Tensor] | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Go on where this arm's random numbers stopped, and put the others' back at the end."""
        others = read_rng(self.device)
        if self._mine is not None:
            write_rng(self._mine, self.device)
        try:
            yield
        finally:
            self._mine = read_rng(self.device)
            write_rng(others, self.device)

    @property
    def state(self) -> list[Tensor]:
        """Where this arm's random numbers stand, outside of `hold`."""
        return read_rng(self.device) if self._mine is None else self._mine


def read_rng(device: torch.device) -> list[Tensor]:
    """The random state of the process: the CPU's, and the GPU's where `device` is one."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def write_rng(states: list[Tensor], device: torch.device) -> None:
    """Put back what `read_rng` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
