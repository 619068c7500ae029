"""Staying inside a memory budget: how many tiles the teacher may see, and how many rows may be fused, at a time.

Nothing is guessed from a model's name: one tile is shown to the teacher and a few rows are fused, the tensors that
this takes are counted, and the rest follows by proportion.
"""

import ctypes
import math
import re
from collections.abc import Callable

from torch import Tensor
from torch.func import functional_call

from common.errors import UserError
from featsharp_adapter.model.adaptive_upsample import side_plan
from featsharp_adapter.model.jbu import RADIUS
from featsharp_adapter.model.local_attention import block_bias, rope_angles
from featsharp_adapter.sharpening.peak_memory import PeakMemory
from featsharp_adapter.upsamplers.base import Upsampler

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
#: Rows of low-resolution tokens fused to find out what a row costs: two numbers, so that what is fixed drops out. Of
#: high maps more, since filters and attention cut those into blocks, whose memory is another.
TRIAL_ROWS, HIGH, HIGH_TRIAL_ROWS = (2, 4), 24, (6, 12)


#: Share of a budget that is planned with. What a trial of a few rows does not see, an allocator's rounding and the
#: kernels' own buffers come out of the rest, so that the whole process stays within a tenth of the budget.
PLANNED = 0.9

#: glibc's name of the smallest block that is a mapping of its own, and what it is set to.
_M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 2**17


def return_freed_memory() -> bool:
    """Have the C library give every freed tensor of 128 KiB or more back to the system at once; False: it cannot.

    A budget counts live tensors. glibc keeps freed blocks of up to 32 MiB for later, in pieces that the next tensor
    does not fit into, and the process stays 60-80 % above what lives in it (benchmarks/max_memory.py). This is for
    the whole process and for good, so that a program decides it, not a library.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES))
    except (AttributeError, OSError, TypeError):  # no glibc here
        return False


def parse_memory(text: str) -> int:
    """ "512M", "1.5G" (powers of 1024) or a number of bytes -> bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f'an amount of memory is a number and K, M or G, e.g. "512M" or "1.5G", got "{text}"')
    return int(float(match[1]) * _UNITS[match[2].upper()])


class Budget:
    """`limit` bytes for the tensors of one call, PLANNED of it planned with; `held` says what is taken so far."""

    def __init__(self, limit: int) -> None:
        self.limit, self.planned = limit, int(PLANNED * limit)

    def tiles(self, encode: Callable[[Tensor], Tensor], tile: Tensor, held: int) -> int:
        """How many tiles like [1, 3, R, R'] the teacher may see at once beside `held` bytes; at least one."""
        with PeakMemory() as memory:
            encode(tile)
        one = memory.peak + tile.nbytes
        self._check(held + one, f"the teacher needs it for one view of {tile.shape[-2]}x{tile.shape[-1]} px")
        return (self.planned - held) // one

    def strip_rows(
        self, upsampler: Upsampler, low: Tensor, tiles: dict[int, Tensor], guidance: Tensor, held: int
    ) -> int | None:
        """How many output rows may be made at once beside `held` bytes (inputs, not the result); None: all."""
        height, factor = low.shape[-2], upsampler.factor
        if not upsampler.local:
            whole = held + _whole_peak(upsampler, low, tiles, guidance)
            self._check(whole, "this upsampler needs it, and cannot work in strips")
            return None
        out = low.nbytes * factor**2
        fewer, more = (min(rows, height) for rows in (TRIAL_ROWS if height <= HIGH else HIGH_TRIAL_ROWS))
        few, many = (_peak(upsampler, low, tiles, guidance, rows) for rows in (fewer, more))
        row = (many - few) / (more - fewer) / factor if more > fewer else many / height / factor  # of the output
        row = max(row, out / (height * factor))
        fixed = max(few - fewer * factor * row, 0.0)
        whole = held + fixed + row * height * factor
        if whole <= self.planned:
            return None
        # Around a strip: the window of the attention, and what the last level's filter and interpolation reach.
        around = 2 * (upsampler.reach + RADIUS + factor)
        available = self.planned - held - out - fixed - around * row
        self._check(self.planned - available + row, f"a row of {low.shape[-1] * factor} sharpened tokens needs it")
        return int(available // row)

    def _check(self, needed: float, why: str) -> None:
        if needed > self.planned:
            allow = math.ceil(10 * needed / PLANNED / 2**20) / 10
            raise UserError(
                f"max_memory of {self.limit / 2**20:.1f} MiB is too little: {allow:.1f} MiB are needed, "
                f"{why}; allow more, or use a smaller image"
            )


def _peak(upsampler: Upsampler, low: Tensor, tiles: dict[int, Tensor], guidance: Tensor, rows: int) -> int:
    """Bytes that upsampling the first `rows` rows of tokens takes, the result included."""
    side_plan.cache_clear()  # whichever trial comes first would pay for all that is remembered
    block_bias.cache_clear()
    rope_angles.cache_clear()
    part = guidance[:, :, : max(1, guidance.shape[-2] * rows // low.shape[-2])]
    strip = {n: tile[:, :, : n * rows] for n, tile in tiles.items()}
    with PeakMemory() as memory:
        upsampler(low[:, :, :rows], strip, part)
    return memory.peak


def _whole_peak(upsampler: Upsampler, low: Tensor, tiles: dict[int, Tensor], guidance: Tensor) -> float:
    """Bytes that upsampling the whole map takes, the result included; on the meta device, where nothing is computed.

    Attention to all of a map grows faster than its rows, so that a trial of a few would say too little. It is what is
    left for code of others and for optimisation inside, which the meta device may not be able to follow.
    """
    state = {name: tensor.to("meta") for name, tensor in (*upsampler.named_parameters(), *upsampler.named_buffers())}
    given = (low.to("meta"), {n: tile.to("meta") for n, tile in tiles.items()}, guidance.to("meta"))
    try:
        with PeakMemory(meta=True) as memory:
            functional_call(upsampler, state, given)
    except (NotImplementedError, RuntimeError, UserError):
        rows = min(TRIAL_ROWS[1], low.shape[-2])
        return _peak(upsampler, low, tiles, guidance, rows) * low.shape[-2] / rows
    return memory.peak
